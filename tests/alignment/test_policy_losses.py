"""The losses token by token, against plain Python, and gradients against what the formulas say."""

import math

import pytest
import torch
from oracles import needs_oracle, oracle

from stemma.alignment.controllers import AdaptiveKL
from stemma.alignment.policy_losses import (
    explained_variance,
    kl_estimate,
    loss_weights,
    penalized_rewards,
    policy_loss,
    value_loss,
)
from stemma.alignment.rewards import without_end

LENGTHS, CLIP = (4, 1, 2), 0.2


def numbers(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, generator=generator, dtype=torch.float64)


MASK = torch.arange(4) < torch.tensor(LENGTHS).unsqueeze(1)
PLACES = [(row, t) for row, length in enumerate(LENGTHS) for t in range(length)]


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
def test_the_policy_loss_is_the_mean_over_tokens_or_responses(reduction):
    old, new, advantages = numbers(1) / 4, (numbers(2) / 4).requires_grad_(), numbers(3)
    loss, clipped = policy_loss(new, old, advantages, loss_weights(MASK, reduction, 10), CLIP)
    loss.backward()
    expected, share = 0.0, 0.0
    for row, t in PLACES:
        ratio, a = math.exp(new[row, t].item() - old[row, t].item()), advantages[row, t].item()
        weight = {"token_mean": 1 / 7, "sequence_mean": 1 / (3 * LENGTHS[row]), "constant": 1 / 30}[reduction]
        plain, limited = -a * ratio, -a * min(max(ratio, 1 - CLIP), 1 + CLIP)
        expected += weight * max(plain, limited)
        share += weight * (limited > plain)
        # Where the clipped one counts nothing depends on the policy any more.
        slope = 0.0 if limited > plain else weight * plain
        assert new.grad[row, t].item() == pytest.approx(slope, abs=1e-6)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert clipped.item() == pytest.approx(share, abs=1e-6)
    assert new.grad[~MASK].eq(0).all()


def test_the_parts_of_an_update_add_up_to_its_loss():
    old, new, advantages, weights = numbers(1) / 4, numbers(2) / 4, numbers(3), loss_weights(MASK, "token_mean", 4)
    whole, _ = policy_loss(new, old, advantages, weights, CLIP)
    parts = [policy_loss(*(x[rows] for x in (new, old, advantages, weights)), CLIP)[0] for rows in ([2], [0, 1])]
    torch.testing.assert_close(sum(parts), whole)


def test_the_value_loss_takes_the_worse_of_both():
    old, new, returns = numbers(4), (numbers(4) + numbers(5) / 3).requires_grad_(), numbers(6)
    loss, clipped = value_loss(new, old, returns, loss_weights(MASK, "token_mean", 4), CLIP)
    expected, share = 0.0, 0.0
    for row, t in PLACES:
        v, v_old, target = new[row, t].item(), old[row, t].item(), returns[row, t].item()
        limited = (min(max(v, v_old - CLIP), v_old + CLIP) - target) ** 2
        expected += max((v - target) ** 2, limited) / 14
        share += (limited > (v - target) ** 2) / 7
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert clipped.item() == pytest.approx(share, abs=1e-6)
    assert 0 < share < 1


def test_estimates_of_the_divergence():
    ours, theirs = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert kl_estimate(ours, theirs, "k1").tolist() == [0.5, -1.0]
    assert kl_estimate(ours, theirs, "k2").tolist() == [0.125, 0.5]
    k3 = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0]
    assert kl_estimate(ours, theirs, "k3").tolist() == pytest.approx(k3)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_estimates_are_right_on_average(estimator):
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum().item()
    assert (p * kl_estimate(p.log(), q.log(), estimator)).sum().item() == pytest.approx(exact)


def test_the_score_comes_with_the_last_token():
    kl = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rewards = penalized_rewards(torch.tensor([10.0, -1.0]), kl, mask, 0.5)
    assert rewards.tolist() == [[-0.5, 9.0, 0.0], [-3.0, 0.0, 0.0]]


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((1, 4), 2.0), returns, mask) == pytest.approx(0.0)
    assert explained_variance(torch.zeros(1, 4), returns, mask) == pytest.approx(1 - (14 / 3) / (2 / 3))


