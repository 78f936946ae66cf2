"""In which order examples are trained on: shuffled anew each epoch, next to others of about their length."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

_POOL = 50  # batches within which examples are sorted by length


class ShuffledByLength:
    """Examples by number, epoch after epoch, so that consecutive `batch` of them need little padding.

    Every epoch has its own order, a function of seed and epoch. In pools of at most 50 batches, none of which is in two
    epochs, examples are sorted by length and cut into batches, and the batches are shuffled. A batch that begins in one
    epoch may end in the next one.

    Args:
        lengths: of the examples in tokens. fingerprint: a hash of the examples.
    """

    def __init__(
        self, examples: Sequence[Any], lengths: Sequence[int], batch: int, seed: int, fingerprint: str = ""
    ) -> None:
        self.examples, self.batch, self.seed, self.fingerprint = examples, batch, seed, fingerprint
        self._lengths = np.asarray(lengths)
        self._places = lru_cache(maxsize=2)(self._place)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.examples)

    def sequence(self, index: int) -> Any:
        """Return the example that is number `index` of the run."""
        return self.examples[self.number(index)]

    def number(self, index: int) -> int:
        """Return which example that is."""
        start, stop = self._pool(index // self.batch)
        return int(self._places(start, stop)[index - start * self.batch])

    def _pool(self, number: int) -> tuple[int, int]:
        """Return the first batch of the pool that batch `number` is in, and the first after it."""
        epoch = number * self.batch // len(self)
        first, end = -(-epoch * len(self) // self.batch), -(-(epoch + 1) * len(self) // self.batch)
        pools = -(-(end - first) // _POOL)
        place = ((number - first + 1) * pools - 1) // (end - first)
        return first + place * (end - first) // pools, first + (place + 1) * (end - first) // pools

    def _place(self, start: int, stop: int) -> np.ndarray:
        count = len(self)
        numbers = np.array([self._order(i // count)[i % count] for i in range(start * self.batch, stop * self.batch)])
        numbers = numbers[np.argsort(self._lengths[numbers], kind="stable")].reshape(-1, self.batch)
        return np.random.default_rng([self.seed, 1, start]).permutation(numbers).ravel()

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.examples))
