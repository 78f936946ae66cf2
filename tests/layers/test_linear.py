"""`Linear` against PyTorch's own, in value, gradient and where it must step aside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stemma.layers import linear as module
from stemma.layers.linear import Linear, linear, rounded_up


@pytest.fixture(autouse=True, params=["oneDNN", "PyTorch's own"])
def road(request, monkeypatch):
    """Both roads on every processor."""
    monkeypatch.setattr(module, "_made_by_intel", lambda: request.param != "oneDNN")


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7), (3, 37, 7)])
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


def test_rows_are_rounded_up_to_few_numbers():
    rounded = [rounded_up(rows) for rows in range(5000)]
    assert all(rows <= more <= rows * 9 / 8 for rows, more in enumerate(rounded))
    assert rounded[:17] == list(range(17))
    assert all(len({more for more in rounded if low < more <= 2 * low}) == 8 for low in (16, 64, 2048))


@pytest.mark.parametrize("rows", [1, 16, 100, 333])
def test_low_precision_sees_few_numbers_of_rows_and_gives_the_same(rows):
    torch.manual_seed(0)
    layer, x = Linear(32, 48), torch.randn(1, rows, 32, requires_grad=True)
    with torch.profiler.profile(record_shapes=True) as profile, torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
        (output.float() ** 2).sum().backward()
    given = [event.input_shapes for event in profile.events() if event.name in ("aten::addmm", "aten::mm")]
    sizes = {size for shapes in given for shape in shapes for size in shape}
    assert len(given) == 3 and rounded_up(rows) in sizes and (rows == rounded_up(rows) or rows not in sizes)
    weight = layer.weight.detach().clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    expected = F.linear(y.bfloat16(), weight.bfloat16(), layer.bias.detach().bfloat16())
    (expected.float() ** 2).sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(x.grad, y.grad, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(layer.weight.grad, weight.grad, atol=2e-1, rtol=2e-2)
