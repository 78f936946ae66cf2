"""Kernels for products of few rows, on processors with AVX-512: each weight is read once, in order, where it lies.

With few rows a product takes as long as its weight takes to come from memory. These kernels ask for what they will
need 8 KiB ahead, and multiply it with all rows while it is there. Numba compiles them; its own loops neither prefetch
nor multiply bytes, so that the innermost one is written in LLVM's language. It stands in this file because Numba keeps
compiled kernels on disk until the file that they come from changes.

Measured on one core of an Intel server with AMX for a [2048, 768] weight of many, microseconds for 1, 4 and 8 rows, in
brackets oneDNN's, for which the weight is laid out anew: float32 394, 455, 556 (519, 618, 691); bfloat16 217, 282, 405
(276, 283, 283, by tiles); int8 113, 143, 174 (183, 197, 199); int4 84, 128, 220 (PyTorch's own 133, 218, 412). When
other programs use the memory, too, oneDNN's bfloat16 and int8 take twice as long, these a third more.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.data.kept_kernels import kept
from stemma.inference.row_rounding import compiled_rounding

logger = logging.getLogger(__name__)

VECTOR = 64  # bytes
NIBBLES = 2 * VECTOR  # weights of 4 bits in a vector: its low halves, then its high ones
_AHEAD = 8192  # bytes
_OUTPUTS = {1: 4, 2: 4, 4: 4, 8: 2}  # of a block, by its rows: their sums fit into the 32 registers
_SEVERAL = 1 << 19  # bytes of a weight from which on several threads are worth waking
_FEATURES = {"float32": (), "bfloat16": ("avx512bf16",), "int8": ("avx512vnni",), "int4": ("avx512vnni",)}
# Sums may be taken in any order, as vectors do; numbers that are none are not assumed away.
_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}


@cache
def streams(kind: str) -> bool:
    """Return whether there are kernels for weights in "float32", "bfloat16", "int8" or "int4" here."""
    if kind not in _FEATURES:
        return False
    try:
        import numba  # noqa: F401
        from llvmlite.binding import get_host_cpu_features
    except ImportError:
        logger.info("few rows are not streamed: Numba is not installed")
        return False
    features = get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "avx512bw", *_FEATURES[kind]))


class _Streamed:
    """A weight where it lies, and the kernels for it by the number of rows.

    Args:
        kernel: makes the one for so many rows at a time, on one thread or on all.
    """

    def __init__(
        self, weight: Tensor, kernel: Callable[[int, bool], Callable[..., None]], bias: Tensor | None = None
    ) -> None:
        self._kernel = kernel
        self.weight, self._address, self._outputs, self._bytes = weight, weight.data_ptr(), len(weight), weight.nbytes
        self._none = np.zeros(len(weight), np.float32)
        self._bias = None if bias is None else bias.detach().float().numpy()
        self._kernels: dict[tuple[int, int], Callable[..., None]] = {}

    def _ready(self, rows: int, bias: Tensor | None = None) -> tuple[Callable[..., None], Tensor, np.ndarray, int]:
        """Return the kernel for so many rows, where the result goes, the bias, and the number of threads."""
        parts = torch.get_num_threads() if self._bytes >= _SEVERAL else 1
        run = self._kernels.get((rows, parts))
        if run is None:
            block_rows = min(1 << (rows - 1).bit_length(), 8)
            run = self._kernels[rows, parts] = self._kernel(block_rows, parts > 1)
        own = self._bias if bias is None else bias.detach().float().numpy()
        return run, torch.empty(rows, self._outputs), self._none if own is None else own, parts


class Floats(_Streamed):
    """`x @ weight.T + bias`.

    Args:
        weight: float32 or bfloat16 [out, in], contiguous, a row of it a multiple of 64 bytes. bias: float [out].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        kind = "float32" if weight.dtype == torch.float32 else "bfloat16"
        super().__init__(weight, partial(_floats, kind), bias)
        self._steps = weight.shape[1] * weight.itemsize // VECTOR

    def __call__(self, x: Tensor) -> Tensor:
        """Map x, of the weight's type, [rows, in], contiguous, to float32 [rows, out]."""
        run, y, bias, parts = self._ready(x.shape[0])
        run(x.data_ptr(), self._address, y.numpy(), bias, self._steps, parts)
        return y


