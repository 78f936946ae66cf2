"""Rows of unequal length: filled up, and batches of which little is padding."""

import numpy as np
import pytest
import torch

from stemma.data.collation import batches_by_length, padded


def test_shorter_rows_are_filled_up_behind() -> None:
    found = padded([np.array([5, 6, 7], np.uint16), [8], (9, 10)], -100)
    assert found.dtype == torch.int64
    assert found.tolist() == [[5, 6, 7], [8, -100, -100], [9, 10, -100]]


@pytest.mark.parametrize("tokens", [1, 7, 20, 64, 10_000])
def test_batches_are_as_large_as_fits_and_hold_every_row_once(tokens: int) -> None:
    """What filling them up one row at a time gives."""
    lengths = np.random.default_rng(0).integers(1, 30, 200).tolist()
    expected: list[list[int]] = [[]]
    for number in sorted(range(200), key=lambda number: lengths[number]):
        if expected[-1] and (len(expected[-1]) + 1) * lengths[number] > tokens:
            expected.append([])
        expected[-1].append(number)
    assert list(batches_by_length(lengths, tokens)) == expected
    assert list(batches_by_length([], tokens)) == []
