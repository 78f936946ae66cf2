"""How often one model's responses are preferred to another's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stemma.alignment.judges import Judge, judge_by_endpoint, judge_by_reward
from stemma.alignment.prompts import read_prompts
from stemma.alignment.rewards import Episode, Reward, is_function, load_function
from stemma.alignment.rollouts import LoadedPolicy
from stemma.alignment.score import Scorer
from stemma.errors import InputError
from stemma.evaluation.intervals import Interval, over_examples

RESPONSE = "response"  # the column of demonstrations


@dataclass(frozen=True)
class Preference:
    """How two models compare.

    Args:
        win_rate: share of the prompts where the first one's response is better, an even one counted half; with its
            95 % interval over the prompts. wins, ties, losses: of the first one. consistent: share of the pairs that
            the judge judged alike in both orders. words: mean words of a response, of each.
        longer_wins: share of the decided pairs of unequal length that the longer response won; None: there are none.
    """

    win_rate: Interval
    wins: int
    ties: int
    losses: int
    consistent: float
    words: tuple[float, float]
    longer_wins: float | None

    @property
    def prompts(self) -> int:
        """How many prompts there were."""
        return self.wins + self.ties + self.losses


def prefer(first: Sequence[Episode], second: Sequence[Episode], judge: Judge) -> Preference:
    """Judge two models' responses to the same prompts."""
    pairs = list(zip(first, second, strict=True))
    verdicts = judge(pairs)
    wins = verdicts.wins
    lengths = np.array([[len(episode.response.split()) for episode in pair] for pair in pairs])
    decided = (wins != 0.5) & (lengths[:, 0] != lengths[:, 1])
    longer = (lengths[:, 0] > lengths[:, 1]) == (wins == 1)
    return Preference(
        over_examples(wins.tolist()),
        int((wins == 1).sum()),
        int((wins == 0.5).sum()),
        int((wins == 0).sum()),
        float(verdicts.consistent.mean()),
        (float(lengths[:, 0].mean()), float(lengths[:, 1].mean())),
        float(longer[decided].mean()) if decided.any() else None,
    )


def writer_of(
    model: str,
    prompts: str,
    *,
    longest: int,
    temperature: float,
    seed: int = 1,
    most: int | None = None,
    device: torch.device | None = None,
) -> Callable[[], list[Episode]]:
    """Return what writes a model's responses to the prompts of a file; `model` "response": that column's own.

    Raises:
        InputError: a model or a file that cannot be used.
    """
    rows = read_prompts(prompts)[:most]
    if model == RESPONSE:
        texts = [row.row.get(RESPONSE) for row in rows]
        missing = next((number for number, text in enumerate(texts, 1) if not isinstance(text, str)), None)
        if missing is not None:
            raise InputError(f"{prompts}: row {missing} has no '{RESPONSE}' to compare with; name another model")
        return lambda: [Episode(row.prompt, str(text), True, row.row) for row, text in zip(rows, texts, strict=True)]
    policy = LoadedPolicy(model, device)

    def write() -> list[Episode]:
        found = policy.write(rows, longest=longest, seed=seed, temperature=temperature)
        return [Episode(row.prompt, one.text, one.ended, row.row) for row, (one,) in zip(rows, found, strict=True)]

    return write


def judge_of(judge: str, model: str | None, device: torch.device | None = None) -> Judge:
    """Return the judge of a name: an endpoint ("http..."), a function ("module:function"), or a reward model.

    Args:
        model: of an endpoint, what it is called there.
    Raises:
        InputError: there is no such judge.
    """
    if judge.startswith(("http://", "https://")):
        if model is None:
            raise InputError(f"--judge {judge}: which model of the endpoint? Expected --judge-model too")
        return judge_by_endpoint(judge, model)
    return judge_by_reward(load_function(judge) if is_function(judge) else _reward_of_texts(judge, device))


def _reward_of_texts(directory: str, device: torch.device | None) -> Reward:
    """Return a reward model that reads texts by its own tokenizer, whoever wrote them."""
    scorer = Scorer(directory, device=device)
    return lambda episodes: scorer.score([(episode.prompt, episode.response) for episode in episodes])