class Bytes(_Streamed):
    """`x @ ((weight - 128) * scales).T + bias`, with each row of x rounded to 8 bits.

    Args:
        weight: uint8 [out, in rounded up to 64], contiguous. scales: float32 [out].
    """

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        super().__init__(weight, _bytes)
        self._scales = scales.numpy()

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map x, float32 [rows, in], contiguous, and a bias, float [out], to float32 [rows, out]."""
        run, y, added, parts = self._ready(x.shape[0], bias)
        run(*_rounded(x, self.weight.shape[1]), self._address, y.numpy(), self._scales, added, parts)
        return y


class Nibbles(_Streamed):
    """`x @ ((weight - 8) * scale + centre).T + bias`, with each row of x rounded to 8 bits.

    Args:
        weight: uint8 [out, steps, 64], contiguous: of 128 weights in a row the first 64 in the low halves, the others
            in the high ones; behind `in` there are zeros. levels: bfloat16 [out * in / group + 16, 2], contiguous:
            scale and centre of each `group` weights (32, 64 or 128), and numbers that may be read but are not used.
    """

    def __init__(self, weight: Tensor, levels: Tensor, group: int) -> None:
        super().__init__(weight, partial(_nibbles, group))
        self.levels, self._levels_address, self._group = levels, levels.data_ptr(), group

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map x, float32 [rows, in], contiguous, and a bias, float [out], to float32 [rows, out]."""
        run, y, added, parts = self._ready(x.shape[0], bias)
        numbers, by = _rounded(x, self.weight.shape[1] * NIBBLES)
        run(numbers, by, self._address, self._levels_address, y.numpy(), added, x.shape[1] // self._group, parts)
        return y

    def unpacked(self) -> Tensor:
        """Return the weight, bfloat16 [out, in], a tenth of the time that PyTorch's operations take."""
        levels = self.levels[:-16].float().view(self._outputs, -1, 2)
        bits = torch.empty(self._outputs, levels.shape[1] * self._group, dtype=torch.uint16)
        parts = torch.get_num_threads()
        _unpacking(parts > 1)(self.weight.numpy(), levels.numpy(), bits.numpy(), parts)
        return bits.view(torch.bfloat16)


def _rounded(x: Tensor, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x as int8 [rows, width], zeros behind the numbers, and what to multiply each row by."""
    numbers, by, rows = np.zeros((x.shape[0], width), np.int8), np.empty(x.shape[0], np.float32), x.numpy()
    rounding = compiled_rounding()
    assert rounding is not None, "asked for without Numba"
    rounding(rows, rows.view(np.int32), numbers, by)
    return numbers, by


@cache
def _floats(kind: str, block_rows: int, parallel: bool) -> Callable[..., None]:
    """Return the kernel of `Floats` for so many rows at a time."""
    import numba

    outputs = _OUTPUTS[block_rows]
    block = _block(kind, block_rows, outputs)

    def run(x, weight, y, bias, steps, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
        rows, width, several = y.shape[0], steps * VECTOR, parts if parallel else 1
        for part in numba.prange(several):
            begin, end = y.shape[1] * part // several, y.shape[1] * (part + 1) // several
            for output in range(begin, end, outputs):
                count = min(outputs, end - output)
                for first in range(0, rows, block_rows):
                    there = min(block_rows, rows - first)
                    sums = block(x + first * width, weight + output * width, steps, there, count)
                    for row in range(there):
                        for more in range(count):
                            y[first + row, output + more] = sums[row * outputs + more] + bias[output + more]

    return _compiled(run, parallel)


@cache
def _bytes(block_rows: int, parallel: bool) -> Callable[..., None]:
    """Return the kernel of `Bytes` for so many rows at a time."""
    import numba

    outputs = _OUTPUTS[block_rows]
    block = _block("int8", block_rows, outputs)

    def run(numbers, by, weight, y, scales, bias, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
        rows, width = numbers.shape
        several = parts if parallel else 1
        shift = np.empty(rows, np.int32)  # the weights are 128 too large
        for row in range(rows):
            total = np.int32(0)
            for place in range(width):
                total = np.int32(total + np.int32(numbers[row, place]))
            shift[row] = 128 * total
        x = numbers.ctypes.data
        for part in numba.prange(several):
            begin, end = y.shape[1] * part // several, y.shape[1] * (part + 1) // several
            for output in range(begin, end, outputs):
                count = min(outputs, end - output)
                for first in range(0, rows, block_rows):
                    there = min(block_rows, rows - first)
                    sums = block(x + first * width, weight + output * width, width // VECTOR, there, count)
                    for row in range(there):
                        for more in range(count):
                            own = np.float32(sums[row * outputs + more] - shift[first + row]) * by[first + row]
                            y[first + row, output + more] = own * scales[output + more] + bias[output + more]

    return _compiled(run, parallel)


@cache
def _nibbles(group: int, block_rows: int, parallel: bool) -> Callable[..., None]:
    """Return the kernel of `Nibbles` for so many rows at a time."""
    import numba

    outputs = _OUTPUTS[block_rows]
    block = _nibble_block(block_rows, outputs, group)

    def run(numbers, by, weight, levels, y, bias, groups, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
        rows, width = numbers.shape
        steps, several = width // NIBBLES, parts if parallel else 1
        totals = np.zeros((rows, (groups + 15) // 16 * 16), np.float32)  # of each group's numbers
        for row in range(rows):
            for place in range(groups):
                total = np.int32(0)
                for within in range(group):
                    total = np.int32(total + np.int32(numbers[row, place * group + within]))
                totals[row, place] = total
        x, totals_at = numbers.ctypes.data, totals.ctypes.data
        for part in numba.prange(several):
            begin, end = y.shape[1] * part // several, y.shape[1] * (part + 1) // several
            for output in range(begin, end, outputs):
                count = min(outputs, end - output)
                at, level = weight + output * steps * VECTOR, levels + output * groups * 4
                for first in range(0, rows, block_rows):
                    there = min(block_rows, rows - first)
                    total_at = totals_at + first * totals.shape[1] * 4
                    sums = block(x + first * width, total_at, at, level, steps, groups, there, count)
                    for row in range(there):
                        for more in range(count):
                            own = sums[row * outputs + more] * by[first + row]
                            y[first + row, output + more] = own + bias[output + more]

    return _compiled(run, parallel)


@cache
def _unpacking(parallel: bool) -> Callable[..., None]:
    """Return the kernel of `Nibbles.unpacked`."""
    import numba

    def run(weight, levels, bits, parts):  # type: ignore[no-untyped-def]  # pragma: no cover
        outputs, groups, _ = levels.shape
        inputs, several = bits.shape[1], parts if parallel else 1
        group = inputs // groups
        for part in numba.prange(several):
            row = np.empty(weight.shape[1] * NIBBLES, np.float32)
            row_bits = row.view(np.uint32)
            for output in range(outputs * part // several, outputs * (part + 1) // several):
                for step in range(weight.shape[1]):
                    for place in range(VECTOR):
                        row[step * NIBBLES + place] = np.float32(np.int32(weight[output, step, place] & 15) - 8)
                    for place in range(VECTOR):
                        row[step * NIBBLES + VECTOR + place] = np.float32(
                            np.int32(weight[output, step, place] >> 4) - 8
                        )
                for number in range(groups):
                    scale, centre = levels[output, number]
                    for place in range(number * group, (number + 1) * group):
                        row[place] = row[place] * scale + centre
                for place in range(inputs):  # round to the nearest, of two to the even one
                    odd = (row_bits[place] >> np.uint32(16)) & np.uint32(1)
                    bits[output, place] = np.uint16((row_bits[place] + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return _compiled(run, parallel)


def _compiled(run: Callable[..., None], parallel: bool) -> Callable[..., None]:
    """Return a kernel, from disk if it is there; `run` refers to `parallel`, by which the two are told apart there."""
    found: Callable[..., None] = kept(run, parallel=parallel, fastmath=_FASTMATH)
    return found


class _Loop:
    """LLVM's language for a loop over the vectors of a row: what it adds up, what it loads, what it calls."""

    def __init__(self, builder: Any, steps: Any) -> None:
        from llvmlite import ir

        self.ir, self.builder, self.steps = ir, builder, steps
        self.byte, self.int32, self.int64, self.float32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
        self.ints, self.floats = ir.VectorType(self.int32, 16), ir.VectorType(self.float32, 16)
        self._before = builder.block
        self._body, self._after = builder.append_basic_block("stream"), builder.append_basic_block("streamed")
        self._sums: list[Any] = []

    def begin(self, sums: Sequence[Any]) -> list[Any]:
        """Enter the loop with vectors that it adds to; return what they are in each step."""
        self.builder.branch(self._body)
        self.builder.position_at_end(self._body)
        self.step = self.builder.phi(self.int64)
        self.step.add_incoming(self.int64(0), self._before)
        self._sums = [self.builder.phi(vector.type) for vector in sums]
        for phi, vector in zip(self._sums, sums, strict=True):
            phi.add_incoming(vector, self._before)
        return self._sums

    def end(self, sums: Sequence[Any]) -> None:
        """Go round with the new sums until the steps are done."""
        following = self.builder.add(self.step, self.int64(1))
        for phi, value in zip((self.step, *self._sums), (following, *sums), strict=True):
            phi.add_incoming(value, self.builder.block)
        self.builder.cbranch(self.builder.icmp_signed("<", following, self.steps), self._body, self._after)
        self.builder.position_at_end(self._after)

    def none(self, kind: Any) -> Any:
        """Return a vector of zeros."""
        return self.ir.Constant(kind, None)

    def row(self, base: Any, stride: Any, number: int, rows: Any) -> Any:
        """Return where a row begins; of one that is not there, where the first does."""
        there = self.builder.icmp_signed("<", self.int64(number), rows)
        own = self.builder.add(base, self.builder.mul(stride, self.int64(number)))
        return self.builder.select(there, own, base)

    def load(self, address: Any, kind: Any) -> Any:
        """Load from any address."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), typ=kind)
        value.align = 1
        return value

    def fetch(self, address: Any) -> None:
        """Ask for what will be needed soon."""
        ahead = self.builder.inttoptr(self.builder.add(address, self.int64(_AHEAD)), self.byte.as_pointer())
        kinds = [self.byte.as_pointer(), self.int32, self.int32, self.int32]
        options = self.int32(0), self.int32(2), self.int32(1)  # to read, near, data
        self.call("llvm.prefetch.p0", self.ir.VoidType(), kinds, [ahead, *options])

    def call(self, name: str, result: Any, kinds: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """Call one of LLVM's own functions, or of a processor's."""
        module = self.builder.module
        function = module.globals.get(name) or self.ir.Function(module, self.ir.FunctionType(result, kinds), name)
        return self.builder.call(function, arguments)

    def dot_bytes(self, sums: Any, positive: Any, signed: Any) -> Any:
        """Add to each of 16 sums four products of a byte without and a byte with a sign."""
        return self.call("llvm.x86.avx512.vpdpbusd.512", self.ints, [self.ints] * 3, [sums, positive, signed])

    def fused(self, a: Any, b: Any, sums: Any) -> Any:
        """Return a * b + sums of vectors of floats."""
        return self.call("llvm.fma.v16f32", self.floats, [self.floats] * 3, [a, b, sums])

    def all_ints(self, number: int) -> Any:
        """Return a vector of one number."""
        return self.ir.Constant(self.ints, [number] * 16)

    def levels(self, pairs: Any) -> tuple[Any, Any]:
        """Return scales and centres of 16 pairs of bfloat16."""
        scale = self.builder.shl(pairs, self.all_ints(16))
        centre = self.builder.and_(pairs, self.all_ints(-65536))
        return self.builder.bitcast(scale, self.floats), self.builder.bitcast(centre, self.floats)

    def total(self, vector: Any) -> Any:
        """Return the sum of a vector."""
        if vector.type == self.ints:
            return self.call("llvm.vector.reduce.add.v16i32", self.int32, [self.ints], [vector])
        name, kinds = "llvm.vector.reduce.fadd.v16f32", [self.float32, self.floats]
        function = self.builder.module.globals.get(name) or self.ir.Function(
            self.builder.module, self.ir.FunctionType(self.float32, kinds), name
        )
        return self.builder.call(function, [self.float32(0.0), vector], fastmath=("reassoc",))


def _block(kind: str, rows: int, outputs: int) -> Any:
    """Return an intrinsic (x, weight, steps, rows and outputs that are there) -> [row * outputs + output] of sums of
    products.

    x and weight are addresses of rows of `steps` vectors: of float32, of pairs of bfloat16, or of bytes, those of the
    weight without a sign.
    """
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def block(context, x, weight, steps, there, count):  # type: ignore[no-untyped-def]
        found = types.UniTuple(types.int32 if kind == "int8" else types.float32, rows * outputs)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            x, weight, steps, there, count = arguments
            loop = _Loop(builder, steps)
            stride = builder.mul(steps, loop.int64(VECTOR))
            x_rows = [loop.row(x, stride, row, there) for row in range(rows)]
            weight_rows = [loop.row(weight, stride, output, count) for output in range(outputs)]
            sums = loop.begin([loop.none(loop.ints if kind == "int8" else loop.floats)] * (rows * outputs))
            read = loop.floats if kind == "float32" else loop.ints
            here = builder.mul(loop.step, loop.int64(VECTOR))
            places = [builder.add(row, here) for row in weight_rows]
            for place in places:
                loop.fetch(place)
            weights = [loop.load(place, read) for place in places]
            new = []
            for row, row_at in enumerate(x_rows):
                numbers = loop.load(builder.add(row_at, here), read)
                for output in range(outputs):
                    total = sums[row * outputs + output]
                    if kind == "float32":
                        new.append(loop.fused(numbers, weights[output], total))
                    elif kind == "bfloat16":
                        name, kinds = "llvm.x86.avx512bf16.dpbf16ps.512", [loop.floats, loop.ints, loop.ints]
                        new.append(loop.call(name, loop.floats, kinds, [total, numbers, weights[output]]))
                    else:
                        new.append(loop.dot_bytes(total, weights[output], numbers))
            loop.end(new)
            return context.make_tuple(builder, signature.return_type, [loop.total(vector) for vector in new])

        return found(*[types.int64] * 5), generate

    return _named(block, f"block of {kind} {rows} {outputs}")


def _nibble_block(rows: int, outputs: int, group: int) -> Any:
    """Return an intrinsic as `_block` does, for weights of 4 bits with levels.

    A step is 64 bytes: the low halves are multiplied with the first 64 numbers of x, the high ones with the next. The
    16 sums of four products that this gives belong to 32 weights each half of them, and get their scale. What all
    weights of a group have in common, centre - 8 scale, is then multiplied by the sum of the group's numbers.
    """
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def block(context, x, totals, weight, levels, steps, groups, there, count):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            x, totals, weight, levels, steps, groups, there, count = arguments
            loop = _Loop(builder, steps)
            ints, floats, vector = loop.ints, loop.floats, loop.int64(VECTOR)
            stride, wide = builder.mul(steps, vector), builder.mul(steps, loop.int64(NIBBLES))
            level_bytes = builder.mul(groups, loop.int64(4))
            weight_rows = [loop.row(weight, stride, output, count) for output in range(outputs)]
            level_rows = [loop.row(levels, level_bytes, output, count) for output in range(outputs)]
            x_rows = [loop.row(x, wide, row, there) for row in range(rows)]
            sums = list(loop.begin([loop.none(floats)] * (rows * outputs)))
            here, twice = builder.mul(loop.step, vector), builder.mul(loop.step, loop.int64(NIBBLES))
            level_here = builder.mul(loop.step, loop.int64(NIBBLES // group * 4))
            for output in range(outputs):
                place = builder.add(weight_rows[output], here)
                loop.fetch(place)
                pairs = loop.load(place, ints)
                for half in range(2):
                    values = builder.lshr(pairs, loop.all_ints(4)) if half else pairs
                    values = builder.and_(values, loop.all_ints(0x0F0F0F0F))
                    scale, _ = loop.levels(_of_half(loop, builder.add(level_rows[output], level_here), half, group))
                    for row in range(rows):
                        numbers = loop.load(
                            builder.add(builder.add(x_rows[row], twice), loop.int64(VECTOR * half)), ints
                        )
                        products = builder.sitofp(loop.dot_bytes(loop.none(ints), values, numbers), floats)
                        index = row * outputs + output
                        sums[index] = loop.fused(products, scale, sums[index])
            loop.end(sums)
            loop = _Loop(builder, builder.sdiv(builder.add(groups, loop.int64(15)), loop.int64(16)))
            total_rows = [loop.row(totals, builder.mul(loop.steps, vector), row, there) for row in range(rows)]
            sums = list(loop.begin(sums))
            here = builder.mul(loop.step, vector)
            for output in range(outputs):
                scale, centre = loop.levels(loop.load(builder.add(level_rows[output], here), ints))
                least = loop.fused(loop.ir.Constant(floats, [-8.0] * 16), scale, centre)
                for row in range(rows):
                    own = loop.load(builder.add(total_rows[row], here), floats)
                    sums[row * outputs + output] = loop.fused(own, least, sums[row * outputs + output])
            loop.end(sums)
            return context.make_tuple(builder, signature.return_type, [loop.total(vector) for vector in sums])

        found = types.UniTuple(types.float32, rows * outputs)
        return found(*[types.int64] * 8), generate

    return _named(block, f"block of int4 {rows} {outputs} {group}")


def _named(block: Any, name: str) -> Any:
    """Give an intrinsic the same name in every process: Numba makes one up, which its cache takes for another one."""
    if hasattr(block, "_set_uuid"):
        block._set_uuid(name)
    return block


def _of_half(loop: _Loop, level: Any, half: int, group: int) -> Any:
    """Return the levels of 64 weights, int32 [16]: of the first 32 eight times, then of the others."""
    ir, builder = loop.ir, loop.builder
    count = 2 if group == 32 else 1
    kind = ir.VectorType(loop.int32, count)
    found = loop.load(builder.add(level, loop.int64(half * 64 // group * 4)), kind)
    places = ir.Constant(loop.ints, [0] * 8 + [count - 1] * 8)
    return builder.shuffle_vector(found, ir.Constant(kind, ir.Undefined), places)
