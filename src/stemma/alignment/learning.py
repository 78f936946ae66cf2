"""The updates of a rollout: epochs of minibatches, each one step of the optimizer."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stemma.alignment.controllers import AdaptiveKL
from stemma.alignment.experience import Experience, Part, Policy, Recollection
from stemma.alignment.pretraining_mix import PretrainingMix
from stemma.alignment.rails import RunAway
from stemma.training.averaging import WeightAverage
from stemma.training.optimizer import optimizer_of
from stemma.training.recipe import TrainingRecipe


class Method(Protocol):
    """PPO or GRPO: what is made of a rollout, and the loss.

    Attributes:
        policy: writes the responses. model: all that is trained, the policy among it under that name.
        controller: of what the divergence from the reference costs.
    """

    policy: Policy
    model: nn.ModuleDict
    controller: AdaptiveKL

    def experience(
        self, recollection: Recollection, scores: Tensor, parts: Sequence[Part], mask: Tensor
    ) -> tuple[Experience, dict[str, float]]:
        """Return what the updates need, and numbers to report."""
        ...

    def weights(self, mask: Tensor) -> Tensor:
        """Return what each token of an update weighs in its loss."""
        ...

    def loss(self, part: Part, experience: Experience, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a part's share of an update's loss, and of numbers to report."""
        ...


class Learner:
    """Changes what a method trains.

    Args:
        precision: of the matrix products. pretraining: mixed into every update; None: nothing is.
    """

    def __init__(
        self, method: Method, training: TrainingRecipe, precision: torch.dtype, pretraining: PretrainingMix | None
    ) -> None:
        self.method, self.training, self.precision, self.pretraining = method, training, precision, pretraining
        self.optimizer = optimizer_of(method.model, training)
        self.average = None if training.ema is None else WeightAverage(method.policy.model, training.ema)
        self.updates = 0

    def learn(
        self,
        minibatches: Sequence[Sequence[Part]],
        experience: Experience,
        *,
        epochs: int,
        rate: float,
        rng: np.random.Generator,
    ) -> dict[str, float]:
        """Make the updates of a rollout; return the means of what they report.

        Args:
            rate: of learning. rng: decides the order of the minibatches.
        Raises:
            RunAway: a loss or a gradient is not finite; that update is not made.
        """
        sums: dict[str, float] = {}
        for _ in range(epochs):
            for number in rng.permutation(len(minibatches)):
                for name, value in self._update(minibatches[number], experience, rate).items():
                    sums[name] = sums.get(name, 0.0) + value
        return {name: value / (epochs * len(minibatches)) for name, value in sums.items()}

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which products are computed in the run's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(next(self.method.model.parameters()).device.type, dtype=self.precision)

    def _update(self, minibatch: Sequence[Part], experience: Experience, rate: float) -> dict[str, float]:
        rows = torch.cat([part.rows for part in minibatch])
        weights = torch.zeros(experience.mask.shape, device=experience.mask.device)
        weights[rows] = self.method.weights(experience.mask[rows])
        reported: dict[str, float] = {}
        for part in minibatch:
            with self.autocast():
                loss, numbers = self.method.loss(part, experience, weights[part.rows])
            loss.backward()
            for name, value in {"loss": loss.detach(), **numbers}.items():
                reported[name] = reported.get(name, 0.0) + float(value)
        if self.pretraining is not None:
            reported |= self.pretraining.add_gradients(self.method.policy.model, self.updates, self.autocast)
        for name, module in self.method.model.items():  # each by itself: large errors of values are none of the policy
            reported[f"{name}_gradient_norm"] = _clip(module, self.training.clip)
        wrong = next((name for name, value in reported.items() if not math.isfinite(value)), None)
        if wrong is not None:
            raise RunAway(f"{wrong.replace('_', ' ')} is {reported[wrong]}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        if self.average is not None:
            self.average.update(self.updates)
        return reported


def _clip(module: nn.Module, largest: float | None) -> float:
    """Scale the gradients of a module down to a norm; return the norm that they had."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest is not None and float(norm) > largest:
        torch.nn.utils.clip_grads_with_norm_(module.parameters(), largest, norm)
    return float(norm)
