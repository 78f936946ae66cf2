"""Root mean square normalisation (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization")."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Elements of the rows that the backward pass works on at a time, so that its temporaries stay in the cache.
CHUNK_ELEMENTS = 64 * 1024


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + epsilon) * weight`: a layer norm without centring and without bias."""

    def __init__(self, hidden: int, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., hidden] to the same shape; the mean is taken in float32 at least."""
        on_cpu = x.device.type == "cpu" and x.dtype == self.weight.dtype in (torch.float32, torch.float64)
        if on_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _RMSNorm.apply(x, self.weight, self.epsilon)
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class _RMSNorm(torch.autograd.Function):
    """Three times faster forth and back on a CPU than `F.rms_norm`, which is a chain of operations there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        width = x.shape[-1]
        grad_x, grad_weight = torch.empty_like(x, memory_format=torch.contiguous_format), torch.zeros_like(weight)
        rows = max(1, CHUNK_ELEMENTS // width)
        parts = (tensor.reshape(-1, tensor.shape[-1]).split(rows) for tensor in (grad, x, inverse, grad_x))
        for grad_part, x_part, inverse_part, result in zip(*parts, strict=True):
            normal = x_part * inverse_part
            product = grad_part * normal
            grad_weight += product.sum(0)
            # with n = x * inverse: dx = inverse * (g w - n * mean(g w n))
            mean = torch.mv(product, weight).div_(width).unsqueeze(1)
            torch.mul(grad_part, weight, out=result)
            result.sub_(normal.mul_(mean)).mul_(inverse_part)
        return grad_x, grad_weight, None
