"""From a tokenised corpus to sequences of one length, without padding: cut for training, windows for scoring."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from stemma.data.content_hashes import digest
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.errors import InputError

IGNORED = -100  # the target where nothing is scored
# Rows of scoring windows kept back for more to fit in: with paragraphs of some 200 tokens in rows of 1,024 and batches
# of 8 that leaves 1 % of padding instead of 11 %.
OPEN_ROWS = 64


class PackedSequences:
    """Documents one after the other, cut into sequences of `length` tokens and shuffled; the way of GPT-2 and GPT-3.

    The stream is a ring: the last document is followed by the first (whose separator stands between them). Every
    epoch cuts it from another random place on, so that sequences do not begin at the same tokens again, and leaves
    out the fewer than `length` tokens that remain. Everything follows from (seed, index): nothing has to be saved to
    go on from an index, and the order is the same for any number of workers.

    Raises InputError if the corpus holds less than one sequence and the token after it.
    """

    def __init__(self, split: TokenizedSplit, length: int, seed: int) -> None:
        if len(split.tokens) < length + 1:
            raise InputError(
                f"the corpus is smaller than one sequence: {len(split.tokens):,} tokens to train on; "
                f"expected at least {length + 1:,} (the length {length:,} and one more to predict)"
            )
        self.split, self.length, self.seed = split, length, seed
        self.fingerprint = digest([split.fingerprint, str(length), str(seed)])
        self._epoch: tuple[int, int, np.ndarray] | None = None  # the last one used: number, first token, order

    def __len__(self) -> int:
        """Sequences in an epoch."""
        return len(self.split.tokens) // self.length

    def sequence(self, index: int) -> np.ndarray:
        """Return int64 [length + 1]: the inputs, and the last one's target; `index` runs on through the epochs."""
        epoch, position = divmod(index, len(self))
        first, order = self._order(epoch)
        total = len(self.split.tokens)
        start = (first + int(order[position]) * self.length) % total
        stop = start + self.length + 1
        tokens = self.split.tokens.read(start, min(stop, total)).astype(np.int64)
        if stop > total:
            tokens = np.concatenate([tokens, self.split.tokens.read(0, stop - total)])
        return tokens

    def _order(self, epoch: int) -> tuple[int, np.ndarray]:
        """Where an epoch's first cut is, and the order of its sequences."""
        if self._epoch is None or self._epoch[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            first = int(random.integers(len(self.split.tokens)))
            self._epoch = epoch, first, random.permutation(len(self))
        return self._epoch[1:]


def scoring_windows(
    split: TokenizedSplit, length: int, overlap: int, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches in which every token of every document is a target once, in a fixed order.

    A document longer than `length` is scored by a sliding window: every target after the first window has at least
    `overlap` tokens of its document before it (at least one in any case). Windows share rows where they fit;
    `document_ids` tells them apart. The separator is never a target, but the first token's context.

    A batch holds, all int64 [rows, length] with rows = `batch_size` (fewer in the last): `tokens`; `targets`, -100
    where nothing is scored; `document_ids`, counted from 0 in each row, the padding at its end having its own.
    """
    if length < 1 or not 0 <= overlap <= length:
        raise InputError(f"an overlap of {overlap} with windows of {length}; expected from 0 to the window's length")
    rows: list[_Row] = []
    for index in range(split.documents):
        for window in _windows(split, index, length, max(overlap, 1)):
            size = len(window[0])
            # Best fit: the row where the least room is left over.
            row = min((row for row in rows if row.room(length) >= size), key=lambda row: row.room(length), default=None)
            if row is None:
                if len(rows) == batch_size + OPEN_ROWS:
                    rows.sort(key=lambda row: row.room(length))
                    yield _batch(rows[:batch_size], length)
                    rows = rows[batch_size:]
                row = _Row()
                rows.append(row)
            row.add(*window)
    for start in range(0, len(rows), batch_size):
        yield _batch(rows[start : start + batch_size], length)


def _windows(split: TokenizedSplit, index: int, length: int, overlap: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (inputs, targets), int64 of equal length, over one document with its separator first."""
    first, end = split.bounds(index)
    scored = first + 1  # the tokens before this one have been targets; the separator needs not be
    while scored < end:
        start = max(first, scored - overlap)
        stop = min(start + length, end - 1)
        tokens = split.tokens.read(start, stop + 1).astype(np.int64)
        targets = tokens[1:].copy()
        targets[: scored - start - 1] = IGNORED
        yield tokens[:-1], targets
        scored = stop + 1


@dataclass
class _Row:
    windows: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    filled: int = 0

    def room(self, length: int) -> int:
        return length - self.filled

    def add(self, tokens: np.ndarray, targets: np.ndarray) -> None:
        self.windows.append((tokens, targets))
        self.filled += len(tokens)


def _batch(rows: list[_Row], length: int) -> dict[str, np.ndarray]:
    tokens = np.zeros((len(rows), length), np.int64)
    targets = np.full((len(rows), length), IGNORED, np.int64)
    document_ids = np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        start = 0
        for number, (window_tokens, window_targets) in enumerate(row.windows):
            stop = start + len(window_tokens)
            tokens[index, start:stop] = window_tokens
            targets[index, start:stop] = window_targets
            document_ids[index, start:stop] = number
            start = stop
        document_ids[index, start:] = len(row.windows)
    return {"tokens": tokens, "targets": targets, "document_ids": document_ids}
