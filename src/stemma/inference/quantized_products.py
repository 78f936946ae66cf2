"""Matrix products with weights of 8 or 4 bits: the rounding, the products, and the linear map that holds one.

With few rows a product takes as long as its weight takes to be read, so fewer bits are faster; int8 is also faster for
many rows, where the processor multiplies bytes. Measured on one core with AMX for a [3072, 768] weight, microseconds
for 1, 4, 8 and 512 rows: `F.linear` in float32 741, 1,679, 2,101, 24,391, in bfloat16 749, 855, 826, 3,511;
oneDNN's int8 alone 293, 283, 289, 2,649 (rounding the rows comes to that, see `row_rounding`); int4 208, 363, 689 by
PyTorch's product, for 512 about 5,000 to unpack and 3,100 to multiply. Other roads were slower: `_weight_int8pack_mm`
493 to 45,600, `_int_mm` 519 to 13,100, Numba's loops over rows of int8 or int4 450 to 1,000 for one row.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.inference import streaming
from stemma.inference.products import available
from stemma.inference.row_rounding import fastest_rounding

logger = logging.getLogger(__name__)

GROUPS = (32, 64, 128)  # how many weights of a row may share a scale in int4
_BLOCK = 64  # outputs that PyTorch packs together for AVX-512
_NARROW, _ENOUGH_ROWS = 256, 8  # outputs; oneDNN multiplies 1 to 7 rows with so few by a loop that takes milliseconds
_FEW_ROWS = 64  # up to which PyTorch's product of int4 is faster than unpacking and multiplying
_MOST_STREAMED = 32  # rows; the same of the products that stream


class QuantizedProduct(Protocol):
    """`x @ weight.T + bias` for float x [..., in], where the weight is held rounded."""

    bytes: int

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return float [..., out], of the type of x."""

    def weight(self) -> Tensor:
        """Return the rounded weight, float32 [out, in]."""


def round_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row symmetrically to 8 bits.

    Args:
        weight: float [out, in].
    Returns:
        values, int8 [out, in] within +-127, and scales, float32 [out]; no weight moves by more than half its scale.
    """
    weight = weight.detach().float()
    scales = weight.abs().amax(1) / 127
    scales = scales.where(scales > 0, 1.0)
    return (weight / scales.unsqueeze(1)).round_().to(torch.int8), scales


def round_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Round each `group` consecutive weights of a row to 16 levels between their minimum and maximum.

    Args:
        weight: float [out, in], in a multiple of the group.
    Returns:
        values, uint8 [out, in] below 16, and for each group scale and centre, bfloat16 [out, in / group, 2]: the
        weight is `(value - 8) * scale + centre`. No weight moves by more than half its scale and, since the centre
        is rounded too, 2^-8 of the centre.
    """
    groups = weight.detach().float().unflatten(1, (-1, group))
    least, most = groups.amin(-1), groups.amax(-1)
    scale = ((most - least) / 15).to(torch.bfloat16)
    short = scale.float() * 15 < most - least
    scale = torch.where(short, scale * (1 + 2**-7), scale)  # the next number up, or the one after
    scale = scale.where(scale > 0, 1.0)
    centre = (least + 8 * scale.float()).to(torch.bfloat16)
    values = (groups - centre.float().unsqueeze(-1)).div_(scale.float().unsqueeze(-1)).round_().add_(8).clamp_(0, 15)
    return values.to(torch.uint8).flatten(1), torch.stack([scale, centre], -1)


Make = Callable[..., QuantizedProduct]  # of what `round_int8` or `round_int4` returned


class StoredInt8:
    """int8 on any device: the weight is made a float before each product. Always right, never fast."""

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self.values, self.scales = values, scales
        self.bytes = values.nbytes + scales.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight().to(x.dtype), bias)

    def weight(self) -> Tensor:
        return self.values * self.scales.unsqueeze(1)


