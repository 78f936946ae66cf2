"""Learned positions for images of another resolution (Dosovitskiy et al. 2020, section 3.2)."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.errors import InputError


def resize_positions(
    positions: Tensor, grid: tuple[int, int], prefix: int, stored: tuple[int, int] | None = None
) -> Tensor:
    """Return the positions of a grid of patches, interpolated bicubically from those of another.

    The tokens before the patches keep theirs; the same grid gives the same tensor. A larger grid is interpolated as in
    DeiT's code and transformers, a smaller one with the low-pass filter that timm uses.

    Args:
        positions: float [1, prefix + rows * columns, hidden]. grid: rows and columns that are wanted.
        prefix: tokens before the patches. stored: rows and columns of `positions`; default: a square.
    Returns:
        float [1, prefix + grid rows * grid columns, hidden].
    Raises:
        InputError: positions that are no square, without `stored`.
    """
    count = positions.shape[1] - prefix
    if stored is None:
        side = isqrt(max(count, 0))
        if side * side != count:
            raise InputError(f"positions of {count} patches are no square; expected their rows and columns")
        stored = (side, side)
    if stored == grid:
        return positions
    patches = positions[:, prefix:].unflatten(1, stored).permute(0, 3, 1, 2)  # [1, hidden, rows, columns]
    shrinks = grid[0] < stored[0] or grid[1] < stored[1]
    patches = F.interpolate(patches.float(), grid, mode="bicubic", align_corners=False, antialias=shrinks)
    patches = patches.flatten(2).transpose(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :prefix], patches], dim=1)
