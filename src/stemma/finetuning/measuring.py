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
    if hasattr(objective, "scores"):
        scores = scores_of(model, objective, examples)
        labels = torch.tensor(data.labels)
        loss, values = float(objective.losses(scores, labels).mean()), _of_scores(scores, data)
    else:
        loss, values = (
            mean_loss(model, objective, examples),
            objective.metrics(objective.predict(model, examples), data),
        )
    metric = metric or next(iter(values))
    if metric not in values:
        hint = closest(metric, values) or f", expected one of {', '.join(values)}"
        raise InputError(f"task.metric: no metric '{metric}' here{hint}")
    return Measurement(loss, len(data), values, values[metric])


def _of_scores(scores: Tensor, data: LabelledData) -> dict[str, float]:
    """Return the metrics by name of float32 [examples, outputs] scores."""
    if not data.label_names:
        from stemma.evaluation.regression import score_numbers

        return score_numbers(scores.squeeze(1).tolist(), data.labels)
    from stemma.evaluation.classification import score_classes

    return score_classes(scores.argmax(1).tolist(), data.labels, data.label_names)  # type: ignore[arg-type]
