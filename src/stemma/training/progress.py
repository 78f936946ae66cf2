"""What a person sees of a training: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# On anything but a terminal a line is printed no more often than this, in seconds.
PLAIN_INTERVAL = 5.0
CURVE = 24  # characters of a curve, where there is room
_BARS = "▁▂▃▄▅▆▇█"

Report = Callable[[str, int, int], None]


class ConsoleDisplay:
    """Shows a training on a Rich console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar: TrainingBar | None = None
        self._printed = 0.0
        self._window = (0, 0.0)  # update and time of the last plain line, for the time left
        self._steps = 0

    @contextmanager
    def preparing(self) -> Iterator[Report]:
        """Show what the block prepares: it calls with a stage, and what of it is done and to do (0: unknown)."""
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        stages: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=None)
                if bar.disable:
                    self.say(f"{stage} ...")
            bar.update(stages[stage], completed=done, total=total or None)

        with bar:
            yield report

    @contextmanager
    def running(self, step: int, steps: int) -> Iterator[None]:
        """Show the progress while the block runs, from update `step` of `steps`."""
        self._steps = steps
        self._printed = time.monotonic()
        self._window = (step, self._printed)
        if not self.console.is_terminal:
            yield
            return
        self._bar = TrainingBar(self.console, step, steps)
        try:
            with self._bar:
                yield
        finally:
            self._bar = None

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show the state after an update; values as in metrics.jsonl."""
        if self._bar is not None:
            self._bar.show(step, describe(values))
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL:
            self._printed = time.monotonic()
            first, started = self._window
            left = (self._steps - step) * (self._printed - started) / max(step - first, 1)
            self.say(f"step {step:,}/{self._steps:,}  {describe(values)}  {duration(left)} left")

    def say(self, message: str) -> None:
        """Show one line, above the bar if there is one."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` things are done: the block calls with the number of those just done."""
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.advance(task, done)
        return
    started = printed = time.monotonic()
    count = 0

    def report(done: int) -> None:
        nonlocal printed, count
        count += done
        now = time.monotonic()
        if now - printed >= PLAIN_INTERVAL and count < total:
            printed = now
            left = duration((total - count) * (now - started) / count)
            console.print(f"{what} {count:,}/{total:,}  {left} left", highlight=False, markup=False, soft_wrap=True)

    yield report


class Silent:
    """Shows nothing."""

    @contextmanager
    def preparing(self) -> Iterator[Report]:
        """Run the block."""
        yield lambda stage, done, total: None

    @contextmanager
    def running(self, step: int, steps: int) -> Iterator[None]:
        """Run the block."""
        yield

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Show nothing."""

    def say(self, message: str) -> None:
        """Show nothing."""


class TrainingBar(Progress):
    """A bar with the time left, and below it a line of numbers."""

    def __init__(self, console: Console, step: int, steps: int) -> None:
        self._numbers = Text("")  # the base class shows it at once
        super().__init__(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._training = self.add_task("", total=steps, completed=step)

    def show(self, step: int, numbers: str) -> None:
        """Move the bar and replace the numbers."""
        self._numbers = Text(numbers, no_wrap=True, overflow="ellipsis")
        self.update(self._training, completed=step)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bar, then the numbers."""
        yield self.make_tasks_table(self.tasks)
        yield self._numbers


def describe(values: Mapping[str, float]) -> str:
    """Put the numbers of a step in words; those that are absent are left out.

    MFU, model FLOP utilisation, is the share of the machine's own matrix product rate that the model's products reach.
    """
    parts = {
        "loss": lambda x: f"loss {x:.4f}",
        "bits_per_byte": lambda x: f"held-out {x:.3f} bits/byte",
        "score": lambda x: f"dev {x:.4f}",
        "tokens_per_second": lambda x: f"{quantity(x)} tokens/s",
        "words_per_second": lambda x: f"{quantity(x)} words/s",
        "records_per_second": lambda x: f"{quantity(x)} pairs/s",
        "utilisation": lambda x: f"MFU {100 * x:.0f} %",
        "learning_rate": lambda x: f"lr {x:.2e}",
    }
    return "  ".join(words(values[name]) for name, words in parts.items() if values.get(name) is not None)


def sparkline(values: Sequence[float], width: int = CURVE) -> str:
    """Return a curve of the values in characters; its height is their range."""
    if len(values) < 2:
        return ""
    step = max(len(values) / width, 1.0)
    picked = [values[min(int(i * step), len(values) - 1)] for i in range(min(width, len(values)))]
    low, high = min(picked), max(picked)
    return "".join(_BARS[round((value - low) / ((high - low) or 1.0) * (len(_BARS) - 1))] for value in picked)


def quantity(number: float) -> str:
    """Return a number in at most three or four digits: 950, 12.3k, 1.2M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number / size:,.0f}{unit}"
    return f"{number:.3g}" if number < 1 else f"{number:.0f}"


def duration(seconds: float) -> str:
    """Return a time as 0:07, 12:30 or 3:05:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
