"""Running a model over examples: batches of about equal length, results in the order of the examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


@torch.inference_mode()
def in_batches(
    model: Any, objective: Any, examples: Sequence[Any], run: Callable[[Mapping[str, Tensor]], Any], batch: int = 64
) -> list[Any]:
    """Return what `run` gives for each example, in their order; it gives an item for each example of a batch.

    What an example gets does not depend on the others in its batch.

    Args:
        model: in eval mode. examples: as the objective's `encode` makes them.
    """
    results: list[Any] = [None] * len(examples)
    for numbers, collated in _batches(model, objective, examples, batch):
        for number, result in zip(numbers, run(collated), strict=True):
            results[number] = result
    return results


def mean_loss(model: Any, objective: Any, examples: Sequence[Any], batch: int = 64) -> float:
    """Return the objective's loss of a target, the mean over all examples."""
    return means_of_loss(model, objective, examples, batch)["nll"]


@torch.inference_mode()
def means_of_loss(model: Any, objective: Any, examples: Sequence[Any], batch: int = 64) -> dict[str, float]:
    """Return what the objective's loss reports (`nll` and others) of a target, the means over all examples."""
    totals: dict[str, float] = {"targets": 0.0}
    for _, collated in _batches(model, objective, examples, batch):
        for name, value in objective.loss(model, collated)[1].items():
            totals[name] = totals.get(name, 0.0) + float(value)
    targets = totals.pop("targets")
    return {name: total / max(targets, 1) for name, total in totals.items()}


def _batches(
    model: Any, objective: Any, examples: Sequence[Any], batch: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield the numbers of a batch's examples, and the batch on the model's device."""
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda number: len(examples[number]["tokens"]))
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        # What an objective draws (masks) depends on the number alone, so that it is the same each time.
        drawn = [objective.example(examples[number], np.random.default_rng([0, number])) for number in numbers]
        yield numbers, {name: value.to(device) for name, value in objective.collate(drawn).items()}
