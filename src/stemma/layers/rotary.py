"""Rotary positions: queries and keys turned by angles that grow with the position (Su et al. 2021, "RoFormer", 3.2).

Pair i of a head's components is (i, i + head_dim / 2), the "half-split" layout of Hugging Face's weights.
"""

from typing import Any

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]  # cosine and sine, float32 [..., 1, length, head_dim / 2]


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> Angles:
    """Return cosine and sine of position * theta^(-2 i / head_dim), in float32 whatever the model computes in.

    Args:
        positions: int64 [length] or [batch, length]. head_dim: even. theta: the base of the wave lengths.
    Returns:
        float32 [1, length, head_dim / 2] or [batch, 1, length, head_dim / 2] each, to broadcast over heads.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    angles = positions.unsqueeze(-1).float() * (1.0 / theta**exponents)
    return angles.cos().unsqueeze(-3), angles.sin().unsqueeze(-3)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Turn each pair of float [batch, heads, length, head_dim] by its angle; return the same shape, contiguous.

    Computed in float32 at least: bfloat16 angles would move distant tokens.
    """
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return _Rotation.apply(x, *angles)
    return _turned(x, *angles)


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)


class _Rotation(torch.autograd.Function):
    """A rotation's gradient is the gradient turned back; nothing but the angles need be kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(grad, cosine, -sine), None, None
