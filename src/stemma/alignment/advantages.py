"""How much better than expected each token of a response was: what PPO and GRPO weigh their gradients with.

Everything is float [responses, length] with a bool mask of the same shape, True from the first token to the last one of
the response, its end included. Where the mask is False the inputs may be anything and the results are 0.
"""

from typing import Literal

import torch
from torch import Tensor

GroupScale = Literal["group", "batch", "none"]


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, decay: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantages and returns (Schulman et al. 2016, "GAE", equation 16; returns are A + V).

    A_t is the sum over l of (discount * decay)^l * delta_(t+l), delta_t = r_t + discount * V_(t+1) - V_t. The text ends
    with its last token: the value after it is 0.

    Args:
        values: of the states before each token was chosen. discount, decay: the paper's gamma and lambda.
    """
    values = values * mask
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = (rewards + discount * following - values) * mask
    advantages = torch.zeros_like(deltas)
    later = torch.zeros_like(deltas[:, 0])
    for place in range(deltas.shape[1] - 1, -1, -1):
        later = deltas[:, place] + discount * decay * later
        advantages[:, place] = later
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Return x scaled to variance 1 and shifted to mean 0 over the mask: (x - mean) / sqrt(variance + 1e-8).

    The variance is the unbiased one; a single number becomes 0. keep_mean: the mean stays (for rewards).
    """
    count = mask.sum()
    mean = (x * mask).sum() / count
    centred = (x - mean) * mask
    variance = centred.square().sum() / (count - 1).clamp_min(1)
    white = centred * torch.rsqrt(variance + 1e-8)
    return white + mean * mask if keep_mean else white


def group_advantages(rewards: Tensor, scale: GroupScale) -> Tensor:
    """Return GRPO's advantages of responses to one prompt (Shao et al. 2024, "DeepSeekMath", section 4.1.2).

    Args:
        rewards: float [prompts, samples].
        scale: what rewards less their group's mean are divided by: the unbiased standard deviation of the "group", of
            the "batch", or nothing (Liu et al. 2025, "Dr. GRPO"). A group of equal rewards has advantages of 0.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if scale == "none":
        return centred
    deviation = rewards.std(dim=1, keepdim=True) if scale == "group" else rewards.std()
    return centred / (deviation + 1e-4)
