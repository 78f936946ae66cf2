"""In which order examples are trained on: shuffled anew each epoch, next to others of about their length."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

_POOL = 50  # batches within which examples are sorted by length


class ShuffledByLength:
    """Examples by number, epoch after epoch, so that consecutive `batch` of them need little padding.

    Every epoch has its own order, a function of seed and epoch. In pools of at most 50 batches (or the epoch) examples
    are sorted by length and cut into batches, and the batches are shuffled.

    Args:
        lengths: of the examples in tokens. fingerprint: a hash of the examples.
    """

    def __init__(
        self, examples: Sequence[Any], lengths: Sequence[int], batch: int, seed: int, fingerprint: str = ""
    ) -> None:
        self.examples, self.batch, self.seed, self.fingerprint = examples, batch, seed, fingerprint
        self._lengths = np.asarray(lengths)
        # A multiple of the batch, since the batches are cut at multiples of it through all epochs.
        self._pool = batch * max(1, min(_POOL, len(examples) // batch))
        self._places = lru_cache(maxsize=2)(self._place)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self.examples)

    def sequence(self, index: int) -> Any:
        """Return the example that is number `index` of the run."""
        return self.examples[self.number(index)]

    def number(self, index: int) -> int:
        """Return which example that is."""
        return int(self._places(index // self._pool)[index % self._pool])

    def _place(self, pool: int) -> np.ndarray:
        first, count = pool * self._pool, len(self.examples)
        numbers = np.array([self._order(i // count)[i % count] for i in range(first, first + self._pool)])
        numbers = numbers[np.argsort(self._lengths[numbers], kind="stable")].reshape(-1, self.batch)
        return np.random.default_rng([self.seed, 1, pool]).permutation(numbers).ravel()

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.examples))
