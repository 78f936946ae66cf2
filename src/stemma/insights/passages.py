"""Held-out passages, and blanks in them: the same for every model."""

from collections.abc import Sequence

import numpy as np

from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.errors import InputError
from stemma.evaluation.blanks import Blank

_EDGE = 8  # tokens that stay on both sides of a blank


def draw_passages(split: TokenizedSplit, count: int, length: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Return `count` passages of `length` tokens, each inside one document, from places drawn evenly over the text.

    Raises:
        InputError: no document is that long.
    """
    bounds = [split.bounds(index) for index in range(split.documents)]
    rooms = np.array([max(stop - start - length, 0) for start, stop in bounds])  # starts behind the separator
    if not rooms.sum():
        raise InputError(f"no held-out document has {length} tokens; expected longer documents, or more of them")
    rng = np.random.default_rng([seed, count, length])
    ends = rooms.cumsum()
    # One place in each of as many equal parts, so that passages hardly overlap.
    places = ((np.arange(count) + rng.random(count)) / count * ends[-1]).astype(np.int64)
    passages = []
    for place in places.tolist():
        document = int(np.searchsorted(ends, place, side="right"))
        start = bounds[document][0] + 1 + place - int(ends[document] - rooms[document])
        passages.append(tuple(split.tokens.read(start, start + length).astype(np.int64).tolist()))
    return passages


def make_blanks(passages: Sequence[Sequence[int]], longest: int, seed: int = 0) -> list[Blank]:
    """Return each passage with a piece of 1 to `longest` tokens taken out of it, at least 8 tokens from both ends."""
    rng = np.random.default_rng([seed, longest])
    blanks = []
    for passage in passages:
        size = int(rng.integers(1, longest + 1))
        start = int(rng.integers(_EDGE, len(passage) - _EDGE - size + 1))
        blanks.append(
            Blank(tuple(passage[:start]), tuple(passage[start : start + size]), tuple(passage[start + size :]))
        )
    return blanks


def draw_choices(blanks: Sequence[Blank], others: int, seed: int = 0) -> list[list[Blank]]:
    """Return for each blank itself and, as wrong answers, as long pieces of other passages in its place."""
    rng = np.random.default_rng([seed, others])
    choices = []
    for number, blank in enumerate(blanks):
        options, size = [blank], len(blank.piece)
        for other in rng.permutation([i for i in range(len(blanks)) if i != number]):
            text = [*blanks[other].before, *blanks[other].piece, *blanks[other].after]
            start = int(rng.integers(0, len(text) - size + 1))
            piece = tuple(text[start : start + size])
            if piece not in [option.piece for option in options]:
                options.append(blank.holding(piece))
            if len(options) == others + 1:
                break
        choices.append(options)
    return choices


def make_several_blanks(
    passages: Sequence[Sequence[int]], count: int, longest: int, seed: int = 0
) -> list[list[tuple[int, int]]]:
    """Return for each passage `count` spans (start, stop) of 1 to `longest` tokens, in order, that do not touch."""
    rng = np.random.default_rng([seed, count, longest])
    found = []
    for passage in passages:
        sizes = rng.integers(1, longest + 1, size=count)
        free = len(passage) - int(sizes.sum()) - (count - 1)
        if free < 0:
            raise InputError(f"{count} blanks of up to {longest} tokens do not fit into {len(passage)} tokens")
        # Divide what is left between the gaps: sorted places among the kept tokens.
        starts = np.sort(rng.integers(0, free + 1, size=count)) + np.arange(count) + sizes.cumsum() - sizes
        found.append([(int(start), int(start + size)) for start, size in zip(starts, sizes, strict=True)])
    return found