def test_a_missing_end_replaces_a_score_or_is_taken_off_it():
    scores, ended = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    assert without_end(scores, ended, score=None, penalty=None).tolist() == [0.5, -1.0]
    assert without_end(scores, ended, score=0.0, penalty=None).tolist() == [0.5, 0.0]
    assert without_end(scores, ended, score=None, penalty=2.0).tolist() == [0.5, -1.5]


def test_the_coefficient_follows_its_target():
    controller = AdaptiveKL(0.15, target=6.0, horizon=10000)
    controller.update(60.0, 500)  # the error is held to a fifth
    assert controller.coefficient == pytest.approx(0.15 * (1 + 0.2 * 500 / 10000))
    controller.coefficient = 0.1
    controller.update(5.4, 1000)
    assert controller.coefficient == pytest.approx(0.1 * (1 - 0.1 * 0.1))
    still = AdaptiveKL(0.15)
    still.update(60.0, 500)
    assert still.coefficient == 0.15


@needs_oracle
def test_losses_and_gradients_equal_the_reference():
    close = {"rtol": 0, "atol": 1e-7}  # weights are float32
    given = oracle("policy")
    for reduction in ("token_mean", "sequence_mean"):
        new = given["new_logprobs"].clone().requires_grad_()
        weights = loss_weights(given["mask"], reduction, 12)
        loss, clipped = policy_loss(new, given["old_logprobs"], given["advantages"], weights, CLIP)
        loss.backward()
        torch.testing.assert_close(loss.detach(), given[f"loss_{reduction}"], **close)
        torch.testing.assert_close(new.grad, given[f"grad_{reduction}"], **close)
        torch.testing.assert_close(clipped.double(), given[f"clip_fraction_{reduction}"], **close)
    weights = loss_weights(given["mask"], "token_mean", 12)
    for kind, other in (("k2", 1), ("k3", -1)):  # the reference's ratio is new / old
        estimate = kl_estimate(other * given["new_logprobs"], other * given["old_logprobs"], kind)
        torch.testing.assert_close((estimate * weights).sum(), given[f"approx_kl_{kind}"], **close)
    given = oracle("value")
    new = given["new"].clone().requires_grad_()
    loss, clipped = value_loss(new, given["old"], given["returns"], weights, CLIP)
    loss.backward()
    torch.testing.assert_close(loss.detach(), given["loss"], **close)
    torch.testing.assert_close(new.grad, given["grad"], **close)
    torch.testing.assert_close(clipped.double(), given["clip_fraction"], **close)


@needs_oracle
def test_rewards_and_the_controller_equal_the_reference():
    given = oracle("kl")
    ours, theirs, mask, scores = given["logprobs"], given["ref_logprobs"], given["mask"], given["scores"]
    for kind in ("k1", "k2", "k3"):
        kl = kl_estimate(ours, theirs, kind)
        torch.testing.assert_close(penalized_rewards(scores, kl, mask, 0.05), given[f"rewards_{kind}"])
        torch.testing.assert_close((kl * mask).sum(1), given[f"sequence_{kind}"])
    replaced = without_end(scores, given["ended"], score=None, penalty=None)
    torch.testing.assert_close(replaced, given["scores_replaced"])
    torch.testing.assert_close(without_end(scores, given["ended"], score=None, penalty=1.0), given["scores_subtracted"])
    kl = kl_estimate(ours, theirs, "k1")
    torch.testing.assert_close(penalized_rewards(replaced, kl, mask, 0.05), given["rewards_k1_replaced"])
    given = oracle("controller")
    controller = AdaptiveKL(0.15, 6.0, 10000)
    for kl, expected in zip(given["observed_kl"].tolist(), given["beta_after"].tolist(), strict=True):
        controller.update(kl, 512)
        assert controller.coefficient == pytest.approx(expected, rel=1e-12)
