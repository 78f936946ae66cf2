"""Rows of a corpus: each goes on where it ended, round the ring, and the lengths of windows vary as they should."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stemma.data.streams import Streams
from stemma.errors import InputError


class Numbers:
    """Every token is its own place in the corpus."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __len__(self) -> int:
        return self.total

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.total
        return np.arange(start, stop, dtype=np.uint16)


def split_of(total: int) -> Any:
    return SimpleNamespace(tokens=Numbers(total), fingerprint=f"numbers {total}")


@pytest.mark.parametrize("deviation", [0.0, 2.0])
def test_rows_go_on_where_they_ended_and_begin_equally_far_apart(deviation: float) -> None:
    streams = Streams(split_of(103), 9, 4, seed=3, deviation=deviation)
    firsts = [int(streams.sequence(row).tokens[0]) for row in range(4)]
    assert [(first - firsts[0]) % 103 for first in firsts] == [0, 25, 51, 77]
    for row in range(4):
        windows = [streams.sequence(update * 4 + row) for update in range(60)]
        assert all((window.row, window.rows) == (row, 4) for window in windows)
        joined = np.concatenate([window.tokens[:-1] for window in windows])
        assert np.array_equal(joined, (firsts[row] + np.arange(len(joined))) % 103)
        for window in windows:  # the last one is a target only
            assert window.tokens[-1] == (window.tokens[-2] + 1) % 103
    for update in range(60):
        assert len({len(streams.sequence(update * 4 + row).tokens) for row in range(4)}) == 1
    assert len(streams) == 103 // 9


def test_windows_are_the_same_whatever_was_read_before() -> None:
    one, other = (Streams(split_of(10_000), 20, 2, seed=1, deviation=3.0) for _ in range(2))
    late = one.sequence(2 * 9000 + 1)
    for update in range(0, 9001, 1000):
        found = other.sequence(2 * update + 1)
    assert np.array_equal(found.tokens, late.tokens)
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != Streams(split_of(10_000), 20, 3, seed=1, deviation=3.0).fingerprint
    assert Streams(split_of(10_000), 20, 2, seed=2).sequence(0).tokens[0] != one.sequence(0).tokens[0]


def test_lengths_are_drawn_as_in_awd_lstm() -> None:
    """N(70, 5) in 95 of 100 updates, else N(35, 5); the learning rate follows."""
    streams = Streams(split_of(1000), 70, 2, seed=0, deviation=5.0)
    lengths = np.array([len(streams.sequence(2 * update).tokens) - 1 for update in range(6000)])
    assert np.array_equal(lengths / 70, [streams.rate(update) for update in range(6000)])
    short = lengths < 52.5
    assert abs(short.mean() - 0.05) < 0.015
    assert abs(lengths[~short].mean() - 69.5) < 0.5 and abs(lengths[short].mean() - 34.5) < 2  # rounded down
    assert 4.5 < lengths[~short].std() < 5.5
    assert min(len(Streams(split_of(1000), 6, 2, 0, 5.0).sequence(n).tokens) for n in range(200)) == 6
    assert Streams(split_of(1000), 70, 2, seed=0).rate(17) == 1.0


def test_a_corpus_that_is_too_small_is_refused() -> None:
    Streams(split_of(37), 9, 4, seed=0)
    with pytest.raises(InputError, match=r"36 tokens to train on; expected at least 37 \(4 rows of 9 tokens"):
        Streams(split_of(36), 9, 4, seed=0)
