"""Where each document stands in packed rows."""

import torch
from torch import Tensor

Segment = tuple[int, int, int]  # row, start, stop


def document_segments(document_ids: Tensor) -> list[Segment]:
    """Return where each document stands in int [batch, length] ids (a document is a run of equal ids in a row)."""
    batch, length = document_ids.shape
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    begin = starts.flatten().nonzero().squeeze(1).tolist()
    end = begin[1:] + [batch * length]
    return [(b // length, b % length, e - b // length * length) for b, e in zip(begin, end, strict=True)]
