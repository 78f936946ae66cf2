"""The affine map, on the fastest product that the device has for it."""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Linear(nn.Linear):
    """`nn.Linear` whose float32 product goes through oneDNN on a CPU where that is the faster one (see `linear`)."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `input @ weight.T + bias`: `F.linear` by another road.

    PyTorch sends float32 products on a CPU to MKL, which on AMD's stays far below the processor's peak; oneDNN, which
    ships in the same build, does not. On Intel's MKL is as fast for many rows and up to twice as fast for few.
    Autocast, low precision, other devices and distributed tensors take PyTorch's own road, which is already the good
    one there.

    oneDNN compiles a kernel for every number of rows that it meets, and keeps it. Where those numbers vary, that takes
    as long as the products themselves, and gigabytes: it is given a few zeros more instead (see `rounded_up`).

    Args:
        input: float [..., in]. weight: float [out, in]. bias: float [out] or None.
    Returns:
        float [..., out].
    """
    ours = _takes_onednn(input, weight)
    rows = input.numel() // max(input.shape[-1], 1)
    more = rounded_up(rows) - rows if ours or compiles_kernels(input) else 0
    if more:
        together = F.pad(input.reshape(rows, -1), (0, 0, 0, more))
        return linear(together, weight, bias)[:rows].unflatten(0, input.shape[:-1])
    if not ours:
        return F.linear(input, weight, bias)
    if torch.is_grad_enabled():
        return _OneDNNLinear.apply(input, weight, bias)
    return _product(input, weight, bias)


def rounded_up(rows: int) -> int:
    """Return so many rows or up to an eighth more: one of eight numbers between two powers of two."""
    step = 1 << max(rows.bit_length() - 4, 0)
    return -(-rows // step) * step


def compiles_kernels(input: Tensor) -> bool:
    """Return whether PyTorch leaves products of it to oneDNN, as those in low precision on a CPU."""
    if input.device.type != "cpu" or torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    return dtype in (torch.bfloat16, torch.float16)


def _takes_onednn(input: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # inductor chooses its own products; the rest cannot be traced
        and input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and input.numel() > 0
        and type(weight) in (Tensor, nn.Parameter)
        and torch.backends.mkldnn.is_available()
        and not _made_by_intel()
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def _made_by_intel() -> bool:
    """Ask what the processor is, not how fast it happens to be today, so that a resumed run decides alike."""
    try:
        description = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        description = platform.processor()
    return "GenuineIntel" in description


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_input = _product(rows, weight.t(), None).view(input.shape) if needs_input else None
        # MKL is the faster of the two for this shape: the long side is summed over.
        grad_weight = rows.t() @ input.reshape(-1, input.shape[-1]) if needs_weight else None
        grad_bias = rows.sum(0) if needs_bias else None
        return grad_input, grad_weight, grad_bias
