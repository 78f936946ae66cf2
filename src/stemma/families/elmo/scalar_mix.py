"""What a task takes of a biLM's layers: their weighted sum (Peters et al. 2018, section 3.2, equation 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ScalarMix(nn.Module):
    """`gamma * sum_k softmax(weights)_k * layer_k`, gamma and weights learned.

    Args:
        layers: how many. weights: to begin with, before the softmax; default: 0, all layers alike.
        trainable: whether gamma and weights are learned. norm: normalise each layer first, by one mean and variance
            over all real places and dimensions of the batch, as the published code does: a vector then depends on what
            it is batched with.
    """

    def __init__(
        self, layers: int, weights: Sequence[float] | None = None, *, trainable: bool = True, norm: bool = False
    ) -> None:
        super().__init__()
        self.norm = norm
        self.weights = nn.Parameter(torch.tensor(weights or [0.0] * layers), requires_grad=trainable)
        self.gamma = nn.Parameter(torch.ones(()), requires_grad=trainable)

    def forward(self, layers: Tensor, real: Tensor | None = None) -> Tensor:
        """Return float [..., width] for layers, float [layers, ..., width]; `real`: bool [...], for the norm."""
        shares = self.weights.softmax(0)
        if self.norm:
            layers = torch.stack([_normalised(layer, real) for layer in layers])
        return self.gamma * torch.tensordot(shares, layers, 1)


def _normalised(layer: Tensor, real: Tensor | None) -> Tensor:
    seen = layer if real is None else layer[real]
    deviation = seen - seen.mean()
    return (layer - seen.mean()) * torch.rsqrt(deviation.square().mean() + 1e-12)
