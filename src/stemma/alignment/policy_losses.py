"""The losses of PPO (Schulman et al. 2017) and the divergence from a reference, as pure functions of tensors.

Tensors are float [responses, length]. Means are sums with `weights` of the same shape, 0 outside the responses, which
over all of an update add up to 1: so a part of the update gives its share of the mean, and the parts can be added.
"""

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
Reduction = Literal["token_mean", "sequence_mean", "constant"]


def loss_weights(mask: Tensor, reduction: Reduction, longest: int) -> Tensor:
    """Return the weight of each token in the mean of an update, float [responses, length].

    Args:
        mask: bool [responses, length], of the whole update.
        reduction: "token_mean": tokens weigh alike. "sequence_mean": responses weigh alike, as in GRPO's paper.
            "constant": tokens weigh 1 / (responses * longest), as in Dr. GRPO, where long responses weigh more.
        longest: tokens of the longest response that could be.
    """
    weights = mask.float()
    if reduction == "token_mean":
        return weights / weights.sum()
    if reduction == "sequence_mean":
        return weights / (weights.sum(dim=1, keepdim=True) * len(mask))
    return weights / (len(mask) * longest)


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate loss (equation 7, its sign changed), and the share of tokens where clipping counts.

    Args:
        new, old: log-probabilities of the tokens under the policy now and as it wrote them.
    """
    ratio = (new - old).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = (torch.maximum(plain, clipped) * weights).sum()
    return loss, ((clipped > plain) * weights).sum().detach()


def value_loss(new: Tensor, old: Tensor, returns: Tensor, weights: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Return half the squared error of values, of the worse of two: as they are, and within `clip` of what they were.

    That is OpenAI's (openai/baselines, ppo2). Also the share of tokens where the clipped one counts.
    """
    plain = (new - returns).square()
    clipped = (torch.clamp(new, old - clip, old + clip) - returns).square()
    loss = 0.5 * (torch.maximum(plain, clipped) * weights).sum()
    return loss, ((clipped > plain) * weights).sum().detach()


def kl_estimate(log_probabilities: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Return one sample's estimate of KL(policy, reference) for each token (Schulman 2020, "Approximating KL").

    With d = log policy - log reference: k1 = d, unbiased; k2 = d^2 / 2; k3 = exp(-d) - 1 + d, unbiased and never
    negative.
    """
    difference = log_probabilities - reference
    if estimator == "k1":
        return difference
    return difference.square() / 2 if estimator == "k2" else torch.expm1(-difference) + difference


def penalized_rewards(scores: Tensor, kl: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """Return the reward of each token, -coefficient * kl, and at each response's last one its score, float [responses].

    (Ziegler et al. 2019, equation 2.)
    """
    rewards = -coefficient * kl * mask
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.unsqueeze(1).to(rewards.dtype))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 - mean((values - returns)^2) / variance(returns) over the mask: 1 is perfect, 0 as good as a mean."""
    error = (values - returns)[mask].square().mean()
    return float(1 - error / returns[mask].var(correction=0).clamp_min(1e-8))
