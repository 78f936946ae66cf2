"""Held-out text in stretches of one length, always the same, for objectives that make examples of stretches."""

from collections.abc import Iterator

import numpy as np

from stemma.data.tokenized_corpus import TokenizedSplit


def stretches(split: TokenizedSplit, length: int, *, least: int = 1) -> Iterator[np.ndarray]:
    """Cut the documents of a split, one behind the other with their separators, into int64 [length].

    The last one may be shorter; it is left out if it has fewer than `least` tokens.
    """
    waiting = np.zeros(0, np.int64)
    for index in range(split.documents):
        start, stop = split.bounds(index)
        while start < stop:
            taken = min(stop - start, length - len(waiting))
            waiting = np.concatenate([waiting, split.tokens.read(start, start + taken).astype(np.int64)])
            start += taken
            if len(waiting) == length:
                yield waiting
                waiting = waiting[:0]
    if len(waiting) >= least:
        yield waiting
