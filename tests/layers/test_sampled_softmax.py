"""The sampled softmax: the distribution of its words, and its loss written out word by word."""

import math

import pytest
import torch
import torch.nn.functional as F

from stemma.layers import sampled_softmax
from stemma.layers.sampled_softmax import log_uniform, sampled_cross_entropy


def test_words_are_drawn_by_zipfs_law() -> None:
    """One word a draw: 4,000 draws of 8 words, frequencies within five standard deviations."""
    torch.manual_seed(0)
    counts = torch.zeros(8)
    for _ in range(4_000):
        counts[log_uniform(8, 1, torch.tensor([0]))[0]] += 1
    for word, count in enumerate(counts.tolist()):
        probability = math.log((word + 2) / (word + 1)) / math.log(9)
        assert abs(count / 4_000 - probability) < 5 * math.sqrt(probability * (1 - probability) / 4_000)


def test_words_are_different_and_expected_as_often_as_they_come() -> None:
    torch.manual_seed(0)
    seen, expected = torch.zeros(30), torch.zeros(30)
    for _ in range(3_000):
        words, of_words, of_all = log_uniform(30, 10, torch.arange(30))
        assert len(set(words.tolist())) == 10
        torch.testing.assert_close(of_words, of_all[words])
        seen[words] += 1
        expected += of_all
    # The published sampler's estimate is not exact: it takes the number of draws as given.
    torch.testing.assert_close(seen, expected, rtol=0.1, atol=0)


def test_all_words_can_be_asked_for_but_one() -> None:
    torch.manual_seed(0)
    assert len(set(log_uniform(5, 4, torch.tensor([0]))[0].tolist())) == 4


@pytest.mark.parametrize("biased", [True, False])
def test_the_loss_is_what_it_says(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(4, 3), torch.randn(9, 3), torch.randn(9) * biased
    targets = torch.tensor([2, -100, 7, 5])
    words = torch.tensor([0, 7, 3])  # 7 is a target too
    often, of_targets = torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0.6, 0.2, 0.3])
    monkeypatch.setattr(sampled_softmax, "log_uniform", lambda *_: (words, often, of_targets))
    given = bias if biased else None
    found = sampled_cross_entropy(hidden, weight, given, targets, samples=3, divisor=7)

    total = 0.0
    for row, own_often in zip((0, 2, 3), of_targets.tolist(), strict=True):
        target = int(targets[row])
        own = float(hidden[row] @ weight[target] + bias[target]) - math.log(own_often)
        others = [
            float(hidden[row] @ weight[word] + bias[word]) - math.log(often[place])
            for place, word in enumerate(words.tolist())
            if word != target
        ]
        total += math.log(sum(map(math.exp, [own, *others]))) - own
    assert found.item() == pytest.approx(total / 7, rel=1e-5)


def test_with_all_words_expected_once_it_is_the_full_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(6, 3), torch.randn(9, 3, requires_grad=True), torch.randn(9)
    targets = torch.randint(9, (6,))
    monkeypatch.setattr(sampled_softmax, "log_uniform", lambda *_: (torch.arange(9), torch.ones(9), torch.ones(6)))
    found = sampled_cross_entropy(hidden, weight, bias, targets, samples=8, divisor=6)
    expected = F.cross_entropy(hidden @ weight.t() + bias, targets)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, weight)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [None, 9, 20])
def test_of_no_fewer_words_than_there_are_it_is_the_likelihood(samples: int | None) -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(6, 3), torch.randn(9, 3), torch.tensor([0, 3, -100, 8, 1, 3])
    found = sampled_cross_entropy(hidden, weight, None, targets, samples=samples, divisor=5)
    torch.testing.assert_close(found, F.cross_entropy(hidden @ weight.t(), targets))
