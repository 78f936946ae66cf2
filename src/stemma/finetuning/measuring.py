"""What a fine-tuned model reaches on its task's examples, whatever the formulation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.errors import InputError, closest
from stemma.finetuning.in_batches import in_batches, mean_loss
from stemma.training.objective import Measurement


def scores_of(model: Any, objective: Any, examples: Sequence[Any], batch: int = 64) -> Tensor:
    """Return an objective's scores of all examples in their order, float32 [examples, outputs] on the CPU.

    Args:
        model: in eval mode.
    """

    def scores(collated: Mapping[str, Tensor]) -> Tensor:
        return objective.scores(model, collated).float().cpu()

    return torch.stack(in_batches(model, objective, examples, scores, batch))


def measure(
    model: Any, objective: Any, examples: Sequence[Any], data: LabelledData, metric: str | None = None
) -> Measurement:
    """Return the loss and the metrics of a model in eval mode.

    Args:
        examples: what the objective's `encode` made of `data`.
        metric: the one that decides; default: the first of the task's.
    Raises:
        InputError: no such metric.
    """
    return measure_answers(model, objective, examples, data, metric)[0]


def measure_answers(
    model: Any, objective: Any, examples: Sequence[Any], data: LabelledData, metric: str | None = None
) -> tuple[Measurement, list[Any]]:
    """Return what `measure` does, and the answers that were measured: classes and tags as indices."""
    if hasattr(objective, "scores"):
        scores = scores_of(model, objective, examples)
        labels = torch.tensor(data.labels)
        loss, answers = float(objective.losses(scores, labels).mean()), answers_of(scores, data.label_names)
        values = _metrics(answers, data)
    else:
        loss, answers = mean_loss(model, objective, examples), objective.predict(model, examples)
        values = objective.metrics(answers, data)
    metric = metric or next(iter(values))
    if metric not in values:
        hint = closest(metric, values) or f", expected one of {', '.join(values)}"
        raise InputError(f"task.metric: no metric '{metric}' here{hint}")
    return Measurement(loss, len(data), values, values[metric]), answers


def answers_of(scores: Tensor, label_names: Sequence[str]) -> list[Any]:
    """Return the class of each row of float [examples, outputs] as an index; without names the number itself."""
    return scores.argmax(1).tolist() if label_names else scores.squeeze(1).tolist()


def _metrics(answers: list[Any], data: LabelledData) -> dict[str, float]:
    """Return the metrics of classes, or of numbers, by name."""
    if not data.label_names:
        from stemma.evaluation.regression import score_numbers

        return score_numbers(answers, data.labels)
    from stemma.evaluation.classification import score_classes

    return score_classes(answers, data.labels, data.label_names)  # type: ignore[arg-type]


def majority(data: LabelledData) -> float | None:
    """Return the share of the most frequent label, which is the accuracy of a constant answer; None: no labels."""
    counts = data.label_counts.values()
    return max(counts) / sum(counts) if counts else None


def signatures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return by name how metrics of texts were counted, without which they say little; the same for any texts."""
    if "bleu" not in metrics:
        return {}
    from stemma.evaluation.texts import score_translations

    return score_translations(["text"], ["text"]).signatures
