"""Every product against float64 arithmetic on the same numbers."""

import pytest
import torch

from stemma.inference.products import HalfProduct, OneDNNProduct, SplitProduct, available, fastest, pack

pytestmark = pytest.mark.skipif(not available(torch.float32), reason="this build of PyTorch has no oneDNN")
needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this build of PyTorch has no FBGEMM"
)

SHAPES = [(384, 128), (128, 384), (128, 128), (257, 64), (50, 70), (301, 300)]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x, weight, bias):
    result = x.double() @ weight.double().T
    return result if bias is None else result + bias.double()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_split_product(shape, biased, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight, x = numbers(*shape), numbers(1, 1, shape[1], seed=1)
    bias = numbers(shape[0], seed=2) if biased else None
    product = SplitProduct(weight, bias)
    y = product(x)
    assert y.shape == (1, 1, shape[0]) and product(x[0]).shape == (1, shape[0])
    assert torch.allclose(y.double(), exact(x, weight, bias), atol=1e-4)
    assert len(product.parts) == max(1, min(threads, shape[0] // 64)) or shape[0] <= shape[1]
    if shape[0] <= shape[1]:  # used as it lies: no second copy
        assert product.parts.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("rows", [1, 3, 8, 70])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_onednn_product(shape, biased, rows):
    weight, x = numbers(*shape), numbers(rows, shape[1], seed=1)
    bias = numbers(shape[0], seed=2) if biased else None
    product = OneDNNProduct(weight, bias, 8)
    assert torch.allclose(product(x).double(), exact(x, weight, bias), atol=1e-4)
    assert torch.equal(product.weight(), weight)
    fused = OneDNNProduct(weight, bias, 8, "gelu_tanh")(x).double()
    assert torch.allclose(fused, torch.nn.functional.gelu(exact(x, weight, bias), approximate="tanh"), atol=1e-4)


@needs_fbgemm
@pytest.mark.parametrize("size", [1e-6, 0.02, 3e4])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_product_is_exact_for_bfloat16_weights(shape, rows, size):
    weight = (size * numbers(*shape)).bfloat16()
    weight[0, :3] = torch.tensor([0.0, 1e-7 * size, -3e-6 * size])
    x, bias = numbers(rows, shape[1], seed=1), (size * numbers(shape[0], seed=2)).bfloat16()
    product = HalfProduct(weight, bias)
    expected = exact(x, weight, bias)
    assert torch.allclose(product(x).double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    low = product(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, HalfProduct(weight, bias)(x.bfloat16().float()).bfloat16())


@needs_fbgemm
def test_half_product_refuses_what_float16_cannot_hold():
    weight = torch.ones(64, 64, dtype=torch.bfloat16)
    weight[3, 4] = 1e-12
    with pytest.raises(ValueError, match="float16 cannot hold this weight"):
        HalfProduct(weight, None)
    assert isinstance(pack(HalfProduct, weight, None, 1), OneDNNProduct)
    weight[3, 4] = 0.0
    assert isinstance(pack(HalfProduct, weight, None, 1), HalfProduct)


@pytest.mark.parametrize("tiles", [True, False])
def test_the_product_for_the_number_of_rows(tiles, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert fastest(torch.float32, 1) is (SplitProduct if torch.backends.mkl.is_available() else OneDNNProduct)
    assert fastest(torch.float32, 2) is fastest(torch.bfloat16, 8) is OneDNNProduct
    if "fbgemm" in torch.backends.quantized.supported_engines:
        assert fastest(torch.bfloat16, 4) is (OneDNNProduct if tiles else HalfProduct)
