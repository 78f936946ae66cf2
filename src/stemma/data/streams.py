"""A corpus as rows that are read side by side, each going on where it ended: for models that carry a state."""

from dataclasses import dataclass

import numpy as np

from stemma.data.content_hashes import digest
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.errors import InputError

_DRAWN = 4096  # lengths that are drawn together
_HALVES = 0.05  # share of windows that are half as long (Merity et al. 2018, section 5)


@dataclass(frozen=True)
class Window:
    """What a row reads in one update: int64 [length + 1] `tokens`, the inputs and the last one's target; `row` of
    `rows`."""

    tokens: np.ndarray
    row: int
    rows: int


class Streams:
    """The documents one after the other, as a ring in which `rows` readers begin equally far apart and go on for ever.

    Window number index is that of row index % rows in update index // rows. Every run begins at another place of the
    ring, after its seed. Nothing has to be saved to go on from an index.

    Args:
        length: tokens of a window. deviation: how much it varies: in each update, the same for all rows, it is drawn
            from N(length, deviation), in one of twenty from N(length / 2, deviation), and at least 5 (Merity et al.
            2018, section 5: so that not always the same tokens are cut off from what is behind them).
    Raises InputError if the corpus holds less than one window for each row.
    """

    def __init__(self, split: TokenizedSplit, length: int, rows: int, seed: int, deviation: float = 0.0) -> None:
        if len(split.tokens) < rows * length + 1:
            raise InputError(
                f"the corpus is smaller than one update: {len(split.tokens):,} tokens to train on; expected at least "
                f"{rows * length + 1:,} ({rows} rows of {length:,} tokens and one more to predict)"
            )
        self.split, self.length, self.rows, self.seed, self.deviation = split, length, rows, seed, deviation
        self.fingerprint = digest([split.fingerprint, "streams", str((length, rows, seed, deviation))])
        self._first = int(np.random.default_rng([seed, 0]).integers(len(split.tokens)))
        self._edges = np.zeros(1, np.int64)  # where the windows drawn so far begin, and where the last one ends

    def __len__(self) -> int:
        """Windows in an epoch, up to rounding."""
        return len(self.split.tokens) // self.length

    def sequence(self, index: int) -> Window:
        """Return window `index`, counted on through the epochs."""
        update, row = divmod(index, self.rows)
        begin, end = self._bounds(update)
        total = len(self.split.tokens)
        place = (self._first + row * total // self.rows + begin) % total
        stop = place + end - begin + 1
        tokens = self.split.tokens.read(place, min(stop, total))
        if stop > total:
            tokens = np.concatenate([tokens, self.split.tokens.read(0, stop - total)])
        return Window(tokens.astype(np.int64), row, self.rows)

    def rate(self, update: int) -> float:
        """Return what an update's learning rate is multiplied by: the same step for each token, in windows of any
        length (Merity et al. 2018, section 5)."""
        begin, end = self._bounds(update)
        return (end - begin) / self.length

    def _bounds(self, update: int) -> tuple[int, int]:
        """Return where the windows of an update begin and end, counted from where their rows began."""
        if not self.deviation:
            return update * self.length, (update + 1) * self.length
        while len(self._edges) < update + 2:
            random = np.random.default_rng([self.seed, 1, len(self._edges)])
            means = np.where(random.random(_DRAWN) < _HALVES, self.length / 2, self.length)
            lengths = np.clip(random.normal(means, self.deviation).astype(np.int64), 5, len(self.split.tokens))
            self._edges = np.concatenate([self._edges, self._edges[-1] + np.cumsum(lengths)])
        return int(self._edges[update]), int(self._edges[update + 1])
