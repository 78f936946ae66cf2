"""Averages of the weights: an exponential moving one, and the mean of the last checkpoints."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.training.distributed import like
from stemma.training.state import complete_states, open_tensors


class WeightAverage:
    """Weights averaged over the updates: average = decay * average + (1 - decay) * weights.

    The first updates use a smaller decay, (1 + updates) / (10 + updates), so that the average forgets the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = model
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the weights after update number `updates` (the first is 1)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, parameter in self.model.named_parameters():
            self.tensors[name].lerp_(parameter, 1 - decay)


def mean_of_checkpoints(folder: Path, count: int, model: nn.Module) -> dict[str, Tensor]:
    """Return the mean, in float32, of the weights in the newest `count` checkpoints in `folder`, by parameter name.

    Vaswani et al. 2017, section 6.1: 5 checkpoints for the base model, 20 for the big one. One is read at a time.

    Raises:
        InputError: no checkpoint, or one of another model.
    """
    states = complete_states(folder)[:count]
    if not states:
        raise InputError(f"{folder}: no checkpoint to take the mean of")
    means = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in model.named_parameters()}
    with torch.no_grad():
        for state in states:
            with open_tensors(state.path) as stored:
                for name, value in model.named_parameters():
                    means[name] += like(value, stored(f"model.{name}", value).float()) / len(states)
    return means


@contextmanager
def applied(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Run the block with `weights` as the model's; its own come back bit for bit."""
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _write(model, weights)
    try:
        yield
    finally:
        _write(model, kept)


@torch.no_grad()
def _write(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
