"""What a fine-tuned model reaches on labelled examples, whatever the formulation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError, closest
from stemma.training.objective import Measurement


@torch.inference_mode()
def scores_of(model: Any, objective: Any, examples: Sequence[Any], batch: int = 64) -> Tensor:
    """Return an objective's scores of all examples in their order, float32 [examples, outputs] on the CPU.

    Batches are of about equal length; what an example gets does not depend on the others in its batch.

    Args:
        model: in eval mode.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda number: len(examples[number]["tokens"]))
    scores: list[Tensor] = []
    for start in range(0, len(order), batch):
        collated = objective.collate([examples[number] for number in order[start : start + batch]])
        scores.append(
            objective.scores(model, {name: value.to(device) for name, value in collated.items()}).float().cpu()
        )
    return torch.cat(scores)[torch.tensor(order).argsort()]


def measure(
    model: Any, objective: Any, examples: Sequence[Any], label_names: Sequence[str], metric: str | None = None
) -> Measurement:
    """Return the loss and the metrics of a model in eval mode.

    Args:
        label_names: of the classes; empty: a regression. metric: the one that decides; default: accuracy or Pearson's.
    Raises:
        InputError: no such metric.
    """
    scores = scores_of(model, objective, examples)
    labels = torch.tensor([_label(example) for example in examples])
    loss = float(objective.losses(scores, labels).mean())
    values = metrics_of(scores, labels, label_names)
    metric = metric or ("accuracy" if label_names else "pearson")
    if metric not in values:
        hint = closest(metric, values) or f", expected one of {', '.join(values)}"
        raise InputError(f"task.metric: no metric '{metric}' here{hint}")
    return Measurement(loss, len(examples), values, values[metric])


def metrics_of(scores: Tensor, labels: Tensor, label_names: Sequence[str]) -> Mapping[str, float]:
    """Return the metrics by name of float32 [examples, outputs] scores."""
    if not label_names:
        from stemma.evaluation.regression import score_numbers

        return score_numbers(scores.squeeze(1).tolist(), labels.tolist())
    from stemma.evaluation.classification import score_classes

    return score_classes(scores.argmax(1).tolist(), labels.tolist(), label_names)


def _label(example: Mapping[str, Any]) -> Any:
    label = example["label"]
    return label.item() if isinstance(label, np.generic | np.ndarray) else label
