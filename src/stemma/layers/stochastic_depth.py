"""Stochastic depth (Huang et al. 2016, "Deep Networks with Stochastic Depth"): residual branches that are left out."""

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Leave a branch out for each example of its own, with probability `rate`, in training only.

    The examples that keep it have it multiplied by 1 / (1 - rate), so that nothing is to be changed afterwards.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map a branch, float [batch, ...], to the same shape."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *(1 for _ in x.shape[1:]), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)
