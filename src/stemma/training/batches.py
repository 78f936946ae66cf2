"""The batch of each update: a pure function of the seed and the update's number.

Sample number i of the run is sequence i of the data, seen through a generator seeded with (seed, i). Worker r takes the
samples of an update with i % workers == r. Resuming is a jump, and the number of workers does not change what is seen.
"""

import bisect
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.training.objective import Objective, Sequences
from stemma.training.recipe import RampRecipe


class Plan:
    """Which samples belong to which update.

    Args:
        batch: sequences per update. ramp: how the batch grows to that at the start.
    """

    def __init__(self, batch: int, ramp: RampRecipe | None = None) -> None:
        self.batch = batch
        growing = 0 if ramp is None else ramp.steps
        start = batch if ramp is None else ramp.start
        sizes = [start + (batch - start) * step // growing for step in range(growing)]
        self._firsts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    def first(self, step: int) -> int:
        """Return the number of samples before update `step`."""
        growing = len(self._firsts) - 1
        return int(self._firsts[min(step, growing)]) + max(step - growing, 0) * self.batch

    def samples(self, step: int, rank: int = 0, world: int = 1) -> range:
        """Return the samples of update `step` that worker `rank` takes."""
        first, end = self.first(step), self.first(step + 1)
        return range(first + (rank - first) % world, end, world)

    def steps_for(self, samples: float) -> int:
        """Return the number of updates that see at least so many samples."""
        growing = len(self._firsts) - 1
        most = growing + int(samples) // self.batch + 2
        return bisect.bisect_left(range(most), samples, key=self.first)


class Batches:
    """Builds the micro-batches of an update for one worker.

    Raises:
        InputError: an update has fewer sequences than there are workers.
    """

    def __init__(
        self,
        sequences: Sequences,
        objective: Objective,
        plan: Plan,
        *,
        seed: int,
        micro_batch: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.sequences, self.objective, self.plan, self.seed = sequences, objective, plan, seed
        self.micro_batch, self.rank, self.world = micro_batch, rank, world
        if len(plan.samples(0, world - 1, world)) == 0 or plan.batch < world:
            raise InputError(f"training.batch: {plan.batch} sequences cannot be shared by {world} workers")

    def rounds(self, step: int) -> int:
        """Return the number of forward passes of update `step` on the busiest worker."""
        size = self.plan.first(step + 1) - self.plan.first(step)
        share = -(-size // self.world)
        return -(-share // (self.micro_batch or share))

    def micro_batches(self, step: int) -> list[dict[str, Tensor]]:
        """Return this worker's micro-batches of update `step`, on the CPU."""
        samples = self.plan.samples(step, self.rank, self.world)
        size = self.micro_batch or len(samples)
        return [self._collated(samples[start : start + size]) for start in range(0, len(samples), size)]

    def _collated(self, samples: Sequence[int]) -> dict[str, Tensor]:
        examples = [
            self.objective.example(self.sequences.sequence(index), np.random.default_rng([self.seed, index]))
            for index in samples
        ]
        if hasattr(self.objective, "collate"):
            return dict(self.objective.collate(examples))
        return {name: torch.from_numpy(np.stack([example[name] for example in examples])) for name in examples[0]}


def derived_seed(*numbers: int) -> int:
    """Return a 63-bit seed that is a function of all the numbers (seed, step, rank)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
