"""Low-rank adaptation of a linear map (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", 4.1)."""

import math

import torch
from torch import Tensor, nn

from stemma.layers.linear import Linear, linear


class LoRALinear(nn.Module):
    """`base(x) + dropout(x) a^T b^T * alpha / rank`, where only `a` and `b` are trained; at first it equals its base.

    Args:
        base: the map to adapt, whose weight and bias are frozen. rank: of the update. alpha: its scale, times rank.
        dropout: of the update's input.
    """

    def __init__(self, base: Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.merged = rank, alpha, False
        self.active = True  # False: the base alone (see `training.lora.without_lora`)
        # Updates of a model in half precision would be lost in rounding.
        dtype, device = torch.promote_types(base.weight.dtype, torch.float32), base.weight.device
        self.a = nn.Parameter(torch.empty(rank, base.in_features, dtype=dtype, device=device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=dtype, device=device))
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as the authors' code (microsoft/LoRA) and PEFT
        self.train(base.training)

    @property
    def scale(self) -> float:
        """What the update is multiplied by."""
        return self.alpha / self.rank

    @property
    def weight(self) -> Tensor:
        """The weight of the map as it is now, float [out, in]: what a packed product of it needs."""
        weight = self.base.weight
        return (weight + self._update()).to(weight.dtype) if self._adds else weight

    @property
    def bias(self) -> Tensor | None:
        """The base's, float [out] or None."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., in] to [..., out]."""
        output = self.base(x)
        if not self._adds:
            return output
        narrow = linear(self.dropout(x).to(self.a.dtype), self.a) * self.scale
        return output + linear(narrow, self.b).to(output.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the base's weight, so that it costs nothing any more."""
        if not self.merged:
            self.base.weight.copy_(self.base.weight + self._update())
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the update out of the base's weight, which is what it was but for rounding."""
        if self.merged:
            self.base.weight.copy_(self.base.weight - self._update())
            self.merged = False

    @property
    def _adds(self) -> bool:
        return self.active and not self.merged

    def _update(self) -> Tensor:
        return self.b @ self.a * self.scale
