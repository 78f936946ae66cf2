"""`LoRALinear` against the formula of the paper, merged and not."""

import pytest
import torch

from stemma.layers.linear import Linear
from stemma.layers.lora import LoRALinear


def adapted(bias: bool = True, dtype: torch.dtype = torch.float32, **options: float) -> LoRALinear:
    torch.manual_seed(0)
    layer = LoRALinear(Linear(7, 11, bias=bias).to(dtype), 3, 5.0, **options)
    torch.nn.init.normal_(layer.b)
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_value_and_effective_weight(bias):
    layer, x = adapted(bias), torch.randn(2, 4, 7)
    expected = layer.base(x) + x @ layer.a.T @ layer.b.T * 5 / 3
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.nn.functional.linear(x, layer.weight, layer.bias), expected, atol=1e-5, rtol=1e-5)


def test_it_begins_as_its_base_and_in_its_mode():
    base = Linear(7, 11).eval()
    layer, x = LoRALinear(base, 3, 5.0, dropout=0.5), torch.randn(4, 7)
    torch.testing.assert_close(layer(x), base(x), atol=0, rtol=0)
    assert not layer.training and layer.a.abs().max() <= 7**-0.5  # Kaiming's bound with a = sqrt(5)


def test_gradients_reach_the_update_only():
    layer = adapted()
    layer(torch.randn(4, 7)).square().sum().backward()
    assert layer.base.weight.grad is None and layer.base.bias.grad is None
    assert layer.a.grad.abs().sum() > 0 and layer.b.grad.abs().sum() > 0


def test_merge_and_unmerge():
    layer, x = adapted(), torch.randn(4, 7)
    weight, before = layer.base.weight.clone(), layer(x)
    for _ in range(2):  # a second time changes nothing
        layer.merge()
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.weight, layer.base.weight, atol=0, rtol=0)
    for _ in range(2):
        layer.unmerge()
    torch.testing.assert_close(layer.base.weight, weight, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(layer(x), before, atol=1e-5, rtol=1e-5)


def test_dropout_is_of_the_updates_input_only():
    layer, x = adapted(dropout=0.999999), torch.randn(4, 7)
    torch.testing.assert_close(layer(x), layer.base(x), atol=0, rtol=0)
    assert not torch.equal(layer.eval()(x), layer.base(x))


def test_the_update_of_a_map_in_half_precision_is_not():
    layer = adapted(dtype=torch.bfloat16)
    assert layer.a.dtype == torch.float32
    assert layer(torch.randn(4, 7, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert adapted()(torch.randn(4, 7)).dtype == torch.bfloat16
