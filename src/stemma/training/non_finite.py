"""The report on a loss or a gradient that is not finite."""

import math
from collections.abc import Sequence

from torch import nn

from stemma.training.distributed import full_tensor

SHOWN = 5


def non_finite_report(
    model: nn.Module, *, step: int, loss: float, norm: float, learning_rate: float, samples: Sequence[int]
) -> str:
    """Say in one line what was not finite, where the gradient is worst, and which samples were seen.

    Args:
        step: number of the update, from 1. samples: numbers of the samples of the update.
    """
    worst = ", ".join(f"{name} {value:.3g}" for name, value in gradient_norms(model)[:SHOWN]) or "none"
    return (
        f"update {step:,} not made: loss {loss:.4g}, gradient norm {norm:.4g}, learning rate {learning_rate:.3g}; "
        f"worst gradients: {worst}; samples {samples[0]:,} to {samples[-1]:,}"
    )


def gradient_norms(model: nn.Module) -> list[tuple[str, float]]:
    """Return the norm of every parameter's gradient, those that are not finite first, then from large to small."""
    norms = [
        (name, float(full_tensor(parameter.grad).float().norm()))
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    ]
    return sorted(norms, key=lambda item: (math.isfinite(item[1]), -item[1] if math.isfinite(item[1]) else 0.0))
