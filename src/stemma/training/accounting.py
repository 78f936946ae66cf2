"""Where a run stands, and the sums from which its metrics are made; all of it is part of a checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stemma.training.held_out import Evaluation
from stemma.training.objective import means


@dataclass
class Progress:
    """Where a run stands.

    Args:
        step: updates done, those that were skipped included. seconds: time spent in them.
        skipped: updates without a target or with a loss that was not finite. bad_in_a_row: of the latter, just now.
        best_loss, best_score, best_step: of the held-out evaluations; where there is a score it decides, and the loss
            between equal ones. without_improvement: evaluations since.
        evaluation: the last one. window: sums since the last line of metrics.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    bad_in_a_row: int = 0
    best_loss: float | None = None
    best_score: float | None = None
    best_step: int | None = None
    without_improvement: int = 0
    stopped_early: bool = False
    evaluation: dict[str, Any] | None = None
    window: dict[str, float] = field(default_factory=dict)

    def observe(self, sums: Mapping[str, float]) -> None:
        """Take in what an update gave: its loss, the norm of its gradient, the objective's sums."""
        for name, value in {**sums, "steps": 1}.items():
            self._add(name, value)

    def advance(self, tokens: int) -> None:
        """Count one more update, made or not."""
        self.step += 1
        self.tokens += tokens
        self._add("tokens", tokens)

    def spend(self, seconds: float) -> None:
        """Count time."""
        self.seconds += seconds
        self._add("seconds", seconds)

    @property
    def tokens_per_second(self) -> float:
        """Speed since the last line of metrics."""
        return self.window.get("tokens", 0.0) / (self.window.get("seconds") or 1.0)

    def evaluated(self, result: Evaluation, patience: int | None) -> bool:
        """Take in an evaluation; return whether it is the best so far."""
        best = (self.best_score or 0.0, -float("inf" if self.best_loss is None else self.best_loss))
        sound = not math.isnan(result.loss)
        improved = sound and (self.best_step is None or (result.score or 0.0, -result.loss) > best)
        self.evaluation = asdict(result)
        self.without_improvement = 0 if improved else self.without_improvement + 1
        self.stopped_early = patience is not None and self.without_improvement >= patience
        if improved:
            self.best_loss, self.best_score, self.best_step = result.loss, result.score, self.step
        return improved

    def close_window(self) -> dict[str, Any]:
        """Return the metrics of the updates since the last line, and begin anew.

        The loss and the gradient's norm are means over the updates, the objective's other sums means over the targets,
        or over what their name says after a slash.
        """
        window, self.window = self.window, {}
        values: dict[str, Any] = {"tokens": self.tokens, "seconds": round(self.seconds, 3)}
        if self.skipped:
            values["skipped"] = self.skipped
        steps = window.pop("steps", 0)
        if steps:
            values["loss"] = window["loss"] / steps
            values["gradient_norm"] = window["gradient_norm"] / steps
        own = ("loss", "gradient_norm", "tokens", "seconds")
        return values | means({name: value for name, value in window.items() if name not in own})

    def _add(self, name: str, value: float) -> None:
        self.window[name] = self.window.get(name, 0.0) + value
