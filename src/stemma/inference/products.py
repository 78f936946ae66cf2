"""Matrix products for a few rows on a CPU, each with the weight in the layout that it is read fastest in.

With few rows a product takes as long as its weight takes to be read. `F.linear` reads at a third to a half of the
memory's bandwidth. Which road is faster depends on precision and rows; measured on two cores with AVX-512
(GB/s for a [3072, 768] weight, `F.linear` in brackets): float32 and one row, `SplitProduct` 27 (12); bfloat16 and up to
four rows, `HalfProduct` 26 to 30 (13 to 15); anything else, `OneDNNProduct` 19 to 23 (10).
"""

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor

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


class HalfProduct:
    """Up to four bfloat16 rows: FBGEMM's product of float32 with float16, two bytes a weight as before.

    The weight is scaled by a power of two into float16's range, where all of bfloat16's 8 significant bits fit; the
    result is that of exact bfloat16 weights and float32 sums.

    Raises:
        ValueError: the weight spans so many orders of magnitude that float16 cannot hold it exactly.
    """

    most_rows: ClassVar[int | None] = 4

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float()
        exponent = math.frexp(weight.abs().max().item())[1]
        scaled = weight.mul_(2.0 ** (14 - exponent))  # below 2^14, a quarter of float16's largest number
        if not torch.equal(scaled.half().float(), scaled):
            raise ValueError("float16 cannot hold this weight")
        self._packed = torch.ops.quantized.linear_prepack_fp16(scaled, None if bias is None else bias.detach().float())
        self._unscale = torch.tensor([2.0 ** (exponent - 14)])  # float32 [1], so that the product with x is float32
        self._operator = torch.ops.quantized.linear_dynamic_fp16.default

    def __call__(self, x: Tensor) -> Tensor:
        return self._operator(x * self._unscale, self._packed).to(x.dtype)


def available(dtype: torch.dtype) -> bool:
    """Return whether this build of PyTorch and this processor have the products for a type of weights."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


def fastest(dtype: torch.dtype, rows: int) -> type[Product]:
    """Return the class of the product that is fastest for about `rows` rows."""
    if dtype == torch.float32 and rows == 1 and torch.backends.mkl.is_available():
        return SplitProduct
    fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
    if dtype == torch.bfloat16 and rows <= 4 and fbgemm and not torch.cpu._is_amx_tile_supported():
        return HalfProduct
    return OneDNNProduct


def pack(kind: type[Product], weight: Tensor, bias: Tensor | None, rows: int) -> Product:
    """Return a product of the kind, or oneDNN's where that is impossible for this weight."""
    if kind is SplitProduct:
        return SplitProduct(weight, bias)
    if kind is HalfProduct:
        try:
            return HalfProduct(weight, bias)
        except ValueError:
            pass
    return OneDNNProduct(weight, bias, rows)
