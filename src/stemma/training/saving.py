"""Writing checkpoints and published weights during a run: the main worker writes, all of them gather."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.training.averaging import WeightAverage
from stemma.training.distributed import Workers, full_tensor
from stemma.training.state import prune_states, save_state, training_tensors

Publish = Callable[[Mapping[str, Tensor], Path], None]
STATES, BEST = "training_state", "best"


class Saver:
    """Writes into a run's directory.

    Args:
        publish: writes the given weights, by parameter name, as a checkpoint directory; called on the main worker.
        keep: how many checkpoints stay on disk. say: shows a line to the user.
    """

    def __init__(
        self, directory: Path, publish: Publish, workers: Workers, *, keep: int, say: Callable[[str], None]
    ) -> None:
        self.directory, self._publish, self.workers, self.keep, self.say = directory, publish, workers, keep, say

    def write_state(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        carried: Mapping[str, Tensor],
        record: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint, then delete those beyond the limit.

        Raises:
            OSError: it could not be written; the earlier ones are untouched.
        """
        tensors = {}
        for name, tensor in training_tensors(model, optimizer, average.tensors if average else {}, carried):
            if self.workers.main:
                tensors[name] = tensor.detach().cpu().contiguous()
        if self.workers.main:
            save_state(self.directory / STATES, step, tensors, record)
            prune_states(self.directory / STATES, self.keep)

    def publish(self, weights: Mapping[str, Tensor], *, best: bool = False) -> None:
        """Write weights, by parameter name, as a checkpoint directory.

        Raises:
            OSError: they could not be written; the earlier ones are untouched.
        """
        whole = {}
        for name, tensor in weights.items():
            gathered = full_tensor(tensor.detach())
            if self.workers.main:
                whole[name] = gathered
        if self.workers.main:
            self._publish(whole, self.directory / BEST if best else self.directory)

    def attempt(self, write: Callable[[], None], what: str) -> bool:
        """Write something that a run can go on without; say so if it fails."""
        try:
            write()
        except (OSError, InputError) as error:
            self.say(f"could not write {what}, going on without: {error}")
            return False
        return True


@contextmanager
def holding(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model other values of its parameters (averages of them, say) while the block runs."""
    own = dict(model.named_parameters())
    before = {name: own[name].data for name in weights}
    for name, value in weights.items():
        own[name].data = value
    try:
        yield
    finally:
        for name, value in before.items():
            own[name].data = value
