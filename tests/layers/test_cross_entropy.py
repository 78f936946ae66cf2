"""The chunked cross-entropy against `F.cross_entropy` on whole logits."""

import pytest
import torch
import torch.nn.functional as F

from stemma.layers import cross_entropy
from stemma.layers.cross_entropy import linear_cross_entropy

TOKENS, HIDDEN, VOCABULARY = 300, 16, 97


def problem(ignored: float):
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN, requires_grad=True)
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[torch.rand(TOKENS) < ignored] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("ignored", [0.0, 0.4])
@pytest.mark.parametrize("divisor", [None, 1000])
def test_value_and_gradients_over_several_chunks(monkeypatch, ignored, divisor):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 64 * 4 * VOCABULARY)  # five chunks, the last one short
    hidden, weight, targets = problem(ignored)
    loss = linear_cross_entropy(hidden, weight, targets, divisor=divisor)
    (3 * loss).backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum") / (divisor or (targets >= 0).sum())
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours[0], hidden.grad, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("needed", [(True, True, True), (False, False, True), (True, True, False)])
def test_a_bias(monkeypatch, needed):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 64 * 4 * VOCABULARY)
    hidden, weight, targets = problem(0.4)
    bias = torch.randn(VOCABULARY, requires_grad=True)
    inputs = [tensor for tensor, wanted in zip((hidden, weight, bias), needed, strict=True) if wanted]
    for tensor, wanted in zip((hidden, weight, bias), needed, strict=True):
        tensor.requires_grad_(wanted)
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias, divisor=77)
    expected = F.cross_entropy(hidden @ weight.t() + bias, targets, reduction="sum") / 77
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    gradients = zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_all_targets_ignored_is_zero_with_zero_gradients():
    hidden, weight, targets = problem(1.1)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss == 0 and not hidden.grad.any() and not weight.grad.any()


def test_autocast_stays_near_float32():
    hidden, weight, targets = problem(0.0)
    expected = linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.01)


def test_logits_are_never_held_whole(monkeypatch):
    """The largest tensor that the function makes is a chunk, or a gradient, never [tokens, vocabulary]."""
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 64 * 4 * VOCABULARY)
    hidden, weight, targets = problem(0.0)
    with torch.profiler.profile(record_shapes=True) as profile:
        linear_cross_entropy(hidden, weight, targets).backward()
    shapes = [shape for event in profile.events() for shape in event.input_shapes]
    assert [64, VOCABULARY] in shapes and [TOKENS, VOCABULARY] not in shapes


@pytest.mark.parametrize("side", [0, 1])
def test_only_one_side_needs_a_gradient(side):
    *tensors, targets = problem(0.3)
    expected = torch.autograd.grad(F.cross_entropy(tensors[0] @ tensors[1].t(), targets), tensors[side])
    tensors[1 - side] = tensors[1 - side].detach()
    ours = torch.autograd.grad(linear_cross_entropy(tensors[0], tensors[1], targets), tensors[side])
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_no_gradient_is_formed_without_grad_mode(monkeypatch):
    hidden, weight, targets = problem(0.3)
    expected = linear_cross_entropy(hidden, weight, targets)
    monkeypatch.setattr(torch.Tensor, "scatter_add_", None)  # what forming the gradient needs
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets) == expected.detach()
    with pytest.raises(TypeError):
        linear_cross_entropy(hidden, weight, targets)


@pytest.mark.parametrize("biased", [False, True])
def test_label_smoothing(monkeypatch, biased):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 64 * 4 * VOCABULARY)
    hidden, weight, targets = problem(0.4)
    bias = torch.randn(VOCABULARY, requires_grad=True) if biased else None
    inputs = [hidden, weight, *([bias] if biased else [])]
    loss = linear_cross_entropy(hidden, weight, targets, bias=bias, label_smoothing=0.3)
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, label_smoothing=0.3)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


def test_in_low_precision_any_number_of_targets_is_computed_as_one_of_few():
    torch.manual_seed(0)
    hidden, weight = torch.randn(77, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True)
    targets = torch.randint(50, (77,))
    targets[::3] = -100  # 51 are left
    with torch.profiler.profile(record_shapes=True) as profile, torch.autocast("cpu", torch.bfloat16):
        ours = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    sizes = {size for event in profile.events() if event.name == "aten::mm" for s in event.input_shapes for size in s}
    assert 52 in sizes and 51 not in sizes
    expected = torch.autograd.grad(F.cross_entropy(hidden @ weight.t(), targets), (hidden, weight))
    torch.testing.assert_close(ours, expected, atol=5e-3, rtol=5e-2)
