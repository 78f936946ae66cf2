"""What the trainer asks of an objective, of the data and of a reporter, and nothing else."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class Objective(Protocol):
    """From raw tokens to a training example to a loss.

    An objective whose examples differ in shape also has `collate(examples) -> dict of tensors`; without it the arrays
    are stacked. One that reads other stretches of text than packed tokens has `sequences(split, length, seed, batch)`,
    which returns `Sequences`, with a `fingerprint`, of what its `example` takes; one that says `reads_pairs` is given
    pairs of texts there (`data.parallel_corpora.ParallelSplit`). One whose rows go on from update to update has
    `carried`, a dictionary of what they carry, tensors that are saved with the training: its updates are of one size,
    and one process makes them.
    """

    def example(self, tokens: Any, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Turn a stretch of text into one training example; all randomness comes from `rng`."""
        ...

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return what the loss is divided by: `targets`, and whatever other parts it has."""
        ...

    def loss(
        self, model: Any, batch: Batch, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Return this batch's share of the loss of a step with these `totals`, and sums to report.

        The sums hold `targets`, and `nll` in nats over them; any others are reported per target, or, one with a name
        like "accuracy/pairs", per pair, if there is a sum `pairs`.
        """
        ...


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Return what an objective reports beside its likelihood as means: over the targets, or over what a name says."""
    units = {name: name.partition("/")[2] or "targets" for name in sums}
    extra = sums.keys() - {"nll", *units.values()}
    return {name.partition("/")[0]: sums[name] / max(sums.get(units[name], 0), 1) for name in sorted(extra)}


class Sequences(Protocol):
    """Training data by number: the same number always gives the same sequence, epoch after epoch.

    If they are not of one length, they may have `rate(step)`, which the learning rate of an update is multiplied by.
    """

    def __len__(self) -> int:
        """Return the number of sequences of one epoch."""
        ...

    def sequence(self, index: int) -> Any:
        """Return sequence `index`, counted on through the epochs."""
        ...


@dataclass(frozen=True)
class HeldOut:
    """Text that is never trained on.

    Args:
        batches: starts a new pass over it. bytes: UTF-8 bytes of the text that a pass scores; None: bits per byte
            mean nothing for this objective.
    """

    batches: Callable[[], Iterator[Batch]]
    bytes: int | None


@dataclass(frozen=True)
class Measurement:
    """What a fine-tuned model reaches on held-out examples.

    Args:
        loss: mean of the objective's loss. examples: how many. metrics: by name. score: the one that decides which
            weights are best; higher is better; None: the loss decides.
    """

    loss: float
    examples: int
    metrics: Mapping[str, float]
    score: float | None


@dataclass(frozen=True)
class Measured:
    """Held-out examples that are not scored by their likelihood alone: `measure(model)` of a model in eval mode."""

    measure: Callable[[Any], Measurement]


class LossModule(nn.Module):
    """Model and objective as one module, so that all of a step happens inside one `forward` (sharding needs that)."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self, batch: Batch, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Return the objective's loss and its sums to report."""
        return self.objective.loss(self.model, batch, totals)


class Display(Protocol):
    """Shows a person how the training goes."""

    def preparing(self) -> AbstractContextManager[Callable[[str, int, int], None]]:
        """Show what the block prepares: it calls with a stage, and what of it is done and to do (0: unknown)."""
        ...

    def running(self, step: int, steps: int) -> AbstractContextManager[None]:
        """Show the progress while the block runs, from update `step` of `steps`."""
        ...

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show the state after an update."""
        ...

    def say(self, message: str) -> None:
        """Show one line."""
        ...
