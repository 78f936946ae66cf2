"""GRPO: a policy's responses to one prompt are compared with each other, so that no values need to be learned.

Shao et al. 2024, "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", section 4.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stemma.alignment.advantages import group_advantages
from stemma.alignment.controllers import AdaptiveKL
from stemma.alignment.experience import Experience, Part, Policy, Recollection, spread
from stemma.alignment.policy_losses import kl_estimate, loss_weights, policy_loss
from stemma.alignment.reinforcement_recipe import GRPORecipe


class GRPO:
    """What GRPO makes of a rollout, and its loss."""

    def __init__(self, policy: Policy, recipe: GRPORecipe, controller: AdaptiveKL) -> None:
        self.policy, self.recipe, self.controller = policy, recipe, controller
        self.model = nn.ModuleDict({"policy": policy.model})  # all that is trained

    @torch.no_grad()
    def experience(
        self, recollection: Recollection, scores: Tensor, parts: Sequence[Part], mask: Tensor
    ) -> tuple[Experience, dict[str, float]]:
        """See `PPO.experience`."""
        groups = scores.view(-1, self.recipe.rollout.samples)
        advantages = group_advantages(groups, self.recipe.update.scale).view(-1, 1) * mask
        reported = {"equal_groups": float((groups.std(dim=1) == 0).float().mean())}
        old, reference = recollection.log_probabilities, recollection.reference
        return Experience(mask, old, reference, advantages), reported

    def weights(self, mask: Tensor) -> Tensor:
        """See `PPO.weights`."""
        return loss_weights(mask, self.recipe.update.reduction, self.recipe.rollout.longest)

    def loss(self, part: Part, experience: Experience, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `PPO.loss`; the divergence from the reference is part of the loss (equation 3 of the paper)."""
        rows = part.rows
        old = experience.old[rows]
        new = spread(self.policy.log_probabilities(part), experience.mask[rows])
        loss, clipped = policy_loss(new, old, experience.advantages[rows], weights, self.recipe.update.clip)
        reported = {
            "policy_loss": loss.detach(),
            "clip_fraction": clipped,
            "approximate_kl": (kl_estimate(new.detach(), old, "k2") * weights).sum(),
        }
        if self.controller.coefficient:
            kl = kl_estimate(new, experience.reference[rows], self.recipe.reference.estimator)
            loss = loss + self.controller.coefficient * (kl * weights).sum()
        return loss, reported
