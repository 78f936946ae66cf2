"""The training loop: one update after the other until the run is finished, stopped, interrupted or broken.

What an update computes is a function of the recipe, the data, the seed and the update's number, so that a run that was
killed and resumed ends where an undisturbed one does: bit for bit on a CPU with the same threads and workers.
"""

import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stemma.errors import Diverged, InputError
from stemma.families.dispatch import with_article
from stemma.training.accounting import Progress
from stemma.training.adaptation import checkpoint_activations, compile_blocks
from stemma.training.averaging import WeightAverage, applied, mean_of_checkpoints
from stemma.training.batches import Batches, Plan, derived_seed
from stemma.training.distributed import Workers, shard, synchronize_gradients
from stemma.training.hardware import choose_precision, matmul_rate, training_flops_per_token
from stemma.training.held_out import evaluate
from stemma.training.interrupts import Interrupts
from stemma.training.metrics import METRICS, MetricsLog
from stemma.training.non_finite import non_finite_report
from stemma.training.objective import Batch, Display, HeldOut, LossModule, Measured, Objective, Sequences
from stemma.training.optimizer import clip_gradients, gradient_norm, optimizer_of
from stemma.training.progress import Silent
from stemma.training.recipe import RunRecipe
from stemma.training.saving import STATES, Publish, Saver
from stemma.training.state import SavedState, restore_tensors


