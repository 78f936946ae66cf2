"""What several teachers say together, against the means written out."""

import pytest
import torch

from stemma.layers.ensembles import soft_targets

LOGITS = [torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(3)]


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 5.0)])
def test_arithmetic_is_the_mean_of_probabilities_at_the_temperature(weights):
    shares = torch.tensor(weights or (1.0, 1.0, 1.0), dtype=torch.float64)
    shares = shares / shares.sum()
    mean = sum(share * (one / 3.0).softmax(-1) for share, one in zip(shares, LOGITS, strict=True))
    torch.testing.assert_close(soft_targets(LOGITS, 3.0, "arithmetic", weights).exp(), mean)


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 5.0)])
def test_geometric_is_the_renormalised_geometric_mean(weights):
    shares = torch.tensor(weights or (1.0, 1.0, 1.0), dtype=torch.float64)
    shares = shares / shares.sum()
    product = torch.ones(5, 7, dtype=torch.float64)
    for share, one in zip(shares, LOGITS, strict=True):
        product = product * (one / 3.0).softmax(-1) ** share
    expected = product / product.sum(-1, keepdim=True)
    torch.testing.assert_close(soft_targets(LOGITS, 3.0, "geometric", weights).exp(), expected)


def test_the_two_means_differ_and_one_teacher_is_itself():
    assert not torch.allclose(soft_targets(LOGITS, 1.0), soft_targets(LOGITS, 1.0, "geometric"), atol=1e-2)
    torch.testing.assert_close(soft_targets(LOGITS[:1], 2.0), (LOGITS[0] / 2).log_softmax(-1))
