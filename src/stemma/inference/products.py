"""Matrix products for a few rows on a CPU, each with the weight in the layout that it is read fastest in.

With few rows a product takes as long as its weight takes to be read. `F.linear` reads at a third to a half of the
memory's bandwidth. Up to eight rows `StreamedProduct` is used wherever there are kernels for it: it is the fastest but
for eight rows in bfloat16 on a processor with tiles, and needs no copy (see `inference.streaming`). Elsewhere, measured
on two cores with AVX-512 (GB/s for a [3072, 768] weight in float32, `F.linear` in brackets): one row, `SplitProduct` 27
(12); anything else, `OneDNNProduct` 19 to 23 (10).
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from stemma.inference import streaming

# What OneDNNProduct can apply before its result is written to memory: our activations and oneDNN's name and algorithm.
FUSED_ACTIVATIONS = {"gelu_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "relu": ("relu", "")}


class Product(Protocol):
    """`x @ weight.T + bias` for float x [..., in], at most `most_rows` rows in all (None: any number)."""

    most_rows: ClassVar[int | None]

    def __call__(self, x: Tensor) -> Tensor:
        """Return float [..., out], of the type of x."""


class OneDNNProduct:
    """The weight in oneDNN's blocked layout, best for about `rows` rows; an activation may follow.

    Each call costs 15 to 30 microseconds beside the product itself.
    """

    most_rows: ClassVar[int | None] = None

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, activation: str | None = None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        self.bias = bias
        self.activation, self.algorithm = FUSED_ACTIVATIONS[activation] if activation else ("none", "")
        self._operator = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: Tensor) -> Tensor:
        return self._operator(x, self.packed, self.bias, self.activation, [], self.algorithm)

    def weight(self) -> Tensor:
        """Return the weight as it was, float [out, in]."""
        return self.packed.to_dense()


class SplitProduct:
    """One float32 row: the outputs are split over the threads as a batch of products, which MKL runs side by side.

    A weight with more outputs than inputs is copied, transposed part by part; another one is used as it lies.
    """

    most_rows: ClassVar[int | None] = 1

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, inputs = weight.shape
        parts = max(1, min(torch.get_num_threads(), self.outputs // 64))
        if self.outputs > inputs:
            padding = -self.outputs % parts
            weight = torch.nn.functional.pad(weight.detach(), (0, 0, 0, padding))
            self.parts = weight.unflatten(0, (parts, -1)).transpose(1, 2).contiguous()  # [parts, in, out / parts]
            bias = None if bias is None else torch.nn.functional.pad(bias.detach(), (0, padding))
        else:
            parts = parts if self.outputs % parts == 0 else 1
            self.parts = weight.detach().unflatten(0, (parts, -1)).transpose(1, 2)
        self.bias = None if bias is None else bias.detach().view(parts, 1, -1)
        self._shape = (parts, 1, inputs)

    def __call__(self, x: Tensor) -> Tensor:
        row = x.expand(self._shape)
        y = torch.bmm(row, self.parts) if self.bias is None else torch.baddbmm(self.bias, row, self.parts)
        return y.view(*x.shape[:-1], -1)[..., : self.outputs]


class StreamedProduct:
    """Up to eight rows by `inference.streaming`: the weight is used as it lies, there is no copy of it.

    Raises:
        ValueError: a row of the weight is no multiple of 64 bytes.
    """

    most_rows: ClassVar[int | None] = 8

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        if not weight.is_contiguous() or weight.shape[1] * weight.itemsize % streaming.VECTOR:
            raise ValueError("this weight cannot be streamed")
        self._multiply = streaming.Floats(weight.detach(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        y = self._multiply(x.reshape(-1, x.shape[-1]).contiguous())
        return y.to(x.dtype).view(*x.shape[:-1], y.shape[1])  # of no rows -1 could be anything


def available(dtype: torch.dtype) -> bool:
    """Return whether this build of PyTorch and this processor have the products for a type of weights."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


def fastest(dtype: torch.dtype, rows: int) -> type[Product]:
    """Return the class of the product that is fastest for about `rows` rows."""
    if rows <= 8 and streaming.streams(str(dtype).removeprefix("torch.")):
        return StreamedProduct
    if dtype == torch.float32 and rows == 1 and torch.backends.mkl.is_available():
        return SplitProduct
    return OneDNNProduct


def pack(kind: type[Product], weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    """Return a product of the kind, or oneDNN's where that is impossible for this weight."""
    if kind is SplitProduct:
        return SplitProduct(weight, bias)
    if kind is StreamedProduct:
        try:
            return StreamedProduct(weight, bias)
        except ValueError:
            pass
    return OneDNNProduct(weight, bias, rows)
