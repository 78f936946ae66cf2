"""Batches by tokens: pairs of about one length, as many as fit (Vaswani et al. 2017, section 5.1)."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from stemma.data.collation import batches_by_length, cuts_by_length
from stemma.errors import InputError

if TYPE_CHECKING:
    from stemma.data.parallel_corpora import ParallelSplit

Pairs = list[tuple[np.ndarray, np.ndarray]]


class TokenBatches:
    """Training data of which each sequence is a batch of pairs, int64 source and target with their ends.

    All pairs are sorted by the longer of their two sides, those of one length in an order of each epoch's own, and cut
    into batches of at most `tokens` on either side, padding included; these come in an order of each epoch's own.

    Args:
        end: the token that ends source and target. longest: pairs with more tokens on a side, ends included, and those
            with an empty side, are left out; None: all are there.
    Raises:
        InputError: no pair is left.
    """

    def __init__(self, split: "ParallelSplit", tokens: int, seed: int, *, end: int, longest: int | None) -> None:
        self.split, self.tokens, self.seed, self.end = split, tokens, seed, end
        self.fingerprint = split.fingerprint
        sources, targets = split.sources.lengths + 1, split.targets.lengths + 1
        lengths = np.maximum(sources, targets)
        kept = np.ones(len(lengths), bool)
        if longest is not None:
            kept = (lengths <= longest) & (sources > 1) & (targets > 1)
        self._numbers = np.flatnonzero(kept)
        if not len(self._numbers):
            raise InputError(f"data.source: none of {len(lengths):,} pairs has 1 to {longest} tokens on both sides")
        self._lengths = lengths[self._numbers]
        self._cuts = cuts_by_length(np.sort(self._lengths), tokens)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def sequence(self, index: int) -> Pairs:
        """Return batch number `index` of the run."""
        epoch, place = divmod(index, len(self))
        numbers, batches = self._order(epoch)
        return self._pairs(numbers[self._cuts[batches[place]] : self._cuts[batches[place] + 1]])

    def by_length(self) -> Iterator[Pairs]:
        """Yield all batches once, the short pairs first."""
        for places in batches_by_length(self._lengths, self.tokens):
            yield self._pairs(self._numbers[places])

    def _pairs(self, numbers: np.ndarray) -> Pairs:
        split = self.split
        return [
            (np.append(split.sources[number], self.end), np.append(split.targets[number], self.end))
            for number in numbers.tolist()
        ]

    def _shuffled(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        shuffled = rng.permutation(len(self._numbers))
        order = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        return self._numbers[order], rng.permutation(len(self))
