"""Texts of unequal length side by side in rows of one length, so that little is padding."""

from collections.abc import Sequence


def place_in_rows(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Return (row, first column) for texts of the given lengths: the longest first, each into the fullest row it fits.

    Rows are counted from 0. No length may exceed `width`.
    """
    filled: list[int] = []
    places = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        open_rows = [row for row, used in enumerate(filled) if used + lengths[index] <= width]
        row = max(open_rows, key=filled.__getitem__, default=len(filled))
        if row == len(filled):
            filled.append(0)
        places[index] = row, filled[row]
        filled[row] += lengths[index]
    return places
