"""The texts that BERT reads in training: pairs of sentences, or as many whole sentences as fit, by their number.

A passage is a function of (seed, index), as the sequences of `stemma.data.packing` are: nothing has to be saved to go
on from an index, and no more than a few thousand tokens of the corpus are read for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from stemma.data.content_hashes import digest
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.errors import InputError
from stemma.families.bert.tokens import LONGEST_SENTENCE, BERTTokens

# A document is divided into pieces of so many full examples, so that no example needs more of it than one.
_PIECE = 8


@dataclass(frozen=True, eq=False)
class Passage:
    """What stands in one row: `[CLS] A [SEP] B [SEP]`, `[CLS] A [SEP]`, or several such texts one after the other.

    Args:
        tokens, segments: int64 [length]; segments are 1 in B with its [SEP], else 0.
        starts: where each text begins that sees only itself.
        is_random: whether B comes from another document; None: that is not asked.
    """

    tokens: np.ndarray
    segments: np.ndarray
    starts: tuple[int, ...] = (0,)
    is_random: bool | None = None

    @classmethod
    def of(
        cls, tokens: BERTTokens, a: np.ndarray, b: np.ndarray | None = None, is_random: bool | None = None
    ) -> "Passage":
        """Put the special tokens round one text or two."""
        first, last = np.array([tokens.first]), np.array([tokens.last])
        joined = np.concatenate([first, a, last] if b is None else [first, a, last, b, last]).astype(np.int64)
        segments = np.zeros(len(joined), np.int64)
        segments[len(a) + 2 :] = 1
        return cls(joined, segments, is_random=is_random)


class PlannedPair(NamedTuple):
    """Where A stands in a document, and what follows it; B is as long as `wanted` at least if it is random."""

    start: int
    middle: int
    stop: int
    is_random: bool
    wanted: int


def plan_pairs(bounds: np.ndarray, most: int, short: float, rng: np.random.Generator) -> list[PlannedPair]:
    """Divide a document into pairs of sentences: `create_instances_from_document` of google-research/bert.

    Whole sentences are collected up to a target length, which is `most` or, for a share `short` of the documents,
    uniform in 2 .. `most`. A is a random number of them. With probability 1/2, and always if A is all of them, B will
    be random, and the sentences that it displaces are used again.

    Args:
        bounds: int [sentences + 1]: where the document's sentences begin, and its end.
    """
    target = int(rng.integers(2, most + 1)) if rng.random() < short else most
    edges = bounds.tolist()
    pairs = []
    first, last = 0, len(edges) - 1
    while first < last:
        end = first + 1
        while end < last and edges[end] - edges[first] < target:
            end += 1
        middle = int(rng.integers(first + 1, end)) if end - first > 1 else end
        is_random = middle == end or rng.random() < 0.5
        wanted = target - (edges[middle] - edges[first])
        pairs.append(PlannedPair(edges[first], edges[middle], edges[end], is_random, wanted))
        first = middle if is_random else end
    return pairs


def truncate_pair(a: np.ndarray, b: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Shorten the longer of two texts, token by token, until both together have `most`.

    Each token is taken from the front or the back with equal probability.
    """
    excess = len(a) + len(b) - most
    if excess <= 0:
        return a, b
    longer = min(excess, abs(len(a) - len(b)))  # of these the longer one alone loses, of the rest both, B first
    from_a = (longer if len(a) > len(b) else 0) + (excess - longer) // 2
    return _shortened(a, from_a, rng), _shortened(b, excess - from_a, rng)


