"""Position ids, where each token stands in its own text, and sinusoids of them."""

from functools import lru_cache

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


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept may be part of a training step later
def sinusoids(length: int, hidden: int, device: torch.device) -> Tensor:
    """Return float32 [length, hidden], the encodings of positions 0, 1, ... (Vaswani et al. 2017, section 3.5).

    PE(p, 2i) = sin(p / 10000^(2i / hidden)), PE(p, 2i + 1) = cos of the same. `hidden` is even.
    """
    exponents = torch.arange(0, hidden, 2, dtype=torch.float64) / hidden
    angles = torch.arange(length, dtype=torch.float64).unsqueeze(1) / 10000.0**exponents  # [length, hidden / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float().to(device)