class Int8Product:
    """int8 on a CPU: each row of x is rounded to int8 too, by its own largest number, and oneDNN multiplies bytes.

    The sums are exact integers, so that the result differs from that of the rounded weight and the rounded row by
    float32 rounding only.
    """

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(values, None)
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int64)
        self._operator = torch.ops.onednn.qlinear_pointwise.default
        self._round = fastest_rounding()
        self.bytes = values.nbytes + scales.nbytes + self._zeros.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 0:
            return x.new_empty(*x.shape[:-1], len(self._scales))
        rounded, by = self._round(rows)
        if len(rows) < _ENOUGH_ROWS and len(self._scales) <= _NARROW:
            rounded = F.pad(rounded, (0, 0, 0, _ENOUGH_ROWS - len(rows)))
        if len(rounded) == 1:  # one scale for the whole product, which can then finish in one step
            y = self._multiply(rounded, by.item(), None if bias is None else bias.float(), x.dtype)
        else:
            y = self._multiply(rounded, 1.0, None, torch.float32)[: len(rows)].mul_(by.unsqueeze(1))
            y = (y if bias is None else y.add_(bias)).to(x.dtype)
        return y.view(*x.shape[:-1], -1)

    def _multiply(self, rounded: Tensor, scale: float, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        packed, scales, zeros = self._packed, self._scales, self._zeros
        return self._operator(rounded, scale, 0, packed, scales, zeros, bias, 1.0, 0, dtype, "none", [], "")

    def weight(self) -> Tensor:
        return self._packed.to_dense().t().float() * self._scales.unsqueeze(1)


def _streamed_or_at_once(
    few: streaming.Bytes | streaming.Nibbles, many: Callable[[Tensor], Tensor], x: Tensor, bias: Tensor | None
) -> Tensor:
    """Multiply few rows, float32, by a kernel that adds the bias, and many, bfloat16, by what gives float32 without."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= _MOST_STREAMED:
        y = few(rows.float().contiguous(), bias)
    else:
        y = many(rows.to(torch.bfloat16))
        y = y if bias is None else y.add_(bias)
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[1])


class StreamedInt8:
    """int8 by `inference.streaming`: a few rows are rounded as `Int8Product` rounds them; many are multiplied in
    bfloat16, which holds rounded weights exactly, and in which x is rounded less than to 8 bits of its largest number.
    """

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self._inputs, self._scales = values.shape[1], scales
        padded = F.pad(values, (0, -self._inputs % streaming.VECTOR))
        # without a sign: 128 too large
        self._multiply = streaming.Bytes(padded.contiguous().view(torch.uint8) ^ 128, scales)
        self.bytes = padded.nbytes + scales.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _streamed_or_at_once(self._multiply, self._at_once, x, bias)

    def _at_once(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self._values(torch.bfloat16)).float().mul_(self._scales)

    def _values(self, dtype: torch.dtype) -> Tensor:
        return self._multiply.weight[:, : self._inputs].to(dtype).sub_(128)

    def weight(self) -> Tensor:
        return self._values(torch.float32).mul_(self._scales.unsqueeze(1))


class StoredInt4:
    """int4 on any device: the weight is made a float before each product. Always right, never fast."""

    def __init__(self, values: Tensor, levels: Tensor) -> None:
        self._pairs = values[:, ::2] | values[:, 1::2] << 4  # [out, in / 2]
        self._levels = levels
        self.bytes = self._pairs.nbytes + levels.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, self.weight().to(x.dtype), bias)

    def weight(self) -> Tensor:
        values = torch.stack([self._pairs & 15, self._pairs >> 4], -1).flatten(1)
        scale, centre = self._levels.float().unbind(-1)
        groups = values.unflatten(1, (scale.shape[1], -1)).float() - 8
        return (groups * scale.unsqueeze(-1) + centre.unsqueeze(-1)).flatten(1)


class Int4Product:
    """int4 on a CPU with AVX-512: x in bfloat16; a few rows by PyTorch's product, more by unpacking the weight."""

    def __init__(self, values: Tensor, levels: Tensor) -> None:
        self._outputs, self._group = len(values), values.shape[1] // levels.shape[1]
        padding = -self._outputs % _BLOCK
        values, levels = F.pad(values, (0, 0, 0, padding)), F.pad(levels, (0, 0, 0, 0, 0, padding))
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.int(), 1)
        self._levels = levels.transpose(0, 1).contiguous()  # bfloat16 [in / group, out, 2]
        self._operator = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        self.bytes = self._packed.nbytes + self._levels.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if len(rows) == 0:
            y = rows.new_empty(0, self._outputs)
        elif len(rows) <= _FEW_ROWS:
            y = self._operator(rows, self._packed, self._group, self._levels)
        else:
            y = rows @ self._unpacked(torch.bfloat16)
        y = y[:, : self._outputs].to(x.dtype)
        return (y if bias is None else y + bias).view(*x.shape[:-1], self._outputs)

    def weight(self) -> Tensor:
        return self._unpacked(torch.float32).t()[: self._outputs]

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, [in, out] with the padding."""
        outputs, pairs = self._packed.shape  # of each 64 outputs, [in, 32] bytes: of output j below, j + 32 above
        blocks = self._packed.view(outputs // _BLOCK, 2 * pairs, _BLOCK // 2).transpose(0, 1)
        values = torch.empty(2 * pairs, outputs // _BLOCK, 2, _BLOCK // 2, dtype=torch.int8)
        torch.bitwise_and(blocks, 15, out=values[:, :, 0].view(torch.uint8))
        torch.bitwise_right_shift(blocks, 4, out=values[:, :, 1].view(torch.uint8))
        groups = values.sub_(8).view(len(self._levels), -1, outputs).to(dtype)
        scale, centre = self._levels.to(dtype).transpose(1, 2).contiguous().unsqueeze(2).unbind(1)
        return torch.addcmul(centre, groups, scale).view(2 * pairs, outputs)


class StreamedInt4:
    """int4 by `inference.streaming`: a few rows are rounded to 8 bits; many are multiplied in bfloat16."""

    def __init__(self, values: Tensor, levels: Tensor) -> None:
        self._inputs, self._group = values.shape[1], values.shape[1] // levels.shape[1]
        values = F.pad(values, (0, -self._inputs % streaming.NIBBLES))
        halves = values.unflatten(1, (-1, 2, streaming.VECTOR))
        pairs, levels = halves[:, :, 0] | halves[:, :, 1] << 4, F.pad(levels.flatten(0, 1), (0, 0, 0, 16))
        self._multiply = streaming.Nibbles(pairs, levels, self._group)
        self.bytes = pairs.nbytes + levels.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return _streamed_or_at_once(self._multiply, self._at_once, x, bias)

    def _at_once(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self._multiply.unpacked()).float()

    def weight(self) -> Tensor:
        pairs = self._multiply.weight
        values = torch.stack([pairs & 15, pairs >> 4], 2).flatten(1)[:, : self._inputs]
        groups = values.unflatten(1, (-1, self._group)).float().sub_(8)
        scale, centre = self._multiply.levels[:-16].float().view(len(values), -1, 1, 2).unbind(-1)
        return torch.addcmul(centre, groups, scale).flatten(1)


class Int8OnGPU(StoredInt8):
    """int8 by PyTorch's product of floats with int8, which CUDA and bfloat16 on a CPU have; x in bfloat16."""

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        super().__init__(values, scales)
        self._ones = torch.ones_like(scales, dtype=torch.bfloat16)  # bfloat16 scales would move the weights
        self._operator = torch.ops.aten._weight_int8pack_mm.default

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        y = (self._operator(rows, self.values, self._ones) * self.scales).to(x.dtype)
        return (y if bias is None else y + bias).view(*x.shape[:-1], len(self.scales))


