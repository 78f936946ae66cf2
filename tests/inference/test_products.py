"""Every product against float64 arithmetic on the same numbers."""

import pytest
import torch

from stemma.inference import streaming
from stemma.inference.products import OneDNNProduct, SplitProduct, StreamedProduct, available, fastest, pack

pytestmark = pytest.mark.skipif(not available(torch.float32), reason="this build of PyTorch has no oneDNN")
needs_streams = pytest.mark.skipif(not streaming.streams("bfloat16"), reason="no kernels for this processor")

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


@needs_streams
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(384, 128), (130, 384), (7, 32), (600, 1024)])
def test_streamed_product(shape, biased, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight = numbers(*shape).to(dtype)
    bias = numbers(shape[0], seed=2).to(dtype) if biased else None
    product = pack(StreamedProduct, weight, bias, 1)
    assert (
        isinstance(product, StreamedProduct) and product._multiply.weight.data_ptr() == weight.data_ptr()
    )  # no second copy
    for rows in (0, 1, 2, 3, 5, 8):
        x = numbers(rows, 1, shape[1], seed=rows).to(dtype)
        y = product(x)
        assert y.shape == (rows, 1, shape[0]) and y.dtype == dtype
        near = {"atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-4}
        assert torch.allclose(y.double(), exact(x, weight, bias), **near)


@needs_streams
def test_what_is_no_number_is_seen_in_streamed_products():
    x = numbers(3, 64)
    x[1, 5], x[2, 7] = torch.nan, torch.inf
    y = StreamedProduct(numbers(32, 64).abs(), None)(x)
    assert y[0].isfinite().all() and y[1].isnan().all() and y[2].isinf().all()


def test_what_cannot_be_streamed():
    for weight in (numbers(64, 65), numbers(64, 64).t()):
        with pytest.raises(ValueError, match="cannot be streamed"):
            StreamedProduct(weight, None)
        assert isinstance(pack(StreamedProduct, weight, None, 1), OneDNNProduct)


@pytest.mark.parametrize("streamed", [True, False])
def test_the_product_for_the_number_of_rows(streamed, monkeypatch):
    monkeypatch.setattr(streaming, "streams", lambda kind: streamed and kind in ("float32", "bfloat16"))
    assert fastest(torch.float32, 9) is fastest(torch.bfloat16, 9) is OneDNNProduct
    if streamed:
        assert {fastest(dtype, rows) for dtype in (torch.float32, torch.bfloat16) for rows in (1, 8)} == {
            StreamedProduct
        }
    else:
        assert fastest(torch.float32, 1) is (SplitProduct if torch.backends.mkl.is_available() else OneDNNProduct)
        assert fastest(torch.float32, 2) is fastest(torch.bfloat16, 1) is OneDNNProduct
