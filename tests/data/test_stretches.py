"""Held-out text in stretches: all of it, in order, in one length."""

import numpy as np
import pytest

from stemma.data.stretches import stretches


class Tokens(np.ndarray):
    def read(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self[start:stop])


class Split:
    """Documents that lie apart in a larger array, as sampled ones do."""

    def __init__(self, bounds: list[tuple[int, int]]) -> None:
        self.tokens = np.arange(1000).view(Tokens)
        self.documents, self._bounds = len(bounds), bounds

    def bounds(self, index: int) -> tuple[int, int]:
        return self._bounds[index]


BOUNDS = [(0, 5), (20, 21), (100, 160), (300, 300), (301, 310)]
TEXT = [token for start, stop in BOUNDS for token in range(start, stop)]


@pytest.mark.parametrize("length", [1, 2, 7, 25, 75, 76, 1000])
def test_stretches_are_the_text(length: int) -> None:
    found = list(stretches(Split(BOUNDS), length))
    assert [token for stretch in found for token in stretch.tolist()] == TEXT
    assert all(len(stretch) == length for stretch in found[:-1]) and all(s.dtype == np.int64 for s in found)


def test_a_short_rest_is_left_out() -> None:
    assert [len(stretch) for stretch in stretches(Split(BOUNDS), 70, least=5)] == [70, 5]
    assert [len(stretch) for stretch in stretches(Split(BOUNDS), 70, least=6)] == [70]
    assert list(stretches(Split([]), 70)) == []
