"""Texts side by side in rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stemma.data.rows import place_in_rows


def test_the_longest_first_each_into_the_fullest_row() -> None:
    assert place_in_rows([3, 8, 5, 2, 1], 8) == [(1, 5), (0, 0), (1, 0), (2, 0), (2, 2)]
    assert place_in_rows([4, 4, 4], 4) == [(0, 0), (1, 0), (2, 0)]
    assert place_in_rows([], 4) == []


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60))
def test_texts_do_not_overlap_and_rows_are_well_filled(lengths: list[int]) -> None:
    places = place_in_rows(lengths, 32)
    rows = 1 + max(row for row, _ in places)
    taken = np.zeros((rows, 32), int)
    for length, (row, start) in zip(lengths, places, strict=True):
        assert start + length <= 32
        taken[row, start : start + length] += 1
    assert taken.max() <= 1
    # Best fit needs at most 1.7 times the fewest possible rows and one more (Johnson et al. 1974).
    assert rows <= 1.7 * max(1, -(-sum(lengths) // 32)) + 1
