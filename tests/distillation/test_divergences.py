"""Divergences and their gradients, against their definitions, finite differences and the limits."""

import pytest
import torch
import torch.nn.functional as F

from stemma.distillation.divergences import divergence, logit_gradient
from stemma.distillation.linear_divergence import SoftLoss, linear_divergence
from stemma.layers import cross_entropy
from stemma.layers.soft_targets import soft_target_loss, soften

KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1)]


def logits(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(p, q, kind, beta):
    if kind == "forward":
        return (p * (p / q).log()).sum(-1)
    if kind == "reverse":
        return (q * (q / p).log()).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_values_and_gradients(kind, beta):
    z, v = logits(0, 6, 9).requires_grad_(), logits(1, 6, 9)
    log_p = v.log_softmax(-1)
    expected = by_hand(v.softmax(-1), z.softmax(-1), kind, beta)
    torch.testing.assert_close(divergence(log_p, z.log_softmax(-1), kind, beta), expected)
    (gradient,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(logit_gradient(log_p, z.detach().log_softmax(-1), kind, beta), gradient)
    agreed = z.detach().log_softmax(-1)
    assert float(divergence(agreed, agreed, kind, beta).abs().max()) < 1e-15
    assert float(logit_gradient(agreed, agreed, kind, beta).abs().max()) < 1e-15


def test_what_the_teacher_cannot_say_has_no_part():
    log_p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    log_q = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert float(divergence(log_p, log_q)) == pytest.approx(0.6931472, abs=1e-6)
    assert float(divergence(log_p, log_q, "reverse")) == float("inf")
    half = 0.5 * 0.2876821 + 0.5 * (0.5 * -0.4054651 + 0.5 * 0.6931472)  # m = .375, .375, .25
    assert float(divergence(log_p, log_q, "jsd")) == pytest.approx(half, abs=1e-6)


def test_forward_covers_and_reverse_seeks():
    """A bell that stands for a mixture of two: between both by the forward, at one of them by the reverse."""
    x = torch.arange(-40, 41, dtype=torch.float64) / 4
    two = torch.logaddexp(-((x - 5) ** 2) / 2, -((x + 5) ** 2) / 2 - 0.5).log_softmax(-1)
    bells = (-((x - x[:, None]) ** 2) / 2 - 1e-12).log_softmax(-1)  # a row for each place
    forward = divergence(two.expand(81, -1), bells).argmin()
    reverse = divergence(two.expand(81, -1), bells, "reverse").argmin()
    assert abs(float(x[forward])) < 2 and abs(float(x[reverse]) - 5) < 0.5


@pytest.mark.parametrize(("temperature", "error"), [(1, 0.1), (20, 0.05), (1000, 0.01)])
def test_a_high_temperature_matches_logits(temperature, error):
    z, v = logits(2, 8, 10).requires_grad_(), logits(3, 8, 10)
    (gradient,) = torch.autograd.grad(soft_target_loss(z, soften(v, temperature), temperature).sum(), z)
    centred = [one - one.mean(-1, keepdim=True) for one in (z.detach(), v)]
    limit = (centred[0] - centred[1]) / 10
    relative = float((gradient - limit).norm() / limit.norm())
    assert (relative < error) == (temperature > 1)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (1.0, 0.3), (2.0, 1.0), (2.0, 0.3)])
def test_in_chunks_it_is_the_same(kind, beta, temperature, weight, monkeypatch):
    monkeypatch.setattr("stemma.distillation.linear_divergence.CHUNK_BYTES", 1)  # 64 rows
    hidden, matrix, bias = (logits(seed, *shape).float() for seed, shape in ((4, (150, 8)), (5, (40, 8)), (6, (40,))))
    teacher, targets = logits(7, 150, 40).float(), torch.arange(150) % 40
    asked = []

    def say(place, student):
        asked.append(student.shape)
        return soften(teacher[place], temperature)

    parts = [part.clone().requires_grad_() for part in (hidden, matrix, bias)]
    options = SoftLoss(kind, beta, temperature, weight)
    loss, soft, hard = linear_divergence(parts[0], parts[1], say, targets, options, bias=parts[2], divisor=50)
    found = torch.autograd.grad(3 * loss, parts)
    assert asked == [(64, 40), (64, 40), (22, 40)]
    z = F.linear(parts[0], parts[1], parts[2])
    p, q = (teacher / temperature).softmax(-1), (z / temperature).softmax(-1)
    expected_soft = temperature**2 * by_hand(p, q, kind, beta).sum() / 50
    expected_hard = F.cross_entropy(z, targets, reduction="sum") / 50
    expected = weight * expected_soft + (1 - weight) * expected_hard
    for ours, theirs in zip((loss, soft, hard), (expected, expected_soft, expected_hard), strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    for ours, theirs in zip(found, torch.autograd.grad(3 * expected, parts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        without = linear_divergence(*parts[:2], say, targets, options, bias=parts[2], divisor=50)[0]
    assert float(without) == pytest.approx(float(loss)) and not without.requires_grad


def test_labels_alone_are_the_cross_entropy():
    hidden, matrix = logits(8, 30, 8).float(), logits(9, 20, 8).float()
    targets = torch.arange(30) % 20
    loss = linear_divergence(hidden, matrix, lambda place, q: q, targets, SoftLoss(weight=0.0), divisor=30)[0]
    expected = cross_entropy.linear_cross_entropy(hidden, matrix, targets)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
