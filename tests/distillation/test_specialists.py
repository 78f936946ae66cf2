"""Specialists: what is confused, the dustbin, and the distribution that agrees with all of them."""

import numpy as np
import pytest
import torch

from stemma.distillation.specialists import Specialist, combine, confusion_clusters, dustbin_correction
from stemma.errors import InputError


def probabilities(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def test_what_is_confused_stands_together():
    rng = np.random.default_rng(0)
    groups = [[0, 5, 7], [1, 2, 8], [3, 4, 6]]
    predictions = np.full((600, 9), 0.01)
    for row in predictions:
        group = groups[rng.integers(3)]
        row[group] += rng.dirichlet([2, 2, 2])
    predictions /= predictions.sum(1, keepdims=True)
    assert confusion_clusters(predictions, 3, size=3, seed=1) == groups
    with pytest.raises(InputError, match="10 specialists of 3 classes: there are only 9 classes"):
        confusion_clusters(predictions, 10, size=3, seed=1)


def test_a_specialist_that_learned_nothing_returns_the_data_s_shares():
    trained, natural = 0.5, 0.05
    logits = torch.tensor([trained, 1 - trained]).log()
    logits[-1] += dustbin_correction(natural, trained)
    assert float(logits.softmax(-1)[0]) == pytest.approx(natural)


def objective(q, g, specialists, outputs):
    total = (g * (g / q).log()).sum(-1)
    for one, says in zip(specialists, outputs, strict=True):
        cells = torch.zeros_like(says).index_add(1, one.cells(g.shape[1]), q)
        total = total + (says * (says / cells).log()).sum(-1)
    return total


def test_it_is_the_minimum():
    g, specialists = probabilities(0, 3, 8), [Specialist([0, 1, 2]), Specialist([2, 5])]
    outputs = [probabilities(1, 3, 4), probabilities(2, 3, 3)]
    found = combine(g, specialists, outputs, asked=8, steps=3000, tolerance=1e-14)
    z = g.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([z], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = objective(z.softmax(-1), g, specialists, outputs).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(found, z.detach().softmax(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, dtype=torch.float64))
    before = torch.tensor(float("inf"))
    for steps in range(1, 12):
        q = combine(g, specialists, outputs, asked=8, steps=steps)
        now = objective(q, g, specialists, outputs).sum()
        assert now <= before + 1e-12
        before = now


def test_who_agrees_or_is_not_asked_changes_nothing():
    g = torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]], dtype=torch.float64)
    assert torch.equal(combine(g, [], []), g)
    one = Specialist([2, 3])
    agrees = torch.stack([g[:, 2], g[:, 3], g[:, :2].sum(1)], 1)
    torch.testing.assert_close(combine(g, [one], [agrees]), g)
    nothing = torch.tensor([[1e-9, 1e-9, 1.0]] * 2, dtype=torch.float64)
    found = combine(g, [one], [nothing], steps=500)
    torch.testing.assert_close(found[0], g[0])  # the likeliest class is not its own
    assert float(found[1, 2:].sum()) < 0.5 * 0.8 + 1e-6


def test_classes_have_no_order():
    g, order = probabilities(3, 4, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    says = probabilities(4, 4, 3)
    place = order.argsort().tolist()
    plain = combine(g, [Specialist([1, 4])], [says], asked=6)
    moved = combine(g[:, order], [Specialist([place[1], place[4]])], [says], asked=6)
    torch.testing.assert_close(moved, plain[:, order])
