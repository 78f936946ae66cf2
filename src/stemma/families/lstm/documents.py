"""Documents as an LSTM reads them: whole, however long, or in pieces."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stemma.data.collation import batches_by_length
from stemma.errors import InputError

if TYPE_CHECKING:
    from stemma.data.tokenized_corpus import TokenizedSplit


def documents_by_length(split: "TokenizedSplit", batch_tokens: int) -> Iterator[list[np.ndarray]]:
    """Yield lists of documents, int64 [tokens] with the separator first, of about equal length.

    Args:
        batch_tokens: most tokens of a list, padding included, unless one document alone has more.
    """
    bounds = [split.bounds(index) for index in range(split.documents)]
    bounds = [(start, stop) for start, stop in bounds if stop - start > 1]  # of an empty one nothing is predicted
    for numbers in batches_by_length([stop - start for start, stop in bounds], batch_tokens):
        yield [split.tokens.read(*bounds[number]).astype(np.int64) for number in numbers]


class Pieces(Sequence[np.ndarray]):
    """The documents of a split without their separators, cut into pieces of at most `length` tokens: int64 [tokens].

    Raises InputError if there are none.
    """

    def __init__(self, split: "TokenizedSplit", length: int) -> None:
        self._tokens = split.tokens
        bounds = np.array([split.bounds(index) for index in range(split.documents)], np.int64).reshape(-1, 2)
        sizes = bounds[:, 1] - bounds[:, 0] - 1
        counts = -(-sizes // length)
        if not counts.sum():
            raise InputError("the corpus has no text to train on")
        document = np.repeat(np.arange(len(sizes)), counts)
        place = (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
        self._starts = bounds[document, 0] + 1 + place
        self.sizes = np.minimum(sizes[document] - place, length)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        start = int(self._starts[index])
        return self._tokens.read(start, start + int(self.sizes[index])).astype(np.int64)
