"""What a person sees while a policy learns from rewards: a live table of the numbers that matter, with their curves."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stemma.training.progress import PLAIN_INTERVAL, ConsoleDisplay, duration, quantity, sparkline

# name in metrics.jsonl: what it is called, and what it says.
SHOWN = {
    "reward": ("reward", "mean of the rollout, as it was judged"),
    "score": ("score", "with what a missing end costs"),
    "kl": ("KL", "nats of a response to the reference"),
    "coefficient": ("beta", "what a nat of KL costs"),
    "entropy": ("entropy", "nats of a token"),
    "clip_fraction": ("clipped", "share of the tokens"),
    "explained_variance": ("explained", "variance of the returns that the values explain"),
    "response_length": ("length", "tokens of a response"),
    "ended": ("ended", "share of the responses"),
    "pretraining_loss": ("pretraining", "loss of the text that is mixed in"),
}


class CurvesDisplay(ConsoleDisplay):
    """Shows a live table on a terminal, and plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self.values: dict[str, list[float]] = {}
        self._live: Live | None = None
        self._step = 0

    @contextmanager
    def running(self, step: int, steps: int) -> Iterator[None]:
        """Show the table while the block runs, from step `step` of `steps`."""
        self._steps, self._step = steps, step
        self._printed = time.monotonic()
        self._window = (step, self._printed)
        if not self.console.is_terminal:
            yield
            return
        with Live(self.table(), console=self.console, refresh_per_second=4) as self._live:
            try:
                yield
            finally:
                self._live.update(self.table())
        self._live = None

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show the state after a step; values as in metrics.jsonl."""
        self._step = step
        for name in SHOWN.keys() & values.keys():
            self.values.setdefault(name, []).append(values[name])
        self._speed = values["tokens_per_second"]
        if self._live is not None:
            self._live.update(self.table())
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL or step == self._steps:
            self._printed = time.monotonic()
            numbers = "  ".join(f"{SHOWN[name][0]} {values[name]:.3g}" for name in SHOWN if name in values)
            self.say(f"step {step:,}/{self._steps:,}  {numbers}  {self._left()}")

    def table(self) -> Table:
        """Return a row for each number: the first, the last, the curve between, and what it means."""
        title = f"step {self._step:,}/{self._steps:,}"
        if self.values:
            title += f"  {quantity(self._speed)} tokens/s  {self._left()}"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name, justify in (("", "left"), ("first", "right"), ("now", "right"), ("curve", "left"), ("", "left")):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for name, (short, meaning) in SHOWN.items():
            if name in self.values:
                seen = self.values[name]
                table.add_row(short, f"{seen[0]:.3f}", f"{seen[-1]:.3f}", sparkline(seen), f"[dim]{meaning}[/dim]")
        return table

    def _left(self) -> str:
        first, started = self._window
        return (
            f"{duration((self._steps - self._step) * (time.monotonic() - started) / max(self._step - first, 1))} left"
        )
