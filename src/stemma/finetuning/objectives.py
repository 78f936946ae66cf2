"""Which objective a task has, in the formulation of its model's family."""

from typing import Any

from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.glm.model import GLM
from stemma.families.gpt.model import GPT
from stemma.families.t5.model import T5
from stemma.finetuning.checkpoint import TaskDescription
from stemma.finetuning.classification import HeadClassification
from stemma.finetuning.cloze import ClozeClassification
from stemma.finetuning.reading import reader_of
from stemma.finetuning.recipe import TaskRecipe
from stemma.finetuning.tagging import Tagging
from stemma.finetuning.text_labels import TextClassification


def formulation_of(model: Any, task: TaskRecipe) -> str:
    """Return the formulation of a task, the family's own where the recipe leaves it open.

    Raises:
        InputError: the family has no such formulation.
    """
    own = "text" if isinstance(model, T5) else "cloze" if isinstance(model, GLM) else "head"
    if task.kind in ("regression", "tagging"):
        own = "head"
    wanted = own if task.formulation == "auto" else task.formulation
    if wanted not in ("head", own):
        expected = own if own == "head" else f"head or {own}"
        raise InputError(
            f"task.formulation: a {type(model).__name__} has no '{wanted}' for {task.kind}, expected {expected}"
        )
    return wanted


def objective_of(model: Any, tokenizer: Tokenizer, task: TaskDescription, *, language_model: float = 0.0) -> Any:
    """Return the objective of a task; `model` is the backbone."""
    if task.formulation == "head":
        return _of_head(model, tokenizer, task, language_model if isinstance(model, GPT) else 0.0)
    kind: Any = TextClassification if task.formulation == "text" else ClozeClassification
    return kind.of(tokenizer, task.words, task.longest, pattern=task.pattern, pair=task.pair)


def _of_head(model: Any, tokenizer: Tokenizer, task: TaskDescription, language_model: float) -> Any:
    reader, causal = reader_of(model, tokenizer, task.longest), isinstance(model, GPT)
    if task.kind == "tagging":
        return Tagging(reader, language_model, "last" if causal else "first")
    similarity = task.kind == "regression" and task.pair and causal
    return HeadClassification(reader, language_model, len(task.label_names), similarity)
