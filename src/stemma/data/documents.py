"""Documents as a stream of pieces, so that no document, however long, has to fit in memory."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Characters. Small enough that a tokenizer, which needs some 50 bytes a character while it works, stays small, and
# that a batch of pieces feeds many cores; large enough that nearly every document is one piece.
PIECE = 1 << 16


class Piece(NamedTuple):
    """A document, or the next part of a long one; the pieces of a document joined are its text."""

    text: str
    starts: bool
    """Whether this piece begins a document."""
    origin: str
    """Where it was read: a file, with the line or row on which the document begins."""


def whole(chunks: Iterable[str], origin: str) -> Iterator[Piece]:
    """One document: all the text; none if it is white space only."""
    rest, starts = "", True
    for chunk in chunks:
        *complete, rest = _parts(rest + chunk)
        for text in complete:
            yield Piece(text, starts, origin)
            starts = False
    if rest and not _blank(rest, starts):
        yield Piece(rest, starts, origin)


def by_line(chunks: Iterable[str], origin: str) -> Iterator[Piece]:
    """A document a line, without its line end; blank lines are none."""
    for text, starts, number in _cut_lines(chunks):
        text = text.removesuffix("\r")
        if text and not _blank(text, starts):
            yield Piece(text, starts, f"{origin}, line {number}")


def by_paragraph(chunks: Iterable[str], origin: str) -> Iterator[Piece]:
    """A document a run of lines that are not blank, without the last line end."""
    rest, starts, first = "", True, 1
    for text, line_starts, number in _cut_lines(chunks):
        if _blank(text, line_starts):
            if rest:
                yield Piece(rest, starts, f"{origin}, line {first}")
            rest, starts = "", True
            continue
        if rest == "":
            first = number
        elif line_starts:
            rest += "\n"
        rest += text
        if len(rest) > PIECE:
            *complete, rest = _parts(rest)
            for part in complete:
                yield Piece(part, starts, f"{origin}, line {first}")
                starts = False
    if rest:
        yield Piece(rest, starts, f"{origin}, line {first}")


SPLITTERS = {"file": whole, "paragraph": by_paragraph, "line": by_line}


def lines(chunks: Iterable[str]) -> Iterator[str]:
    """Yield whole lines without their "\\n"."""
    rest = ""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split("\n")
        yield from complete
    if rest:
        yield rest


def _cut_lines(chunks: Iterable[str]) -> Iterator[tuple[str, bool, int]]:
    """Yield (text, whether it begins a line, line number from 1): lines without "\\n", in parts where very long."""
    rest, starts, number = "", True, 1
    for chunk in chunks:
        *complete, rest = (rest + chunk).split("\n")
        for line in complete:
            for part in _parts(line):
                yield part, starts, number
                starts = False
            starts, number = True, number + 1
        *complete, rest = _parts(rest)
        for part in complete:
            yield part, starts, number
            starts = False
    if rest:
        yield rest, starts, number


def _parts(text: str) -> list[str]:
    """Cut a text into parts of at most PIECE characters.

    Parts depend on the text alone, not on how it arrives: cutting what has come so far and then the last part with
    what follows gives the same as cutting everything at once.
    """
    parts, start = [], 0
    while len(text) - start > PIECE:
        cut = _clean_cut(text, start)
        parts.append(text[start:cut])
        start = cut
    parts.append(text[start:])
    return parts


def _clean_cut(text: str, start: int) -> int:
    """Where to end the part that begins at `start`: in its last half, at a line end or else before a space.

    Only where no other white space touches it: there a byte-level tokenizer gives the same tokens for the two parts
    as for the whole. Failing that, after PIECE characters. Looks no further than one character beyond those.
    """
    for mark, offset in ("\n", 1), (" ", 0):
        end = start + PIECE
        while (found := text.rfind(mark, start + PIECE // 2, end)) >= 0:
            if not text[found - 1].isspace() and not text[found + 1].isspace():
                return found + offset
            end = found
    return start + PIECE


def _blank(text: str, starts: bool) -> bool:
    """Whether this is a blank line or document; the first part of a long one (over half a piece) never is."""
    return starts and len(text) < PIECE // 2 and not text.strip()