class Int4OnGPU:
    """int4 by PyTorch's product for tensor cores; x in bfloat16."""

    def __init__(self, values: Tensor, levels: Tensor) -> None:
        self._outputs, inputs = values.shape
        self._group = inputs // levels.shape[1]
        tiles = next(tiles for tiles in (8, 4, 2) if inputs % (16 * tiles) == 0)
        pairs = values[:, ::2] << 4 | values[:, 1::2]
        self._packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), tiles)
        self._levels = levels.transpose(0, 1).contiguous()
        self._operator = torch.ops.aten._weight_int4pack_mm.default
        self.bytes = self._packed.nbytes + self._levels.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        y = self._operator(rows, self._packed, self._group, self._levels).to(x.dtype)
        return (y if bias is None else y + bias).view(*x.shape[:-1], self._outputs)

    def weight(self) -> Tensor:
        inputs = len(self._levels) * self._group
        return self(torch.eye(inputs, device=self._levels.device)).t()


def make_product(weight: Tensor, bits: int, group: int) -> QuantizedProduct:
    """Return the fastest product with a weight, float [out, in], rounded to so many bits, that is right here.

    Where int4's groups do not divide a row they are smaller; a row that no group divides gets 8 bits.
    """
    fitting = [size for size in GROUPS if size <= group and weight.shape[1] % size == 0]
    bits = bits if fitting else 8
    plain = _plain(bits)
    with torch.no_grad():
        rounded = round_int4(weight, fitting[-1]) if bits == 4 else round_int8(weight)
        if _is_right(bits, weight.device.type):
            try:
                return _fast(bits, weight.device.type)(*rounded)
            except RuntimeError as error:  # a shape that this device's operator does not take
                logger.info(
                    "a weight of %s in int%d is unpacked for each product: %s", tuple(weight.shape), bits, error
                )
        return plain(*rounded)


