"""Texts of unequal length side by side in rows of one length, so that little is padding."""

from collections.abc import Sequence


def place_in_rows(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Return (row, first column) for texts of the given lengths: the longest first, each into the fullest row it fits.

    Rows are counted from 0. No length may exceed `width`.
    """
    shortest = min(lengths, default=0)
    filled: list[int] = []
    open_rows: list[int] = []  # with room for the shortest
    places = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [row for row in open_rows if filled[row] + lengths[index] <= width]
        if fitting:
            row = max(fitting, key=filled.__getitem__)
        else:
            row = len(filled)
            filled.append(0)
            open_rows.append(row)
        places[index] = row, filled[row]
        filled[row] += lengths[index]
        if filled[row] + shortest > width:
            open_rows.remove(row)
    return places
