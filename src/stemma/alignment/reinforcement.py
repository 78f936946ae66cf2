"""Learning from rewards: write responses, have them judged, and change the policy so that better ones are likelier.

What a step computes is a function of the recipe, the data, the seed and the step's number: prompts, draws and the order
of the minibatches have no state of their own. A run that was killed and resumed ends where an undisturbed one does: bit
for bit on a CPU with the same threads.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stemma.alignment.controllers import AdaptiveKL
from stemma.alignment.experience import Experience, Part, Policy, Recollection, divide, mask_of, recollect
from stemma.alignment.pretraining_mix import PretrainingMix
from stemma.alignment.prompts import PolicyPrompt
from stemma.alignment.rails import Rails, RunAway
from stemma.alignment.reading import Sample
from stemma.alignment.reinforcement_recipe import ReinforcementRecipe
from stemma.alignment.rewards import Episode, Reward, scores_of, without_end
from stemma.alignment.rollouts import write_responses
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.finetuning.sequences import ShuffledByLength
from stemma.training.averaging import WeightAverage
from stemma.training.batches import derived_seed
from stemma.training.distributed import Workers
from stemma.training.hardware import choose_precision
from stemma.training.interrupts import Interrupts
from stemma.training.metrics import METRICS, MetricsLog
from stemma.training.objective import Display
from stemma.training.optimizer import optimizer_of
from stemma.training.progress import Silent
from stemma.training.saving import Publish, Saver
from stemma.training.state import SavedState, restore_tensors

_ROUNDING = 1e-4  # by which log-probabilities of the engine and of the training may differ in float32


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


@dataclass(frozen=True)
class RewardTask:
    """What the policy answers, and who judges.

    Args:
        fingerprints: of everything the run depends on beside its recipe; a resumed run must agree.
    """

    tokenizer: Tokenizer
    prompts: Sequence[PolicyPrompt]
    held_out: Sequence[PolicyPrompt]
    reward: Reward
    pretraining: PretrainingMix | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Standing:
    """Where a run stands; part of its checkpoints.

    Args:
        step: rollouts that were learned from. updates: of the weights. tokens: of the responses.
        seconds: time spent. evaluated: the step of the last evaluation. held_out_reward: its mean, and the first one.
    """

    step: int = 0
    updates: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluated: int = -1
    held_out_reward: float | None = None
    first_held_out_reward: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a run ended: "finished" or "interrupted" (by the signal of that number)."""

    reason: str
    standing: Standing
    signal: int | None = None


