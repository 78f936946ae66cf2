"""Windows: each part is answered for once, where it has the most context, and nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from stemma.finetuning.windows import Window, windows


def test_what_fits_is_one_window() -> None:
    assert windows([3, 4, 1], 8, 4) == [Window(0, 3, 0, 3)]
    assert windows([], 8, 4) == [Window(0, 0, 0, 0)]


def test_an_overlap_is_halved_or_the_earlier_ones() -> None:
    assert windows([1] * 10, 6, 2) == [Window(0, 6, 0, 5), Window(4, 10, 5, 10)]
    assert windows([1] * 10, 6, 2, causal=True) == [Window(0, 6, 0, 6), Window(4, 10, 6, 10)]


@given(st.lists(st.integers(1, 7), max_size=60), st.integers(7, 20), st.integers(0, 15), st.booleans())
def test_each_part_is_answered_for_once(sizes: list[int], room: int, overlap: int, causal: bool) -> None:
    found = windows(sizes, room, overlap, causal=causal)
    assert [part for window in found for part in range(window.first, window.last)] == list(range(len(sizes)))
    for window in found:
        assert window.start <= window.first <= window.last <= window.stop
        assert sum(sizes[window.start : window.stop]) <= room
