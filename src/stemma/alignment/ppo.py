"""PPO for language models: a policy, the values of its states, and a penalty for leaving the reference.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms"; Ziegler et al. 2019, "Fine-Tuning Language Models from
Human Preferences"; Ouyang et al. 2022, "Training language models to follow instructions with human feedback".
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stemma.alignment.advantages import gae, whiten
from stemma.alignment.controllers import AdaptiveKL
from stemma.alignment.experience import Experience, Part, Policy, Recollection, spread
from stemma.alignment.policy_losses import (
    explained_variance,
    kl_estimate,
    loss_weights,
    penalized_rewards,
    policy_loss,
    value_loss,
)
from stemma.alignment.reinforcement_recipe import PPORecipe
from stemma.alignment.reward_model import RewardModel


class PPO:
    """What PPO makes of a rollout, and its loss.

    Args:
        value: gives each state's value; its dropout is off as the policy's is.
    """

    def __init__(self, policy: Policy, value: RewardModel, recipe: PPORecipe, controller: AdaptiveKL) -> None:
        self.policy, self.value, self.recipe, self.controller = policy, value.eval(), recipe, controller
        self.model = nn.ModuleDict({"policy": policy.model, "value": value})  # all that is trained

    @torch.no_grad()
    def experience(
        self, recollection: Recollection, scores: Tensor, parts: Sequence[Part], mask: Tensor
    ) -> tuple[Experience, dict[str, float]]:
        """Return what the updates need, and numbers to report.

        Args:
            scores: float32 [responses], each response's reward, samples of one prompt next to each other.
        """
        update, reference = self.recipe.update, self.recipe.reference
        values = torch.zeros(mask.shape, device=mask.device)
        for part in parts:
            values[part.rows] = spread(self.values(part), mask[part.rows])
        kl = kl_estimate(recollection.log_probabilities, recollection.reference, reference.estimator)
        rewards = penalized_rewards(scores, kl, mask, self.controller.coefficient)
        if update.whiten_rewards:
            rewards = whiten(rewards, mask, keep_mean=True)
        advantages, returns = gae(rewards, values, mask, discount=update.discount, decay=update.decay)
        reported = {
            "explained_variance": explained_variance(values, returns, mask),
            "value": float(values[mask].mean()),
        }
        if update.whiten:
            advantages = whiten(advantages, mask)
        old, other = recollection.log_probabilities, recollection.reference
        return Experience(mask, old, other, advantages, values, returns), reported

    def weights(self, mask: Tensor) -> Tensor:
        """Return what each token of an update weighs in its loss."""
        return loss_weights(mask, "token_mean", mask.shape[1])

    def loss(self, part: Part, experience: Experience, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a part's share of an update's loss, and of numbers to report.

        Args:
            weights: float32 [responses of the part, length].
        """
        assert experience.values is not None and experience.returns is not None
        update, rows = self.recipe.update, part.rows
        mask, old = experience.mask[rows], experience.old[rows]
        new = spread(self.policy.log_probabilities(part), mask)
        loss, clipped = policy_loss(new, old, experience.advantages[rows], weights, update.clip)
        values = spread(self.values(part), mask)
        before, returns = experience.values[rows], experience.returns[rows]
        of_values, values_clipped = value_loss(values, before, returns, weights, update.value_clip)
        return loss + update.value_coefficient * of_values, {
            "policy_loss": loss.detach(),
            "value_loss": of_values.detach(),
            "clip_fraction": clipped,
            "value_clip_fraction": values_clipped,
            "approximate_kl": (kl_estimate(new.detach(), old, "k2") * weights).sum(),
        }

    def values(self, part: Part) -> Tensor:
        """Return the value of the state before each token of a part, float32 [tokens]."""
        states = self.value.reading.states(self.value.trunk, part.batch)
        values: Tensor = self.value.head(states)
        return values.squeeze(1).float()