class ReinforcementTrainer:
    """Trains a policy.

    Args:
        directory: where metrics and checkpoints go. publish: writes weights of the policy as a checkpoint directory.
        saved: the checkpoint to go on from.
    Raises:
        InputError: the checkpoint belongs to other data or another model.
    """

    def __init__(
        self,
        method: Method,
        task: RewardTask,
        recipe: ReinforcementRecipe,
        directory: Path,
        *,
        publish: Publish,
        display: Display | None = None,
        saved: SavedState | None = None,
    ) -> None:
        self.method, self.task, self.recipe, self.directory = method, task, recipe, directory
        self.policy, self.display = method.policy, display or Silent()
        self.device = next(method.model.parameters()).device
        self.precision = choose_precision(recipe.execution.precision, self.device)
        self.saver = Saver(directory, publish, Workers(), keep=recipe.output.keep, say=self.display.say)
        self.optimizer = optimizer_of(method.model, recipe.training)
        ema = recipe.training.ema
        self.average = None if ema is None else WeightAverage(self.policy.model, ema)
        self.rails = Rails(recipe.kl_limit, recipe.rails.entropy, recipe.rails.clip_fraction)
        self.standing = Standing()
        self.steps = recipe.training.steps or 0
        lengths = [len(prompt.tokens) for prompt in task.prompts]
        self._order = ShuffledByLength(task.prompts, lengths, recipe.training.batch, recipe.seed)
        self._saved_step = -1
        self._warned = False
        if saved is not None:
            self._restore(saved)

    def run(self) -> Ended:
        """Train to the end, or until SIGINT or SIGTERM; save; return how it went.

        Raises:
            RunAway: it has gone wrong. OSError: the last checkpoint could not be written. An earlier one is intact.
        """
        output = self.recipe.output
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            log = MetricsLog(
                self.directory / METRICS,
                step=self.standing.step,
                tensorboard=self.directory / "tensorboard" if output.tensorboard else None,
                wandb=output.wandb,
                run=self.directory.name,
                settings=self.recipe.model_dump(mode="json"),
            )
            self._metrics = stack.enter_context(log)
            stack.enter_context(self.display.running(self.standing.step, self.steps))
            try:
                interrupted = self._train(interrupts)
            except RunAway as error:
                raise RunAway(
                    f"stopped at step {self.standing.step:,}: {error}. The last good checkpoint, of step "
                    f"{self._saved_step:,}, is in {self.directory}"
                ) from None
            if not interrupted and self.standing.evaluated != self.standing.step:
                self._evaluate()
            if self._saved_step != self.standing.step:
                self._save(last=True)
            else:
                self._publish()  # it may have been killed between saving and publishing
        reason = "interrupted" if interrupted else "finished"
        return Ended(reason, self.standing, interrupts.received if interrupted else None)

    def _train(self, interrupts: Interrupts) -> bool:
        """Learn from the rollouts that are left; return whether a signal came in between."""
        standing, every = self.standing, self.recipe.output
        while standing.step < self.steps:
            if interrupts.received is not None:
                return True
            start = time.perf_counter()
            values = self._step()
            standing.seconds += time.perf_counter() - start
            standing.step += 1
            if standing.step % every.log_every == 0 or standing.step == self.steps:
                self._metrics.write(standing.step, values)
            self.display.step(standing.step, values)
        return False

    def _step(self) -> dict[str, float]:
        """Write, judge and learn once; return numbers to report."""
        standing, recipe, step = self.standing, self.recipe, self.standing.step
        begun = time.perf_counter()
        numbers = [self._order.number(step * recipe.training.batch + place) for place in range(recipe.training.batch)]
        prompts = [self.task.prompts[number] for number in numbers]
        episodes, scored = self._rollout(prompts, (recipe.seed, step), recipe.rollout.samples)
        written = time.perf_counter()
        scores = scores_of(self.task.reward, episodes).to(self.device)
        ended = torch.tensor([episode.ended for episode in episodes], device=self.device)
        samples = [episode.sample for episode in episodes]
        mask = mask_of([len(sample.response) for sample in samples], self.device)
        rng = np.random.default_rng([recipe.seed, 2, step])
        minibatches = divide(
            self.policy.reading,
            samples,
            minibatches=min(recipe.update.minibatches, len(samples)),
            most_rows=recipe.execution.micro_batch,
            rng=rng,
            device=self.device,
        )
        parts = [part for minibatch in minibatches for part in minibatch]
        with self._autocast():
            recollection = recollect(self.policy, parts, mask)
        values = {
            "reward": float(scores.mean()),
            "kl": float(recollection.kl.sum(dim=1).mean()),
            "entropy": float(recollection.entropy[mask].mean()),
            "response_length": float(mask.sum(dim=1).float().mean()),
            "ended": float(ended.float().mean()),
        }
        self._compare(recollection.log_probabilities, scored, mask)
        self.rails.check_rollout(values)
        # Now that they are known to be good: weights are saved and evaluated here, before the next updates.
        if step % recipe.evaluation.every == 0 and standing.evaluated != step:
            self._evaluate()
        if step % recipe.output.save_every == 0 and self._saved_step != step:
            self._save()
        penalties = recipe.reward.missing_end_score, recipe.reward.missing_end_penalty
        scores = without_end(scores, ended, score=penalties[0], penalty=penalties[1])
        with self._autocast():
            experience, more = self.method.experience(recollection, scores, parts, mask)
        values |= {**more, "score": float(scores.mean()), "coefficient": self.method.controller.coefficient}
        values |= self._learn(minibatches, experience, rng)
        self.rails.check_update(values)
        self.method.controller.update(values["kl"], len(samples))
        standing.tokens += int(mask.sum())
        now = time.perf_counter()
        pace = {
            "tokens_per_second": float(mask.sum()) / (now - begun),
            "rollout_share": (written - begun) / (now - begun),
        }
        return values | pace | {"learning_rate": recipe.training.rate(step, self.steps)}

    def _rollout(
        self, prompts: Sequence[PolicyPrompt], seed: tuple[int, int], samples: int
    ) -> tuple[list[Episode], list[list[float]]]:
        """Return responses to prompts, and the engine's log-probabilities of their tokens."""
        recipe = self.recipe.rollout
        groups = write_responses(
            self.policy.model,
            self.task.tokenizer,
            [prompt.tokens for prompt in prompts],
            seeds=[derived_seed(*seed, place) for place in range(len(prompts))],
            longest=recipe.longest,
            temperature=recipe.temperature,
            stop=recipe.stop,
            samples=samples,
        )
        pairs = [(prompt, one) for prompt, group in zip(prompts, groups, strict=True) for one in group]
        episodes = [
            Episode(prompt.prompt, one.text, one.ended, prompt.row, Sample(prompt.tokens, one.tokens))
            for prompt, one in pairs
        ]
        return episodes, [one.log_probabilities for _, one in pairs]

    def _learn(
        self, minibatches: Sequence[Sequence[Part]], experience: Experience, rng: np.random.Generator
    ) -> dict[str, float]:
        """Make the updates of a rollout; return the means of what they report."""
        sums: dict[str, float] = {}
        updates = 0
        for _ in range(self.recipe.update.epochs):
            for number in rng.permutation(len(minibatches)):
                for name, value in self._update(minibatches[number], experience).items():
                    sums[name] = sums.get(name, 0.0) + value
                updates += 1
        return {name: value / updates for name, value in sums.items()}

    def _update(self, minibatch: Sequence[Part], experience: Experience) -> dict[str, float]:
        method, training = self.method, self.recipe.training
        rows = torch.cat([part.rows for part in minibatch])
        weights = torch.zeros(experience.mask.shape, device=self.device)
        weights[rows] = method.weights(experience.mask[rows])
        reported: dict[str, float] = {}
        for part in minibatch:
            with self._autocast():
                loss, numbers = method.loss(part, experience, weights[part.rows])
            loss.backward()
            for name, value in {"loss": loss.detach(), **numbers}.items():
                reported[name] = reported.get(name, 0.0) + float(value)
        if self.task.pretraining is not None:
            reported |= self.task.pretraining.add_gradients(self.policy.model, self.standing.updates, self._autocast)
        for name, module in method.model.items():  # each by itself: the values' gradients are no reason to clip others
            reported[f"{name}_gradient_norm"] = _clip(module, training.clip)
        if not all(map(math.isfinite, reported.values())):
            wrong = next(name for name, value in reported.items() if not math.isfinite(value))
            raise RunAway(f"{wrong.replace('_', ' ')} is {reported[wrong]}")
        for group in self.optimizer.param_groups:
            group["lr"] = training.rate(self.standing.step, self.steps) * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.standing.updates += 1
        if self.average is not None:
            self.average.update(self.standing.updates)
        return reported

    def _compare(self, recomputed: Tensor, scored: Sequence[Sequence[float]], mask: Tensor) -> None:
        """Warn, once, if the engine and the training path do not see the same probabilities: then one has a bug."""
        if self._warned or self.precision != torch.float32 or self.recipe.rollout.temperature != 1:
            return
        written = torch.tensor([score for row in scored for score in row], device=self.device)
        gap = float((recomputed[mask] - written).abs().max())
        if gap > _ROUNDING:
            self._warned = True
            self.display.say(f"log-probabilities of the engine and of the training differ by up to {gap:.1e}")

    def _evaluate(self) -> None:
        """Answer held-out prompts, show some of it, and report the rewards."""
        standing, recipe = self.standing, self.recipe.evaluation
        prompts = self.task.held_out[: recipe.prompts]
        with self.average.applied() if self.average is not None else nullcontext():
            episodes, _ = self._rollout(prompts, (self.recipe.seed, -1 % 2**32), 1)
        scores = scores_of(self.task.reward, episodes)
        standing.evaluated, standing.held_out_reward = standing.step, float(scores.mean())
        if standing.first_held_out_reward is None:
            standing.first_held_out_reward = standing.held_out_reward
        shown = [
            {"prompt": episode.prompt, "response": episode.response, "reward": float(score)}
            for episode, score in list(zip(episodes, scores, strict=True))[: recipe.shown]
        ]
        ended = sum(episode.ended for episode in episodes) / len(episodes)
        self._metrics.write(
            standing.step,
            {"held_out_reward": standing.held_out_reward, "held_out_ended": ended, "held_out_samples": shown},
        )
        self.display.say(
            f"step {standing.step:,}  held-out reward {standing.held_out_reward:.4f} of {len(prompts)} prompts, "
            f"{ended:.0%} ended"
        )
        for sample in shown:
            self.display.say(f"  {sample['reward']:6.3f}  {sample['prompt']!r} -> {sample['response']!r}")

    def _save(self, last: bool = False) -> None:
        """Write a checkpoint and publish the policy. Only the last one of the run may not fail."""
        if last:
            self._write_state()
            self._publish()
        elif self.saver.attempt(self._write_state, f"the checkpoint of step {self.standing.step:,}"):
            self.saver.attempt(self._publish, f"the policy of step {self.standing.step:,}")

    def _write_state(self) -> None:
        self._metrics.sync()  # no checkpoint is newer than what the log tells
        record = {
            "standing": asdict(self.standing),
            "controller": self.method.controller.coefficient,
            "rails": {"first_entropy": self.rails.first_entropy, "clipped": self.rails.clipped},
            "fingerprints": dict(self.task.fingerprints),
            "recipe": self.recipe.model_dump(mode="json"),
        }
        self.saver.write_state(self.standing.step, self.method.model, self.optimizer, self.average, record)
        self._saved_step = self.standing.step

    def _publish(self) -> None:
        self.saver.publish(self.policy.model, self.average)

    def _restore(self, saved: SavedState) -> None:
        for name, value in self.task.fingerprints.items():
            if saved.record["fingerprints"].get(name) != value:
                raise InputError(f"{saved.path}: was trained with another {name}; use another --out, or --overwrite")
        average = {} if self.average is None else self.average.tensors
        restore_tensors(saved.path, self.method.model, self.optimizer, average)
        self.standing = Standing(**saved.record["standing"])
        self.method.controller.coefficient = saved.record["controller"]
        self.rails.first_entropy, self.rails.clipped = saved.record["rails"].values()
        self._saved_step = self.standing.step

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)


def _clip(module: nn.Module, largest: float | None) -> float:
    """Scale the gradients of a module down to a norm; return the norm that they had."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest is not None and float(norm) > largest:
        torch.nn.utils.clip_grads_with_norm_(module.parameters(), largest, norm)
    return float(norm)
