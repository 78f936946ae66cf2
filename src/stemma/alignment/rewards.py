"""Where rewards come from: a reward model, or any Python function.

    def reward(episodes: Sequence[Episode]) -> Sequence[float]

A function is named "module:function", its module being found as by `import`, the working directory included, or
"file.py:function".
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from stemma.alignment.conversations import Prompt
from stemma.alignment.reading import Sample
from stemma.errors import InputError, closest


@dataclass(frozen=True)
class Episode:
    """A prompt and the response to it, to be judged.

    Args:
        prompt: as it stands in its file, a text or a list of messages. response: text, without what ended it.
        ended: whether the policy ended it.
        row: what else stands beside the prompt in its file: an answer to check against, for instance.
        sample: token ids; those of the response with what ended it.
    """

    prompt: Prompt
    response: str
    ended: bool = True
    row: Mapping[str, Any] = field(default_factory=dict)
    sample: Sample = Sample((), ())


Reward = Callable[[Sequence[Episode]], Sequence[float]]


def exact_answer(episodes: Sequence[Episode]) -> list[float]:
    """Return 1 for a response that is the row's "answer", blanks round it apart, else 0.

    Raises:
        InputError: a row without an "answer".
    """
    if any("answer" not in episode.row for episode in episodes):
        raise InputError("reward exact_answer: the prompts' file has a row without an 'answer'")
    return [float(episode.response.strip() == str(episode.row["answer"]).strip()) for episode in episodes]


def is_function(name: str) -> bool:
    """Return whether a name has the form of a function's, "module:function"."""
    module, colon, function = name.partition(":")
    return bool(colon) and function.isidentifier() and bool(module) and not module.startswith("hf")


def load_function(name: str) -> Reward:
    """Return the function called "module:function" or "file.py:function".

    Raises:
        InputError: it is not there.
    """
    module_name, _, function = name.partition(":")
    module = _module(module_name)
    found = getattr(module, function, None)
    if not callable(found):
        names = [own for own, value in vars(module).items() if callable(value) and not own.startswith("_")]
        raise InputError(f"reward {name}: no function '{function}' in {module_name}{closest(function, names)}")
    return found


def scores_of(reward: Reward, episodes: Sequence[Episode]) -> Tensor:
    """Return the reward of each episode, float32 [episodes].

    Raises:
        InputError: the function did not return one finite number for each.
    """
    given = list(reward(episodes))
    if len(given) != len(episodes):
        raise InputError(f"the reward function returned {len(given)} numbers for {len(episodes)} episodes")
    try:
        scores = torch.tensor([float(score) for score in given])
    except (TypeError, ValueError) as error:
        raise InputError(f"the reward function returned something that is no number: {error}") from error
    if not bool(scores.isfinite().all()):
        worst = int((~scores.isfinite()).nonzero()[0])
        raise InputError(f"the reward of episode {worst + 1} is {float(scores[worst])}, expected a finite number")
    return scores


def without_end(scores: Tensor, ended: Tensor, *, score: float | None, penalty: float | None) -> Tensor:
    """Return scores, float [responses], in which responses that did not end are punished, so that the policy ends them.

    Args:
        ended: bool [responses]. score: what they become (Ziegler et al. 2019); default -1, unless there is a penalty.
        penalty: what is taken off them.
    """
    if penalty is not None:
        return torch.where(ended, scores, scores - penalty)
    return scores.where(ended, torch.full_like(scores, -1.0 if score is None else score))


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise InputError(f"reward {name}: no such file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not name.startswith(error.name):
            raise
        raise InputError(f"reward: no module '{name}'; expected module:function or file.py:function") from error
