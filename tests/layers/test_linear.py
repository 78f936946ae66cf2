"""`Linear` against PyTorch's own, in value, gradient and where it must step aside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stemma.layers import linear as module
from stemma.layers.linear import Linear, linear


@pytest.fixture(autouse=True, params=["oneDNN", "PyTorch's own"])
def road(request, monkeypatch):
    """Both roads on every processor."""
    monkeypatch.setattr(module, "_made_by_intel", lambda: request.param != "oneDNN")


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients(shape, bias):
    torch.manual_seed(0)
    ours, theirs = Linear(7, 11, bias=bias), nn.Linear(7, 11, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    left, right = ours(x), theirs(y)
    torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)
    (left**2).sum().backward()
    (right**2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


def test_gradients_that_nobody_asked_for_are_not_computed():
    layer = Linear(4, 4)
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 3.0))


def test_a_slice_of_a_transposed_weight():
    torch.manual_seed(0)
    weight, x = torch.randn(9, 5), torch.randn(4, 9)
    torch.testing.assert_close(linear(x, weight.t()[1:4]), x @ weight[:, 1:4], atol=1e-5, rtol=1e-5)


def test_autocast_is_left_to_pytorch():
    layer, x = Linear(8, 8), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    expected = F.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16())
    torch.testing.assert_close(output, expected)


def test_other_types_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(module, "_product", None)  # calling it would fail
    x, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(linear(x, weight), x @ weight.t())