@dataclass(frozen=True)
class Task:
    """What is trained, on what.

    Args:
        length: tokens per sequence. steps: number of updates.
        fingerprints: of everything the run depends on beside its recipe, such as the data; a resumed run must agree.
    """

    model: nn.Module
    objective: Objective
    sequences: Sequences
    length: int
    steps: int
    held_out: HeldOut | Measured | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "finished", "stopped early" or "interrupted" (by the signal of that number)."""

    reason: str
    progress: Progress
    steps: int
    signal: int | None = None


class Trainer:
    """Trains a model; knows of it only the objective's loss.

    Args:
        directory: where metrics and checkpoints go.
        publish: writes the given weights, by parameter name, as a checkpoint directory; called on the main worker.
        saved: the checkpoint to go on from.
    Raises:
        InputError: the checkpoint belongs to other data or another model.
    """

    def __init__(
        self,
        task: Task,
        recipe: RunRecipe,
        directory: Path,
        *,
        publish: Publish,
        workers: Workers | None = None,
        display: Display | None = None,
        saved: SavedState | None = None,
    ) -> None:
        self.task, self.recipe, self.directory = task, recipe, directory
        self.workers, self.display = workers or Workers(), display or Silent()
        self.saver = Saver(directory, publish, self.workers, keep=recipe.output.keep, say=self.display.say)
        self.progress = Progress()
        self.precision = choose_precision(recipe.execution.precision, self.workers.device)
        # Sharding moves block by block: the whole need not fit on one device.
        self.model = task.model if self.workers.mesh else task.model.to(self.workers.device)
        self.loss_module = LossModule(self.model, task.objective)
        self.carried: dict[str, Tensor] = getattr(task.objective, "carried", {})
        if hasattr(task.objective, "carried") and self.workers.world > 1:
            raise InputError(
                f"the rows of {with_article(task.model)} carry a state from update to update, which "
                f"{self.workers.world} workers do not share: expected one process"
            )
        self._flops = training_flops_per_token(self.model, task.length, task.objective)
        if recipe.execution.checkpoint_activations:
            checkpoint_activations(self.model)
        if recipe.execution.compile:
            compile_blocks(self.model)
        shard(self.loss_module, self.workers)
        training = recipe.training
        self.optimizer = optimizer_of(self.model, training)
        self.average = None if training.ema is None else WeightAverage(self.model, training.ema)
        self.batches = Batches(
            task.sequences,
            task.objective,
            Plan(training.batch, training.ramp),
            seed=recipe.seed,
            micro_batch=recipe.execution.micro_batch,
            rank=self.workers.rank,
            world=self.workers.world,
        )
        self._metrics: MetricsLog | None = None
        self._rate = 0.0
        self._shown: dict[str, float] = {}
        self._saved_step = -1
        if saved is not None:
            self._restore(saved)

    def run(self) -> Outcome:
        """Train to the end, or until SIGINT or SIGTERM; save; return how it went.

        Raises:
            Diverged: the loss was not finite too many updates in a row.
            OSError: the last checkpoint could not be written. An earlier one is intact in both cases.
        """
        output = self.recipe.output
        self.loss_module.train()
        self._rate = matmul_rate(self.workers.device, self.precision) * self.workers.world
        with ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            if self.workers.main:
                log = MetricsLog(
                    self.directory / METRICS,
                    step=self.progress.step,
                    tensorboard=self.directory / "tensorboard" if output.tensorboard else None,
                    wandb=output.wandb,
                    run=self.directory.name,
                    settings=self.recipe.model_dump(mode="json"),
                )
                self._metrics = stack.enter_context(log)
                stack.enter_context(self.display.running(self.progress.step, self.task.steps))
            interrupted = self._train(interrupts)
            if self._saved_step != self.progress.step:
                self._save(last=True)
            else:
                self._publish()  # it may have been killed between saving and publishing
            if not interrupted and self.recipe.training.average is not None:
                self._evaluate_mean()
        reason = "interrupted" if interrupted else "stopped early" if self.progress.stopped_early else "finished"
        return Outcome(reason, self.progress, self.task.steps, interrupts.received if interrupted else None)

    def _train(self, interrupts: Interrupts) -> bool:
        """Make the updates that are left; return whether a signal came in between."""
        progress, ready = self.progress, None
        with ThreadPoolExecutor(max_workers=1) as pool:
            while progress.step < self.task.steps and not progress.stopped_early:
                start = time.perf_counter()
                micro_batches = ready.result() if ready else self.batches.micro_batches(progress.step)
                # The workers agree on the signal in the sum that they need anyway, before the update.
                totals = self._totals(micro_batches, interrupts.received is not None)
                if totals.pop("interrupted"):
                    return True
                ready = self._prepare_next(pool)
                self._update(micro_batches, totals)
                progress.spend(time.perf_counter() - start)
                self._after_update()
        return False

    def _prepare_next(self, pool: ThreadPoolExecutor) -> "Future[list[dict[str, Tensor]]] | None":
        following = self.progress.step + 1
        return pool.submit(self.batches.micro_batches, following) if following < self.task.steps else None

    def _totals(self, micro_batches: list[dict[str, Tensor]], interrupted: bool) -> dict[str, int]:
        """Count what the loss is divided by, over all micro-batches and workers."""
        counts: dict[str, float] = {"interrupted": int(interrupted)}
        for batch in micro_batches:
            for name, count in self.task.objective.counts(batch).items():
                counts[name] = counts.get(name, 0) + count
        return {name: round(count) for name, count in self.workers.sum(counts).items()}

    def _update(self, micro_batches: list[dict[str, Tensor]], totals: dict[str, int]) -> None:
        progress = self.progress
        torch.manual_seed(derived_seed(self.recipe.seed, progress.step, self.workers.rank))
        learning_rate = self._learning_rate(progress.step)
        sums = self._backward(micro_batches, totals)
        norm = gradient_norm(self.model.parameters())
        if not any(totals.values()):
            progress.skipped += 1
        elif math.isfinite(sums["loss"]) and math.isfinite(norm):
            self._step(learning_rate, norm)
            progress.observe({**sums, "gradient_norm": norm})
            smooth = self._shown.get("loss", sums["loss"])
            self._shown["loss"] = 0.9 * smooth + 0.1 * sums["loss"]
        else:
            self._refuse(sums["loss"], norm, learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        seen = self.batches.plan.first(progress.step + 1) - self.batches.plan.first(progress.step)
        progress.advance(seen * self.task.length)

    def _backward(self, micro_batches: list[dict[str, Tensor]], totals: dict[str, int]) -> dict[str, float]:
        """Add up the gradients of the update; return the loss and the objective's sums, over all workers."""
        sums: dict[str, float] = {"loss": 0.0}
        rounds = self.batches.rounds(self.progress.step)
        for number in range(rounds):
            # A worker with fewer micro-batches repeats its last one for nothing: sharded models move in step.
            counted = number < len(micro_batches)
            batch = self._on_device(micro_batches[min(number, len(micro_batches) - 1)])
            synchronize_gradients(self.loss_module, number == rounds - 1)
            with self._autocast():
                loss, metrics = self.loss_module(batch, totals)
            # Sharding averages the gradients over the workers; the loss is already a share of the whole step's.
            (loss * (self.workers.world if counted else 0)).backward()
            if counted:
                for name, value in {"loss": loss.detach(), **metrics}.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        return self.workers.sum(sums)

    def _step(self, learning_rate: float, norm: float) -> None:
        clip_gradients(self.model, self.recipe.training, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
        self.optimizer.step()
        self.progress.bad_in_a_row = 0
        if self.average is not None:
            self.average.update(self.progress.step + 1)

    def _refuse(self, loss: float, norm: float, learning_rate: float) -> None:
        """Count and report an update that must not be made; give up if there are too many in a row."""
        progress, limit = self.progress, self.recipe.training.non_finite_limit
        progress.skipped += 1
        progress.bad_in_a_row += 1
        report = non_finite_report(
            self.model,
            step=progress.step + 1,
            loss=loss,
            norm=norm,
            learning_rate=learning_rate,
            samples=self.batches.plan.samples(progress.step),
        )
        if self._metrics is not None:
            self._metrics.write(progress.step + 1, {"event": "not finite", "report": report})
            self._metrics.sync()
        if progress.bad_in_a_row >= limit:
            raise Diverged(f"{report}; {limit} in a row. Checkpoints in {self.directory} are from before.")
        self.display.say(report)

    def _after_update(self) -> None:
        """Log, evaluate and save where it is time to."""
        step, last = self.progress.step, self.progress.step == self.task.steps
        values: dict[str, Any] = {}
        speed = self.progress.tokens_per_second
        pace = {
            "learning_rate": self._learning_rate(step - 1),
            "tokens_per_second": speed,
            "utilisation": speed * self._flops / self._rate,
        }
        self._shown.update(pace)
        if step % self.recipe.output.log_every == 0 or last:
            values.update({**self.progress.close_window(), **pace})
        if self.task.held_out is not None and (step % self.recipe.evaluation.every == 0 or last):
            values.update(self._evaluate(self.task.held_out))
        if self._metrics is not None:
            if values:
                self._metrics.write(step, values)
            self.display.step(step, self._shown)
        if step % self.recipe.output.save_every == 0:
            self._save()

    def _evaluate(self, held_out: HeldOut | Measured) -> dict[str, Any]:
        progress = self.progress
        with applied(self.model, self.average.tensors) if self.average is not None else nullcontext():
            result = evaluate(self.loss_module, held_out, self.workers, self._autocast())
        improved = progress.evaluated(result, self.recipe.evaluation.patience)
        if improved:
            self.saver.attempt(lambda: self._publish(best=True), f"the best weights, of step {progress.step:,}")
        if self.workers.main:
            self.display.say(result.in_words(progress.step, improved))
        if result.bits_per_byte is not None:
            self._shown["bits_per_byte"] = result.bits_per_byte
        if result.score is not None:
            self._shown["score"] = result.score
        return result.numbers()

    def _evaluate_mean(self) -> None:
        """Say what the mean of the last checkpoints reaches; it is the run's last evaluation."""
        if self.task.held_out is None:
            return
        with applied(self.model, self._weights(mean=True)):
            result = evaluate(self.loss_module, self.task.held_out, self.workers, self._autocast())
        self.progress.evaluation = asdict(result)
        if self._metrics is not None:
            self._metrics.write(self.progress.step, {"event": "mean of checkpoints", **result.numbers()})
        if self.workers.main:
            self.display.say(f"mean of the last checkpoints: {result.in_words(self.progress.step, False)}")

    def _save(self, last: bool = False) -> None:
        """Write a checkpoint and publish the weights. Only the last one of the run may not fail."""
        if self.progress.bad_in_a_row:
            return  # every checkpoint is a good one
        if last:
            self._write_state()
            self._publish()
        else:
            self.saver.attempt(self._write_state, f"the checkpoint of step {self.progress.step:,}")
            self.saver.attempt(self._publish, f"the weights of step {self.progress.step:,}")

    def _write_state(self) -> None:
        if self._metrics is not None:
            self._metrics.sync()  # no checkpoint is newer than what the log tells
        record = {
            "progress": asdict(self.progress),
            "fingerprints": dict(self.task.fingerprints),
            "environment": self._environment(),
            "recipe": self.recipe.model_dump(mode="json"),
        }
        self.saver.write_state(self.progress.step, self.model, self.optimizer, self.average, self.carried, record)
        self._saved_step = self.progress.step

    def _publish(self, best: bool = False) -> None:
        self.saver.publish(self._weights(mean=not best), best=best)

    def _weights(self, mean: bool) -> Mapping[str, Tensor]:
        """Return what is evaluated and published: the weights, or their average; `mean`: of the last checkpoints."""
        last = self.recipe.training.average
        if mean and last is not None:
            self.workers.barrier()  # the main one may still be writing the last
            return mean_of_checkpoints(self.directory / STATES, last, self.model)
        return dict(self.model.named_parameters()) if self.average is None else self.average.tensors

    def _restore(self, saved: SavedState) -> None:
        for name, value in self.task.fingerprints.items():
            if saved.record["fingerprints"].get(name) != value:
                raise InputError(
                    f"{saved.path}: was trained with another {name} (fingerprint "
                    f"{saved.record['fingerprints'].get(name)}, now {value}); use another --out, or --overwrite"
                )
        averages = self.average.tensors if self.average else {}
        restore_tensors(saved.path, self.model, self.optimizer, averages, self.carried)
        self.progress = Progress(**saved.record["progress"])
        self._saved_step = self.progress.step
        then = saved.record["environment"]
        here = self._environment().items()
        changed = [f"{name} {then.get(name)} then, {now} now" for name, now in here if then.get(name) != now]
        if changed and self.workers.main:
            self.display.say(f"resuming under other conditions, equal only up to rounding: {'; '.join(changed)}")

    def _environment(self) -> dict[str, Any]:
        """Describe what the last bits of the results depend on."""
        return {
            "threads": torch.get_num_threads(),
            "workers": self.workers.world,
            "device": self.workers.device.type,
            "precision": str(self.precision).removeprefix("torch."),
            "torch": torch.__version__,
        }

    def _learning_rate(self, step: int) -> float:
        rate = getattr(self.task.sequences, "rate", None)
        return self.recipe.training.rate(step, self.task.steps) * (rate(step) if rate else 1.0)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.workers.device.type, dtype=self.precision)

    def _on_device(self, batch: Batch) -> dict[str, Tensor]:
        return {name: tensor.to(self.workers.device, non_blocking=True) for name, tensor in batch.items()}