class SentencePairs:
    """Pairs for next-sentence prediction (Devlin et al. 2018, section 3.1 and appendix A.2).

    An epoch has as many pairs as the documents have room for texts of the full length. A pass over a document gives
    about a third more, because the sentences that a random B displaces come again; each epoch takes a random part.

    Raises InputError if there are fewer than two documents with text: a random B comes from another one.
    """

    def __init__(self, split: TokenizedSplit, length: int, seed: int, tokens: BERTTokens, short: float = 0.1) -> None:
        self.split, self.seed, self.tokens, self.short = split, seed, tokens, short
        self.most = length - 3  # [CLS] A [SEP] B [SEP]
        if self.most < 2:
            raise InputError(f"training.length: {length} tokens hold no pair of sentences, expected at least 5")
        self.fingerprint = digest([split.fingerprint, tokens.fingerprint, "pairs", str((length, seed, short))])
        self._piece = _PIECE * self.most
        sizes = document_sizes(split)
        if np.count_nonzero(sizes) < 2:
            raise InputError(
                "next-sentence prediction takes wrong continuations from other documents, and the corpus has only one; "
                "divide it (data.documents: paragraph), or leave pairs out (objective.examples: full_sentences)"
            )
        pieces = -(-sizes // self._piece)
        self._first_pieces = np.cumsum(pieces) - pieces  # of each document
        slots = np.full(pieces.sum(), _PIECE)
        filled = pieces > 0
        rest = sizes - (pieces - 1) * self._piece  # tokens of a document's last piece
        slots[(self._first_pieces + pieces - 1)[filled]] = -(-rest[filled] // self.most)
        self._slot_ends = np.cumsum(slots)
        self._not_empty = np.flatnonzero(filled)
        self._planned = lru_cache(maxsize=4096)(self._plan)
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        """Pairs in an epoch."""
        return int(self._slot_ends[-1])

    def sequence(self, index: int) -> Passage:
        """Return pair `index`, counted on through the epochs."""
        epoch, position = divmod(index, len(self))
        slot = int(self._order(epoch)[position])
        piece = int(np.searchsorted(self._slot_ends, slot, side="right"))
        slots_before = int(self._slot_ends[piece - 1]) if piece else 0
        document, start, stop = self._place(piece)
        planned = self._planned(epoch, piece)[slot - slots_before]
        text = self.split.tokens.read(start, stop)
        rng = np.random.default_rng([self.seed, epoch, piece, slot])
        a, b = text[planned.start : planned.middle], text[planned.middle : planned.stop]
        if planned.is_random:
            b = self._random_text(document, planned.wanted, rng)
        a, b = truncate_pair(a, b, self.most, rng)
        return Passage.of(self.tokens, a, b, planned.is_random)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def _place(self, piece: int) -> tuple[int, int, int]:
        """Return a piece's document, and where its tokens begin and end."""
        # The last of the documents that begin with this piece: those before it have none.
        document = int(np.searchsorted(self._first_pieces, piece, side="right")) - 1
        start, end = self.split.bounds(document)
        start += 1 + (piece - int(self._first_pieces[document])) * self._piece
        return document, start, min(start + self._piece, end)

    def _plan(self, epoch: int, piece: int) -> list[PlannedPair]:
        """Return an epoch's pairs of a piece: a random part of one pass over it, of several where one gives too few."""
        _, start, stop = self._place(piece)
        bounds = self.tokens.sentences(self.split.tokens.read(start, stop))
        rng = np.random.default_rng([self.seed, epoch, piece])
        slots = int(self._slot_ends[piece] - (self._slot_ends[piece - 1] if piece else 0))
        chosen: list[PlannedPair] = []
        while len(chosen) < slots:
            pairs = plan_pairs(bounds, self.most, self.short, rng)
            chosen += [pairs[index] for index in rng.permutation(len(pairs))]
        return chosen[:slots]

    def _random_text(self, document: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
        """Return sentences from a random place of another document, `wanted` tokens or more unless it ends before."""
        number = int(rng.integers(len(self._not_empty) - 1))
        other = int(self._not_empty[number + (self._not_empty[number] >= document)])
        start, end = self.split.bounds(other)
        place = int(rng.integers(start + 1, end))
        begin = max(place - LONGEST_SENTENCE, start + 1)
        window = self.split.tokens.read(begin, min(place + max(wanted, 1) + LONGEST_SENTENCE, end))
        bounds = self.tokens.sentences(window)
        bounds = bounds[int(np.searchsorted(bounds[1:], place - begin, side="right")) :]  # from the sentence there on
        stops = bounds[1:]
        return window[bounds[0] : stops[min(int(np.searchsorted(stops - bounds[0], wanted)), len(stops) - 1)]]


class FullSentences:
    """Whole sentences up to the length, without pairs: FULL-SENTENCES of RoBERTa (Liu et al. 2019, section 4.2).

    The stream is cut every `length - 2` tokens from another random place in each epoch; a passage begins with the
    first sentence after its cut and ends with the last one that fits.

    Args:
        separate: every document in a passage gets a [CLS] and a [SEP] of its own and sees itself only. Otherwise, as
            in RoBERTa, a passage goes on in the next document after a [SEP].
    """

    def __init__(self, split: TokenizedSplit, length: int, seed: int, tokens: BERTTokens, separate: bool) -> None:
        self.split, self.seed, self.tokens, self.separate = split, seed, tokens, separate
        self.most = length - 2
        self.fingerprint = digest([split.fingerprint, tokens.fingerprint, "full", str((length, seed, separate))])
        if self.most < 1 or len(split.tokens) < self.most + LONGEST_SENTENCE:
            raise InputError(
                f"the corpus is smaller than one sequence: {len(split.tokens):,} tokens to train on; "
                f"expected at least {self.most + LONGEST_SENTENCE:,} (the length {length:,} and a sentence more)"
            )
        self._order = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        """Passages in an epoch."""
        return len(self.split.tokens) // self.most

    def sequence(self, index: int) -> Passage:
        """Return passage `index`, counted on through the epochs."""
        epoch, position = divmod(index, len(self))
        first, order = self._order(epoch)
        window = self._read((first + int(order[position]) * self.most) % len(self.split.tokens))
        return self._passage(window)

    def _passage(self, window: np.ndarray) -> Passage:
        bounds = self.tokens.sentences(window)
        inner = bounds[(bounds > 0) & (bounds <= LONGEST_SENTENCE)]
        window = window[inner[0] if len(inner) else 0 :]
        window = window[np.argmax(window != self.tokens.separator) :]
        separators = window == self.tokens.separator
        # A separator takes one place, as [SEP]; where the next document stands apart, its [CLS] takes another.
        cost = np.cumsum(np.where(separators & self.separate, 2, 1))
        fitting = int(np.searchsorted(cost, self.most, side="right"))
        whole = self.tokens.sentences(window[: fitting + 1])[1:-1]
        text = window[: whole[-1] if len(whole) else fitting]
        parts = np.split(text, np.flatnonzero(text == self.tokens.separator))
        parts = [part for part in (part[part != self.tokens.separator] for part in parts) if len(part)]
        if self.separate:
            texts = [Passage.of(self.tokens, part).tokens for part in parts]
            starts = np.cumsum([0, *map(len, texts[:-1])]).tolist()
            joined = np.concatenate(texts)
            return Passage(joined, np.zeros_like(joined), tuple(starts))
        between = np.array([self.tokens.last])
        text = np.concatenate([piece for part in parts for piece in (between, part)][1:])
        return Passage.of(self.tokens, text)

    def _read(self, start: int) -> np.ndarray:
        """Return a passage and a sentence of tokens; the last document is followed by the first."""
        tokens, stop = self.split.tokens, start + self.most + LONGEST_SENTENCE
        window = tokens.read(start, min(stop, len(tokens)))
        if stop > len(tokens):
            window = np.concatenate([window, tokens.read(0, stop - len(tokens))])
        return window.astype(np.int64)

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        random = np.random.default_rng([self.seed, epoch])
        return int(random.integers(len(self.split.tokens))), random.permutation(len(self))


def held_out_passages(split: TokenizedSplit, length: int, tokens: BERTTokens, pairs: bool) -> Iterator[list[Passage]]:
    """Yield the passages of each document: every token once, in whole sentences, nothing from other documents.

    Args:
        pairs: half of a passage's sentences are A, the others, which do follow, B.
    """
    most = length - (3 if pairs else 2)
    for index in range(split.documents):
        start, end = split.bounds(index)
        text = split.tokens.read(start + 1, end)
        bounds = tokens.sentences(text)
        first, passages = 0, []
        while bounds[first] < len(text):
            last = max(int(np.searchsorted(bounds, bounds[first] + most, side="right")) - 1, first + 1)
            stop = min(int(bounds[last]), int(bounds[first]) + most)
            middle = int(bounds[(first + last) // 2])
            if pairs and last - first > 1:
                passages.append(Passage.of(tokens, text[bounds[first] : middle], text[middle:stop]))
            else:
                passages.append(Passage.of(tokens, text[bounds[first] : stop]))
            if stop < bounds[last]:  # a sentence longer than a passage: its rest is one
                bounds[first] = stop
            else:
                first = last
        yield passages


def document_sizes(split: TokenizedSplit) -> np.ndarray:
    """Return int64 [documents]: tokens of each, without its separator."""
    return np.diff(np.asarray(split.document_starts), append=len(split.tokens)) - 1


def _shortened(text: np.ndarray, by: int, rng: np.random.Generator) -> np.ndarray:
    front = int(rng.binomial(by, 0.5))
    return text[front : len(text) - (by - front)]
