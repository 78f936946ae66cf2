"""The loss of soft targets against closed forms."""

import math

import pytest
import torch

from stemma.layers.soft_targets import soft_target_loss, soften, with_hard_targets


def test_of_two_classes_by_hand() -> None:
    """p = softmax(0, 2 log 3 / 2) = (1/4, 3/4), q = (1/2, 1/2): 4 * (log 2 - entropy of p)."""
    teacher = torch.tensor([[0.0, 2 * math.log(3)]], dtype=torch.float64)
    loss = soft_target_loss(torch.zeros(1, 2, dtype=torch.float64), soften(teacher, 2.0), 2.0)
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert loss.tolist() == pytest.approx([4 * divergence])


def test_the_gradient_tends_to_that_of_matching_logits() -> None:
    """Section 2.1: (z_i - v_i) / classes at a high temperature, for logits whose mean is 0."""
    torch.manual_seed(0)
    ours = torch.randn(8, 10, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(8, 10, dtype=torch.float64)
    limit = (ours.detach() - ours.detach().mean(-1, keepdim=True) - teacher + teacher.mean(-1, keepdim=True)) / 10
    errors = []
    for temperature in (1.0, 20.0, 1000.0):
        (gradient,) = torch.autograd.grad(soft_target_loss(ours, soften(teacher, temperature), temperature).sum(), ours)
        errors.append(float((gradient - limit).norm() / limit.norm()))
    assert errors[0] > 0.2 > 0.1 > errors[1] > 0.01 > errors[2]


def test_nothing_is_left_to_learn_from_oneself() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.5]], requires_grad=True)
    loss = soft_target_loss(logits, soften(logits.detach(), 3.0), 3.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_one_number_an_example(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, dtype=torch.bfloat16)
    loss = soft_target_loss(logits, soften(logits.flip(-1)))
    assert loss.shape == shape[:-1] and loss.dtype == torch.float32


def test_a_high_temperature_keeps_float32s_digits() -> None:
    logits = torch.tensor([1000.0, 1000.5])
    expected = torch.log_softmax(logits.double() / 1000, -1)
    assert (soften(logits, 1000.0).double() - expected).abs().max() < 1e-7


def test_the_mixture() -> None:
    assert with_hard_targets(torch.tensor([2.0]), torch.tensor([6.0]), 0.25).tolist() == [3.0]
