"""Cutting what is longer than a model reads into overlapping windows, each part being answered for by one of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Window(NamedTuple):
    """Parts `start` to `stop` are read together, of which `first` to `last` are answered for here."""

    start: int
    stop: int
    first: int
    last: int


def windows(sizes: Sequence[int], room: int, overlap: int, *, causal: bool = False) -> list[Window]:
    """Return windows of whole parts that together answer for each part once, where it has the most context.

    Args:
        sizes: of the parts (words) in tokens, none above `room`. room: most tokens of a window.
        overlap: most tokens that two windows share.
        causal: what follows a part does not help it, so that an overlap belongs to the earlier window, not half each.
    """
    spans, start = [], 0
    while True:
        stop, used = start, 0
        while stop < len(sizes) and used + sizes[stop] <= room:
            used += sizes[stop]
            stop += 1
        spans.append((start, stop))
        if stop >= len(sizes):
            break
        shared, start = 0, stop
        # The part that did not fit in must fit into the next window, behind what is read again.
        while start > spans[-1][0] + 1 and shared + sizes[start - 1] <= min(overlap, room - sizes[stop]):
            start -= 1
            shared += sizes[start]
    borders = [stop if causal else (following + stop + 1) // 2 for (_, stop), (following, _) in pairwise(spans)]
    bounds = [0, *borders, len(sizes)]
    return [Window(*span, first, last) for span, (first, last) in zip(spans, pairwise(bounds), strict=True)]