def _plain(bits: int) -> Make:
    return StoredInt8 if bits == 8 else StoredInt4


def _fast(bits: int, device: str) -> Make:
    if device == "cpu":
        streamed = streaming.streams(f"int{bits}") and available(torch.bfloat16)
        kinds: tuple[Make, Make] = (StreamedInt8, StreamedInt4) if streamed else (Int8Product, Int4Product)
        return kinds[bits == 4]
    return Int8OnGPU if bits == 8 else Int4OnGPU


@cache
def _is_right(bits: int, device: str) -> bool:
    """Whether this build's private operators are there and give on this device what the plain products give."""
    if device not in ("cpu", "cuda"):
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 128, generator=generator)
    rounded: Sequence[Tensor] = round_int8(weight) if bits == 8 else round_int4(weight, 32)
    try:
        rounded = [tensor.to(device) for tensor in rounded]
        ours, theirs = _fast(bits, device)(*rounded), _plain(bits)(*rounded)
        if (ours.weight() - theirs.weight()).abs().max() > 0.01 * theirs.weight().abs().max():
            return False
        for rows in (1, 3, 80):
            # Large numbers of one sign: products of bytes saturate on processors that add them up in 16 bits.
            x = (torch.rand(rows, 128, generator=generator) + 1).to(device)
            expected = theirs(x)
            if (ours(x) - expected).abs().max() > 0.02 * expected.abs().max():
                return False
    except (RuntimeError, AttributeError, AssertionError) as error:
        logger.info("int%d has no fast product on %s here: %s", bits, device, str(error).splitlines()[0])
        return False
    return True


class QuantizedWeight:
    """Stands where a module's `weight` was: `F.linear` multiplies with it, anything else sees it as floats.

    It has a weight's shape, type and device without being unpacked.
    """

    def __init__(self, product: QuantizedProduct, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        self.product, self.shape, self.dtype, self.device = product, shape, dtype, device
        self.itemsize = dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        return self.shape.numel()

    def detach(self) -> "QuantizedWeight":
        return self

    def to(self, dtype: torch.dtype) -> "QuantizedWeight":
        return QuantizedWeight(self.product, self.shape, dtype, self.device)

    def dequantized(self) -> Tensor:
        """Return the rounded weight, [out, in], of the type that the weight had."""
        return self.product.weight().to(self.dtype)

    def __getitem__(self, rows: Any) -> Tensor:
        return self.dequantized()[rows]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dequantized(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.linear and isinstance(arguments[1], cls) and not isinstance(arguments[0], cls):
            return _without_gradients(arguments[1].product, *_x_and_bias(*arguments, **(options or {})))
        plain = [argument.dequantized() if isinstance(argument, cls) else argument for argument in arguments]
        return function(*plain, **(options or {}))


def _x_and_bias(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return x, bias


def _without_gradients(product: QuantizedProduct, x: Tensor, bias: Tensor | None) -> Tensor:
    if not torch.is_grad_enabled():
        return product(x, bias)
    with torch.no_grad():
        return product(x, bias)


class QuantizedLinear(nn.Module):
    """`x @ weight.T + bias` with a rounded weight, for inference: nothing here learns, and gradients end here."""

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int, group: int) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.product = make_product(weight, bits, group)
        self.weight = QuantizedWeight(self.product, weight.shape, weight.dtype, weight.device)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., in] to [..., out]."""
        return _without_gradients(self.product, x, self.bias)

    def _save_to_state_dict(self, *_: Any) -> None:
        raise InputError("rounded weights are not saved: save the model before it is quantised")


def is_quantized(model: nn.Module) -> bool:
    """Return whether a model has a map with a rounded weight."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


class PartOfLinear(nn.Module):
    """Rows `start` to `stop` of a joint map, for whoever asks for one of the maps alone."""

    def __init__(self, joint: QuantizedLinear, start: int, stop: int) -> None:
        super().__init__()
        self.joint, self.start, self.stop = joint, start, stop

    @property
    def weight(self) -> Tensor:
        """The rounded weight, float [out, in]."""
        return self.joint.weight[self.start : self.stop]

    @property
    def bias(self) -> Tensor | None:
        """float [out] or None."""
        return None if self.joint.bias is None else self.joint.bias[self.start : self.stop]

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., in] to [..., out]."""
        return self.joint(x)[..., self.start : self.stop]
