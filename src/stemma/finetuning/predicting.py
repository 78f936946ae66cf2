"""What a fine-tuned model says of further inputs.

predict("runs/finetune-bert/best", ["a good film", "a bad one"])     # ["positive", "negative"]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.finetuning.checkpoint import TaskDescription, load_finetuned
from stemma.finetuning.heads import WithHead
from stemma.finetuning.measuring import answers_of, scores_of
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.task_data import Examples


def predict(
    model: str | Path | tuple[Any, Tokenizer, TaskDescription], inputs: Sequence[Any], *, device: Any = None
) -> list[Any]:
    """Return the answer to each input.

    | task | an input | its answer |
    |---|---|---|
    | classification | a text, or two of a pair | the name of the class |
    | regression | a text, or two of a pair | a number |
    | tagging | the words of a sentence | a tag for each |
    | text | a source | the text written for it |
    | answering | a question and its context | the answer, "" for none |
    | choice | a question and a list of options, or the list alone | which one, counted from 0 |

    Args:
        model: a directory that `finetune` wrote, a Transformer's, or what `load_finetuned` returns.
    Raises:
        InputError: no fine-tuned model there, or an input of another kind (names its number).
    """
    network, tokenizer, task = load_finetuned(model, device=device) if isinstance(model, str | Path) else model
    if isinstance(inputs, str):
        raise InputError("predict: one text; expected a list of inputs")
    if not inputs:
        return []
    data = _as_data(inputs, task)
    backbone = network.backbone if isinstance(network, WithHead) else network
    objective = objective_of(backbone, tokenizer, task)
    examples = objective.encode(data, tokenizer)
    if task.kind in ("classification", "regression"):
        return named(answers_of(scores_of(network, objective, examples), task.label_names), task)
    return named(objective.predict(network, examples), task)


def named(answers: Sequence[Any], task: TaskDescription) -> list[Any]:
    """Return answers with the names of classes and tags instead of their indices."""
    names = task.label_names
    if task.kind == "classification":
        return [names[label] for label in answers]
    return [[names[tag] for tag in tags] for tags in answers] if task.kind == "tagging" else list(answers)


def _as_data(inputs: Sequence[Any], task: TaskDescription) -> LabelledData:
    """Return the inputs as examples, with labels that mean nothing."""
    if task.kind == "tagging":
        words = [_strings(one, number, "the words of a sentence") for number, one in enumerate(inputs, 1)]
        return Examples(words, [[0] * len(one) for one in words], task.label_names)
    if task.kind == "choice":
        asked = [("", one) if isinstance(one, list) else one for one in inputs]
        for number, one in enumerate(asked, 1):
            if not isinstance(one, Sequence) or len(one) != 2 or not isinstance(one[0], str) or len(one[1]) < 1:
                raise InputError(f"input {number}: {str(one)[:40]!r}; expected a question and a list of options")
        options = [_strings(one[1], number, "a list of options") for number, one in enumerate(asked, 1)]
        texts = [(one[0], *rest) for one, rest in zip(asked, options, strict=True)]
        return Examples(texts, [0] * len(texts), ())
    if task.kind == "answering":
        pairs = [_strings(one, number, "a question and its context") for number, one in enumerate(inputs, 1)]
        for number, one in enumerate(pairs, 1):
            if len(one) != 2:
                raise InputError(f"input {number}: {len(one)} texts; expected a question and its context")
        return Examples(pairs, [[] for _ in pairs], ())
    if task.kind == "text":
        sources = [_strings([one], number, "a text") for number, one in enumerate(inputs, 1)]
        return Examples(sources, [""] * len(sources), ())
    texts = [
        _strings([one] if isinstance(one, str) else one, number, "a pair of texts" if task.pair else "a text")
        for number, one in enumerate(inputs, 1)
    ]
    for number, one in enumerate(texts, 1):
        if len(one) != 1 + task.pair:
            expected = "two texts (it was fine-tuned on pairs)" if task.pair else "one text"
            raise InputError(f"input {number}: {len(one)} texts; expected {expected}")
    return LabelledData(texts, [0] * len(texts), task.label_names)


def _strings(one: Any, number: int, expected: str) -> tuple[str, ...]:
    if isinstance(one, str) or not isinstance(one, Sequence) or not all(isinstance(part, str) for part in one):
        raise InputError(f"input {number}: {str(one)[:40]!r}; expected {expected}")
    return tuple(one)
