"""Which text is held out from training: whole documents chosen by their content, or the tail of every document."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stemma.data.documents import Piece
from stemma.errors import InputError

# With fewer documents than this, holding out whole ones would take too much or too little.
FEW_DOCUMENTS = 20


@dataclass(frozen=True)
class Split:
    """How a corpus is divided. `tails` holds the length in characters of every document, or None to split by hash."""

    fraction: float
    tails: "array[int] | None" = None

    @property
    def description(self) -> str:
        """For the summary of a corpus."""
        if self.fraction == 0:
            return "no part of the text"
        if self.tails is None:
            return f"{100 * self.fraction:g} % of the documents, chosen by a hash of their content"
        return f"the last {100 * self.fraction:g} % of every document: there are too few to hold out whole ones"


def plan_split(pieces: Iterable[Piece], fraction: float, name: str = "the corpus") -> Split:
    """Look into a corpus to decide how to divide it.

    Documents go by the hash of their content if there are at least 20 and both sides get some; reading stops as soon
    as that is known. Otherwise the tail of every document is held out, which takes the length of all of them.

    Raises InputError, which gives the corpus's `name`, if nothing would be held out.
    """
    if fraction == 0:
        return Split(0.0)
    lengths = array("q")
    sides = set()
    for piece in pieces:
        if piece.starts:
            lengths.append(0)
            sides.add(is_held_out(piece.text, fraction))
            if len(lengths) >= FEW_DOCUMENTS and len(sides) == 2:
                return Split(fraction)
        lengths[-1] += len(piece.text)
    if lengths and not any(_tail(length, fraction) for length in lengths):
        raise InputError(
            f"{name}: nothing would be held out: a fraction of {fraction:g} is less than one character in each of the "
            f"{len(lengths):,} documents; expected a larger fraction"
        )
    return Split(fraction, lengths)


def divide(pieces: Iterable[Piece], split: Split) -> Iterator[tuple[bool, Piece]]:
    """Yield (whether it is held out, piece) for every piece, in order; a piece with the border inside becomes two."""
    if split.tails is not None:
        yield from _divide_tails(pieces, split.tails, split.fraction)
        return
    held_out = False
    for piece in pieces:
        if piece.starts:
            held_out = is_held_out(piece.text, split.fraction)
        yield held_out, piece


def is_held_out(text: str, fraction: float) -> bool:
    """Decide by the content alone; `text` is the first piece of a document, so that long ones need no second look."""
    value = hashlib.blake2b(text.encode(), digest_size=8, person=b"held out").digest()
    return int.from_bytes(value, "big") < fraction * 2.0**64


def _divide_tails(pieces: Iterable[Piece], lengths: "array[int]", fraction: float) -> Iterator[tuple[bool, Piece]]:
    document, remaining, tail, in_tail = -1, 0, 0, False
    for piece in pieces:
        if piece.starts:
            document += 1
            remaining, in_tail = lengths[document], False
            tail = _tail(remaining, fraction)
        remaining -= len(piece.text)
        if in_tail:
            yield True, piece
        elif remaining >= tail:
            yield False, piece
        else:
            border = _border(piece.text, len(piece.text) + remaining - tail, tail)
            if border > 0:
                yield False, piece._replace(text=piece.text[:border])
            yield True, piece._replace(text=piece.text[border:], starts=True)
            in_tail = True


def _tail(length: int, fraction: float) -> int:
    return int(length * fraction)


def _border(text: str, start: int, tail: int) -> int:
    """The first beginning of a line, else of a word, in the first tenth of the tail, else where the tail begins."""
    end = start + tail // 10
    for mark in "\n", " ":
        found = text.find(mark, start, end)
        if 0 <= found < len(text) - 1:
            return found + 1
    return start
