"""Classification taught by fine-tuned teachers: soft targets beside the labels (Hinton et al. 2015, section 2).

The teachers read the training texts once, each in its own way and with its own tokenizer; the student may be of any
family and formulation.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.data.readers import check_unicode, missing_field
from stemma.data.tables import read_rows
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError, closest
from stemma.finetuning.checkpoint import TaskDescription, load_finetuned
from stemma.finetuning.heads import WithHead
from stemma.finetuning.measuring import scores_of
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.recipe import DataRecipe, SoftTargetRecipe
from stemma.layers.ensembles import soft_targets
from stemma.layers.soft_targets import soft_target_loss, with_hard_targets


@dataclass(frozen=True)
class SoftTargets:
    """The loss of the labels mixed with that of the teachers' probabilities, the mean over examples.

    Args:
        task: the objective of the task itself, which scores the classes. weight: of the soft targets, 0 to 1; examples
            without a label learn from them alone, at that weight. temperature: of teachers and student.
    """

    task: Any
    weight: float
    temperature: float

    def example(self, tokens: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the example as it is."""
        return tokens

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the task's batch, with `soft`, float32 [batch, classes], and `labelled`, bool [batch]."""
        return {
            **self.task.collate(examples),
            "soft": torch.stack([example["soft"] for example in examples]),
            "labelled": torch.tensor([example["labelled"] for example in examples]),
        }

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the number of examples."""
        return {"targets": len(batch["labels"])}

    def loss(
        self, model: Any, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the step's loss, and sums to report."""
        counts, smoothing = self.counts(batch), self.task.label_smoothing if model.training else 0.0
        scores = self.task.scores(model, batch).float()
        soft = soft_target_loss(scores, batch["soft"], self.temperature)
        hard = F.cross_entropy(scores, batch["labels"], reduction="none", label_smoothing=smoothing)
        hard = hard * batch["labelled"]
        nll = with_hard_targets(hard, soft, self.weight).sum()
        sums: dict[str, Tensor | float] = {
            "nll": nll.detach(),
            "soft": soft.detach().sum(),
            "hard": hard.detach().sum(),
            **counts,
        }
        return nll / max((totals or counts)["targets"], 1), sums


def taught(
    recipe: SoftTargetRecipe, data: DataRecipe, train: LabelledData, objective: Any, tokenizer: Tokenizer
) -> tuple[SoftTargets, list[dict[str, Any]], str]:
    """Return the objective of a student, its examples with what the teachers think of them, and a hash of that.

    Args:
        train: labelled examples. objective, tokenizer: of the student, for the task itself.
    Raises:
        InputError: a teacher of another task or of other classes; unlabelled texts that cannot be read.
    """
    extra = [] if recipe.unlabelled is None else read_texts(recipe.unlabelled, data)
    everything = LabelledData([*train.texts, *extra], [*train.labels, *[0] * len(extra)], train.label_names)
    logits = [teacher_scores(name, everything) for name in recipe.teachers]
    soft = soft_targets(logits, recipe.temperature, recipe.mean, recipe.weights)
    examples = objective.encode(everything, tokenizer)
    for number, (example, probabilities) in enumerate(zip(examples, soft, strict=True)):
        example["soft"], example["labelled"] = probabilities, number < len(train)
    content = hashlib.sha256(soft.numpy().tobytes()).hexdigest()
    return SoftTargets(objective, recipe.weight, recipe.temperature), examples, content


def teacher_scores(name: str, data: LabelledData) -> Tensor:
    """Return a teacher's logits, float32 [examples, classes], the classes in the order of the data's.

    Raises:
        InputError: no fine-tuned model there, or one of another task or other classes.
    """
    model, tokenizer, task = load_finetuned(name)
    _check_teacher(name, task, data)
    objective = objective_of(model.backbone if isinstance(model, WithHead) else model, tokenizer, task)
    order = [task.label_names.index(label) for label in data.label_names]
    known = LabelledData(data.texts, [0] * len(data), task.label_names)
    return scores_of(model, objective, objective.encode(known, tokenizer))[:, order]


def read_texts(path: str, columns: DataRecipe) -> list[tuple[str, ...]]:
    """Read texts, or pairs of texts, whatever other columns there are.

    Raises:
        InputError: a row without them, or no rows; names the place.
    """
    names = [columns.text] if columns.pair is None else [columns.text, columns.pair]
    texts = []
    for row, origin in read_rows(Path(path), header=columns.header, quotes=columns.quotes):
        for name in names:
            if name not in row:
                raise missing_field(name, row, origin)
            if not isinstance(row[name], str) or not row[name].strip():
                raise InputError(f"{origin}: field '{name}' is {str(row[name])[:40]!r}; expected a text in every row")
            check_unicode(row[name], origin)
        texts.append(tuple(row[name] for name in names))
    if not texts:
        raise InputError(f"{path}: no rows; expected at least one text")
    return texts


def _check_teacher(name: str, task: TaskDescription, data: LabelledData) -> None:
    if task.kind != "classification":
        raise InputError(f"distillation.teachers: {name} was fine-tuned for {task.kind}; expected classification")
    if task.pair != (len(data.texts[0]) > 1):
        reads = "pairs" if task.pair else "single texts"
        raise InputError(f"distillation.teachers: {name} reads {reads}, and the data has other texts")
    for label in data.label_names:
        if label not in task.label_names:
            hint = closest(label, task.label_names) or f", it knows {', '.join(task.label_names)}"
            raise InputError(f"distillation.teachers: {name} knows no class '{label}'{hint}")
    if len(task.label_names) > len(data.label_names):
        missing = next(label for label in task.label_names if label not in data.label_names)
        raise InputError(f"distillation.teachers: {name} knows a class '{missing}' that no training example has")
