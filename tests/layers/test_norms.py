"""RMSNorm against its formula in float64 and T5's layer norm in transformers."""

import pytest
import torch

from stemma.layers import norms
from stemma.layers.norms import RMSNorm


def formula(x, weight, epsilon):
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 4, 7)])
@pytest.mark.parametrize("chunk", [1, 21, 10**6])
def test_value_and_gradients(shape, chunk, monkeypatch):
    monkeypatch.setattr(norms, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    norm = RMSNorm(7, epsilon=0.1)
    norm.weight.data.normal_()
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
    exact, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    output, expected = norm(x), formula(exact, weight, 0.1)
    torch.testing.assert_close(output.double(), expected, atol=1e-6, rtol=1e-6)
    output.backward(grad)
    expected.backward(grad.double())
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(norm.weight.grad.double(), weight.grad, atol=1e-6, rtol=1e-5)


def test_gradients_of_a_transposed_input():
    torch.manual_seed(0)
    norm = RMSNorm(6).double()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: norm(x.t()), (x,))


def test_it_is_t5s_layer_norm_and_low_precision_is_averaged_in_float32():
    from transformers.models.t5.modeling_t5 import T5LayerNorm as layer_norm

    torch.manual_seed(0)
    ours, theirs = RMSNorm(64), layer_norm(64)
    ours.weight.data.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(9, 64) * 3
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-6)
        low = ours.bfloat16()(x.bfloat16())
    torch.testing.assert_close(low.float(), theirs(x), atol=0.05, rtol=0.02)
