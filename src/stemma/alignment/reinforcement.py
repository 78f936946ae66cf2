"""Learning from rewards: write responses, have them judged, and change the policy so that better ones are likelier.

What a step computes is a function of the recipe, the data, the seed and the step's number: prompts, draws and the order
of the minibatches have no state of their own. A run that was killed and resumed ends where an undisturbed one does: bit
for bit on a CPU with the same threads.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stemma.alignment.experience import divide, mask_of, recollect
from stemma.alignment.learning import Learner, Method
from stemma.alignment.pretraining_mix import PretrainingMix
from stemma.alignment.prompts import PolicyPrompt
from stemma.alignment.rails import Rails, RunAway
from stemma.alignment.reading import Sample
from stemma.alignment.reinforcement_recipe import ReinforcementRecipe
from stemma.alignment.rewards import Episode, Reward, scores_of, without_end
from stemma.alignment.rollouts import content_of, write_responses
from stemma.data.shuffled_by_length import ShuffledByLength
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.training.averaging import applied
from stemma.training.batches import derived_seed
from stemma.training.distributed import Workers
from stemma.training.hardware import choose_precision
from stemma.training.interrupts import Interrupts
from stemma.training.metrics import METRICS, MetricsLog
from stemma.training.objective import Display
from stemma.training.progress import Silent
from stemma.training.saving import Publish, Saver
from stemma.training.state import SavedState, restore_tensors

_ROUNDING = 1e-4  # by which log-probabilities of the engine and of the training may differ in float32


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
        precision = choose_precision(recipe.execution.precision, self.device)
        self.saver = Saver(directory, publish, Workers(), keep=recipe.output.keep, say=self.display.say)
        self.learner = Learner(method, recipe.training, precision, task.pretraining)
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
        with self.learner.autocast():
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
        with self.learner.autocast():
            experience, more = self.method.experience(recollection, scores, parts, mask)
        values |= {**more, "score": float(scores.mean()), "coefficient": self.method.controller.coefficient}
        rate = recipe.training.rate(step, self.steps)
        values |= self.learner.learn(minibatches, experience, epochs=recipe.update.epochs, rate=rate, rng=rng)
        self.rails.check_update(values)
        self.method.controller.update(values["kl"], len(samples))
        standing.tokens, standing.updates = standing.tokens + int(mask.sum()), self.learner.updates
        now = time.perf_counter()
        pace = {
            "tokens_per_second": float(mask.sum()) / (now - begun),
            "rollout_share": (written - begun) / (now - begun),
        }
        return values | pace | {"learning_rate": rate}

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
            longest=[recipe.longest] * len(prompts),
            temperature=recipe.temperature,
            stop=recipe.stop,
            samples=samples,
        )
        pairs = [(prompt, one) for prompt, group in zip(prompts, groups, strict=True) for one in group]
        episodes = [
            Episode(
                prompt.prompt,
                content_of(one.text, prompt.prompt),
                one.ended,
                prompt.row,
                Sample(prompt.tokens, one.tokens),
            )
            for prompt, one in pairs
        ]
        return episodes, [one.log_probabilities for _, one in pairs]

    def _compare(self, recomputed: Tensor, scored: Sequence[Sequence[float]], mask: Tensor) -> None:
        """Warn, once, if the engine and the training path do not see the same probabilities: then one has a bug."""
        if self._warned or self.learner.precision != torch.float32 or self.recipe.rollout.temperature != 1:
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
        average = self.learner.average
        with applied(self.policy.model, average.tensors) if average is not None else nullcontext():
            episodes, _ = self._rollout(prompts, (self.recipe.seed, -1 % 2**32), 1)
        scores = scores_of(self.task.reward, episodes)
        standing.evaluated, standing.held_out_reward = standing.step, float(scores.mean())
        if standing.first_held_out_reward is None:
            standing.first_held_out_reward = standing.held_out_reward
        shown = [
            {
                **{"prompt": episode.prompt, "response": episode.response},
                **{"ended": episode.ended, "reward": float(score)},
            }
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
        learner = self.learner
        self.saver.write_state(self.standing.step, self.method.model, learner.optimizer, learner.average, {}, record)
        self._saved_step = self.standing.step

    def _publish(self) -> None:
        average = self.learner.average
        self.saver.publish(dict(self.policy.model.named_parameters()) if average is None else average.tensors)

    def _restore(self, saved: SavedState) -> None:
        for name, value in self.task.fingerprints.items():
            if saved.record["fingerprints"].get(name) != value:
                raise InputError(f"{saved.path}: was trained with another {name}; use another --out, or --overwrite")
        learner = self.learner
        average = {} if learner.average is None else learner.average.tensors
        restore_tensors(saved.path, self.method.model, learner.optimizer, average, {})
        self.standing = Standing(**saved.record["standing"])
        learner.updates = self.standing.updates
        self.method.controller.coefficient = saved.record["controller"]
        self.rails.first_entropy, self.rails.clipped = saved.record["rails"].values()
        self._saved_step = self.standing.step
