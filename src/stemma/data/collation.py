"""Rows of unequal length to batches: which go together, and how they are filled up."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor


def padded(rows: Sequence[Any], value: int = 0) -> Tensor:
    """Return int64 [rows, longest] of rows of numbers, with `value` behind the shorter ones."""
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def batches_by_length(lengths: Sequence[int] | np.ndarray, tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of rows of about equal length, the short ones first, each once.

    Args:
        lengths: of the rows, 1 or more. tokens: a batch has at most so many, padding included, unless one row has more.
    """
    order = np.argsort(lengths, kind="stable")
    for start, stop in pairwise(cuts_by_length(np.asarray(lengths)[order], tokens)):
        yield order[start:stop].tolist()


def cuts_by_length(lengths: np.ndarray, tokens: int) -> list[int]:
    """Return where batches of at most `tokens` begin among ascending lengths, and where the last one ends."""
    cuts = [0]
    while cuts[-1] < len(lengths):
        first = cuts[-1]
        # A batch of n rows takes n times its last length: more with each row.
        low, high = first + 1, min(len(lengths), first + max(tokens // int(lengths[first]), 1))
        while low < high:
            middle = (low + high + 1) // 2
            if (middle - first) * int(lengths[middle - 1]) <= tokens:
                low = middle
            else:
                high = middle - 1
        cuts.append(low)
    return cuts
