"""Advantages against their definitions, which are sums over what comes later."""

import math

import pytest
import torch
from oracles import needs_oracle, oracle

from stemma.alignment.advantages import gae, group_advantages, whiten

LENGTHS = (5, 1, 3)
SETTINGS = [(1.0, 0.95), (1.0, 1.0), (1.0, 0.0), (0.99, 0.95), (0.9, 0.5)]


def episodes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards (0 behind the end, as the callers make them), values (junk there) and the mask."""
    generator = torch.Generator().manual_seed(3)
    rewards, values = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(5) < torch.tensor(LENGTHS).unsqueeze(1)
    return rewards * mask, values, mask


@pytest.mark.parametrize(("discount", "decay"), SETTINGS)
def test_gae_is_the_discounted_sum_of_later_deltas(discount, decay):
    rewards, values, mask = episodes()
    advantages, returns = gae(rewards, values, mask, discount=discount, decay=decay)
    for row, length in enumerate(LENGTHS):
        v = [*values[row, :length].tolist(), 0.0]
        deltas = [rewards[row, t].item() + discount * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((discount * decay) ** (later - t) * deltas[later] for later in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-12)
            assert returns[row, t].item() == pytest.approx(expected + v[t], abs=1e-12)
    assert advantages[~mask].eq(0).all() and returns[~mask].eq(0).all()


def test_without_values_advantages_are_discounted_sums_of_rewards():
    rewards, values, mask = episodes()
    advantages, _ = gae(rewards, torch.zeros_like(values), mask, discount=0.9, decay=1.0)
    expected = sum(0.9**t * rewards[0, t].item() for t in range(5))
    assert advantages[0, 0].item() == pytest.approx(expected, abs=1e-12)


def test_with_no_decay_and_no_discount_returns_are_what_is_still_to_come():
    rewards, values, mask = episodes()
    _, returns = gae(rewards, values, mask, discount=1.0, decay=1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1) * mask)


def test_whitened_numbers_by_hand():
    x, mask = torch.tensor([[1.0, 2.0, 99.0], [6.0, -7.0, 0.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    white = whiten(x, mask)  # of 1, 2, 6: mean 3, unbiased variance (4 + 1 + 9) / 2
    torch.testing.assert_close(white[mask], torch.tensor([-2.0, -1.0, 3.0]) / math.sqrt(7))
    assert white[~mask].eq(0).all()
    torch.testing.assert_close(whiten(x, mask, keep_mean=True)[mask], white[mask] + 3)
    assert whiten(x, mask, keep_mean=True)[~mask].eq(0).all()


def test_one_number_has_no_variance():
    mask = torch.tensor([[True, False]])
    assert whiten(torch.tensor([[5.0, 1.0]]), mask).tolist() == [[0.0, 0.0]]


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    centred = torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]])
    assert group_advantages(rewards, "none").equal(centred)
    torch.testing.assert_close(group_advantages(rewards, "group")[0], centred[0] / (math.sqrt(7) + 1e-4))
    assert group_advantages(rewards, "group")[1].eq(0).all()
    deviation = rewards.flatten().numpy().std(ddof=1)
    torch.testing.assert_close(group_advantages(rewards, "batch"), centred / (float(deviation) + 1e-4))


@needs_oracle
def test_gae_equals_the_reference():
    numbers = oracle("gae")
    for index, (discount, decay) in enumerate(numbers["gamma_lambda"].tolist()):
        for kind, mask in (("masked", numbers["mask"]), ("fixed_length", torch.ones_like(numbers["mask"]))):
            found = gae(numbers["rewards"], numbers["values"], mask, discount=discount, decay=decay)
            for name, value in zip(("advantages", "returns"), found, strict=True):
                torch.testing.assert_close(value, numbers[f"{name}_{kind}"][index], rtol=0, atol=1e-12)


@needs_oracle
def test_whitening_and_groups_equal_the_reference():
    numbers = oracle("whiten")
    for name, keep in (("masked_unbiased", False), ("masked_unbiased_keep_mean", True)):
        found = whiten(numbers["x"], numbers["mask"], keep_mean=keep)
        torch.testing.assert_close(found, numbers[name], rtol=0, atol=1e-12)
    numbers = oracle("grpo")
    torch.testing.assert_close(group_advantages(numbers["rewards"], "group"), numbers["advantages"], rtol=0, atol=1e-12)
    centred = group_advantages(numbers["rewards"], "none")
    torch.testing.assert_close(centred, numbers["advantages_centred"], rtol=0, atol=1e-12)
