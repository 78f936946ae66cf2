"""Position ids: where each token stands in its own text."""

import torch
from torch import Tensor

from stemma.layers.masks import Mask


def positions_of(mask: Mask | None, length: int, device: torch.device) -> Tensor:
    """Return int64 [length] or [batch, length]: positions that restart at each packed document and skip left padding.

    Positions that ran on across packed documents, or counted padding, would give the same text another representation.
    """
    positions = torch.arange(length, device=device)
    if mask is not None and mask.document_ids is not None:
        ids = mask.document_ids
        starts = torch.zeros_like(ids)
        starts[:, 1:] = positions[1:] * (ids[:, 1:] != ids[:, :-1])
        return positions - starts.cummax(1).values
    if mask is not None and mask.key_padding is not None:
        return (mask.key_padding.cumsum(1) - 1).clamp_min(0)
    return positions
