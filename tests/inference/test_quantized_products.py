"""Rounded weights are within their bounds, and products with them are those of the rounded floats."""

import pytest
import torch
import torch.nn.functional as F

from stemma.inference import quantized_products, streaming
from stemma.inference.quantized_products import (
    GROUPS,
    Int4Product,
    Int8OnGPU,
    Int8Product,
    QuantizedLinear,
    StoredInt4,
    StoredInt8,
    StreamedInt4,
    StreamedInt8,
    make_product,
    round_int4,
    round_int8,
)
from stemma.inference.row_rounding import fastest_rounding, round_rows

needs_int8 = pytest.mark.skipif(not quantized_products._is_right(8, "cpu"), reason="no oneDNN product of int8 here")
needs_int4 = pytest.mark.skipif(not quantized_products._is_right(4, "cpu"), reason="no product of int4 here")

needs_streams = pytest.mark.skipif(
    not all(streaming.streams(kind) for kind in ("int8", "bfloat16")), reason="no kernels for this processor"
)


def weight_of(outputs: int, inputs: int) -> torch.Tensor:
    """Rows of very different sizes, one of them zero."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))
    weight *= torch.logspace(-6, 3, outputs).unsqueeze(1)
    weight[outputs // 2] = 0
    return weight


def test_int8_by_hand():
    values, scales = round_int8(torch.tensor([[12.7, -6.35, 0.04, 0.06], [0.0, 0.0, 0.0, 0.0]]))
    assert torch.allclose(scales, torch.tensor([0.1, 1.0]))
    assert values.tolist() == [[127, -64, 0, 1], [0, 0, 0, 0]]  # -63.5 goes to the even neighbour


def test_int4_by_hand():
    row = torch.arange(32.0).clamp_max(15).unsqueeze(0)  # 0 to 15 are exactly the sixteen levels
    values, levels = round_int4(row, 32)
    assert levels.tolist() == [[[1.0, 8.0]]] and values.tolist() == [row[0].long().tolist()]


def test_no_weight_moves_by_more_than_half_a_scale():
    weight = weight_of(96, 256)
    values, scales = round_int8(weight)
    error = (weight - StoredInt8(values, scales).weight()).abs()
    assert (error <= scales.unsqueeze(1) * 0.50001).all() and error.max() > 0.49 * scales.max()
    for group in GROUPS:
        values, levels = round_int4(weight, group)
        scale, centre = levels.float().unbind(-1)
        error = (weight - StoredInt4(values, levels).weight()).abs().unflatten(1, (-1, group))
        assert (error <= (scale / 2 + centre.abs() * 2**-8).unsqueeze(-1)).all()
        assert (error > 0.45 * scale.unsqueeze(-1)).any()


@pytest.mark.parametrize("kind", [Int8Product, pytest.param(StreamedInt8, marks=needs_streams)])
@pytest.mark.parametrize("outputs", [40, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 20])
@needs_int8
def test_int8_is_the_product_of_rounded_weights_and_rounded_rows(rows, dtype, outputs, kind):
    """Closed form: both sides as integers times their scales, in float64."""
    product = kind(*round_int8(weight_of(outputs, 96)))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 96, generator=generator).mul_(3).to(dtype)
    bias = torch.randn(outputs, generator=generator)
    scale = x.double().abs().amax(1, keepdim=True) / 127
    expected = ((x.double() / scale).round() * scale) @ product.weight().double().t() + bias.double()
    given = product(x, bias.to(dtype) if rows > 1 else bias)
    assert given.dtype == dtype
    # A number between two levels may be rounded either way: one level of one input at most.
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    level = (scale * product.weight().double().abs().amax(1)).clamp_min(1e-12)
    assert ((given.double() - expected).abs() <= tolerance * (expected.abs() + 1) + 1.01 * level).all()
    close = (given.double() - expected).abs() <= tolerance * (expected.abs() + 1)
    assert close.all(1).float().mean() > 0.9


@needs_streams
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("inputs", [128, 384, 640])
@pytest.mark.parametrize("rows", [1, 2, 4, 7, 20])
def test_streamed_int4_is_the_product_of_rounded_weights_and_rounded_rows(rows, inputs, group):
    """Closed form, as above."""
    weight = torch.randn(43, inputs, generator=torch.Generator().manual_seed(0)) + 1
    rounded = round_int4(weight, group)
    product, stored = StreamedInt4(*rounded), StoredInt4(*rounded)
    assert torch.equal(product.weight(), stored.weight())
    assert torch.equal(product._multiply.unpacked(), stored.weight().bfloat16())
    generator = torch.Generator().manual_seed(1)
    x, bias = torch.randn(rows, inputs, generator=generator), torch.randn(43, generator=generator)
    integers, scales = round_rows(x)
    expected = integers.double() * scales.double().unsqueeze(1) @ stored.weight().double().t() + bias.double()
    assert (product(x, bias).double() - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (product(x).double() - expected + bias).abs().max() < 1e-5 * expected.abs().max()


@needs_streams
@pytest.mark.parametrize("bits", [4, 8])
def test_many_rows_of_streamed_weights_are_multiplied_in_bfloat16(bits):
    kind, rounded = (
        (StreamedInt8, round_int8(weight_of(40, 192)))
        if bits == 8
        else (StreamedInt4, round_int4(weight_of(40, 192), 32))
    )
    product = kind(*rounded)
    x = torch.randn(2, 70, 192, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ product.weight().double().t()
    error = (product(x).double() - expected).abs() / expected.abs().amax((0, 1)).clamp_min(1e-12)
    assert product(x).shape == (2, 70, 40) and error.max() < 2**-7
    low = product(x.bfloat16(), torch.ones(40, dtype=torch.bfloat16))
    assert low.dtype == torch.bfloat16 and torch.allclose(low.float() - 1, product(x), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("outputs", [40, 128])
@pytest.mark.parametrize("rows", [1, 3, 80])
@needs_int4
def test_int4_is_the_product_of_rounded_weights(rows, outputs, group):
    """On both sides of the number of rows from which the weight is unpacked."""
    weight = torch.randn(outputs, 256, generator=torch.Generator().manual_seed(0))
    rounded = round_int4(weight, group)
    product, stored = Int4Product(*rounded), StoredInt4(*rounded)
    assert torch.equal(product.weight(), stored.weight())
    generator = torch.Generator().manual_seed(1)
    x, bias = torch.randn(2, rows // 2 + 1, 256, generator=generator), torch.randn(outputs, generator=generator)
    expected = x.double() @ stored.weight().double().t() + bias.double()
    given = product(x, bias)
    assert given.shape == (2, rows // 2 + 1, outputs)
    assert (given.double() - expected).abs().max() < 2**-7 * expected.abs().max()  # bfloat16
    assert (stored(x, bias).double() - expected).abs().max() < 1e-5 * expected.abs().max()


@needs_int8
def test_few_rows_of_a_narrow_weight_are_made_more(monkeypatch):
    """oneDNN has no fast code for them."""
    seen, own = [], Int8Product._multiply

    def multiply(self, rounded, *others):
        seen.append(len(rounded))
        return own(self, rounded, *others)

    monkeypatch.setattr(Int8Product, "_multiply", multiply)
    for outputs in (256, 320):
        product = Int8Product(*round_int8(torch.randn(outputs, 96)))
        for rows in (1, 7, 9):
            assert product(torch.randn(rows, 96)).shape == (rows, outputs)
    assert seen == [8, 8, 9, 1, 7, 9]


@needs_int8
def test_rows_do_not_depend_on_their_batch():
    product = make_product(weight_of(64, 96), 8, 32)
    x = torch.randn(9, 96, generator=torch.Generator().manual_seed(1))
    together = product(x)
    assert all(
        torch.allclose(product(row.unsqueeze(0))[0], both, rtol=1e-5) for row, both in zip(x, together, strict=True)
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_and_nonsense(bits):
    product = make_product(torch.randn(32, 64), bits, 32)
    assert product(torch.empty(0, 64)).shape == (0, 32)
    assert torch.equal(product(torch.zeros(2, 64)), torch.zeros(2, 32))
    for rows in (1, 2):
        x = torch.ones(rows, 64)
        x[0, 3] = float("nan")
        assert product(x)[0].isnan().all(), "a state that is no number must not become one"


def test_the_product_that_gpus_have_is_right_where_a_cpu_has_it_too():
    rounded = round_int8(weight_of(64, 96))
    x, bias = torch.randn(2, 5, 96), torch.randn(64)
    ours, plain = Int8OnGPU(*rounded)(x, bias), StoredInt8(*rounded)(x, bias)
    assert ours.shape == (2, 5, 64)
    assert ((ours - plain).abs().amax((0, 1)) < 2**-6 * plain.abs().amax((0, 1)) + 1e-6).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("bits", [4, 8])
def test_on_a_gpu(bits):
    product = make_product(weight_of(64, 256).cuda(), bits, 64)
    x = torch.randn(5, 256, device="cuda", dtype=torch.bfloat16)
    expected = x.double() @ product.weight().double().t()
    assert (product(x).double() - expected).abs().max() < 2**-6 * expected.abs().max()


def test_groups_fit_the_row():
    for inputs, group, kept in ((192, 128, 64), (96, 64, 32), (256, 128, 128)):
        product = make_product(torch.randn(64, inputs), 4, group)
        values, levels = round_int4(product.weight(), kept)
        assert torch.equal(StoredInt4(values, levels).weight(), product.weight()), "rounding again changes nothing"
        assert 0 <= product.bytes - (64 * inputs // 2 + 64 * inputs // kept * 4) <= 64 * 64 // 2 + 64, (
            "a step, 16 levels"
        )
    assert isinstance(make_product(torch.randn(64, 48), 4, 32), Int8Product | StreamedInt8 | StoredInt8)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_operator_that_is_wrong_or_missing_is_not_used(bits, monkeypatch):
    kind = quantized_products._fast(bits, "cpu")
    check = quantized_products._is_right.__wrapped__
    call = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, x, bias=None: call(self, x, bias).clamp_max(30))  # saturates
    assert not check(bits, "cpu")

    def missing(self, *_):
        raise AttributeError("'_OpNamespace' object has no attribute")

    monkeypatch.setattr(kind, "__init__", missing)
    assert not check(bits, "cpu")
    assert not check(bits, "mps")
    monkeypatch.setattr(quantized_products, "_is_right", lambda *_: False)
    assert isinstance(make_product(torch.randn(32, 64), bits, 32), StoredInt4 if bits == 4 else StoredInt8)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_weight_stands_where_a_weight_was(bits):
    linear = QuantizedLinear(torch.randn(64, 32), torch.randn(64), bits, 32)
    weight = linear.weight
    assert (len(weight), weight.shape, weight.dtype, weight.device.type) == (64, (64, 32), torch.float32, "cpu")
    assert weight.numel() == 64 * 32 and weight.itemsize == 4
    x = torch.randn(3, 32)
    assert torch.equal(F.linear(x, weight, linear.bias), linear(x))
    assert torch.equal(x @ weight.t(), x @ linear.product.weight().t())
    assert torch.equal(torch.mm(x, weight.t()), x @ weight.dequantized().t())
    assert torch.equal(weight[3:5], linear.product.weight()[3:5])


def test_rows_are_rounded_alike_with_and_without_numba():
    rows = torch.randn(40, 200, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 40).unsqueeze(1)
    rows[7], rows[8, 3], rows[9, 3] = 0, float("nan"), float("inf")
    (ours, our_scales), (plain, scales) = fastest_rounding()(rows), round_rows(rows)
    assert fastest_rounding() is not round_rows
    assert torch.allclose(our_scales, scales, rtol=1e-6, equal_nan=True)
    whole = scales.isfinite()
    assert not whole[8] and not whole[9] and whole.sum() == 38
    different = (ours.int() - plain.int())[whole]
    assert different.abs().max() <= 1 and (different != 0).float().mean() < 1e-3
    expected = (rows.double() / (rows.double().abs().amax(1, keepdim=True) / 127)).round().nan_to_num()
    assert ((plain.double() - expected)[whole] != 0).float().mean() < 1e-3 and not ours[7].any()


def test_without_numba_products_are_right_too(monkeypatch):
    monkeypatch.setattr(quantized_products, "fastest_rounding", lambda: round_rows)
    monkeypatch.setattr(streaming, "streams", lambda kind: False)
    weight, x = torch.randn(64, 96), torch.randn(5, 96)
    with_torch = make_product(weight, 8, 32)(x)
    monkeypatch.undo()
    assert (with_torch - make_product(weight, 8, 32)(x)).abs().max() < 0.1
    assert (with_torch - x @ weight.t()).std() < 0.02 * with_torch.std()
