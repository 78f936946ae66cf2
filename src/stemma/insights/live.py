"""What a person sees while the frameworks are trained: a line for each, with its loss so far and what it reached."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stemma.insights.arms import ARMS
from stemma.insights.compare import Observer
from stemma.insights.plan import Plan
from stemma.insights.workers import Event
from stemma.training.progress import duration

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24  # of a curve, in characters, where there is room
_OTHERS = 59  # characters of a row beside the framework's name and the curve
_AROUND = 8  # lines of the screen beside the rows: messages, header, caption, time
_SHORT = {"fine-tuning from random weights": "from random"}  # so that a row fits into 80 characters
_INTERVAL = 5.0  # seconds between plain lines of a job


@dataclass
class _Row:
    stage: str = "waiting"
    done: int = 0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    measures: Mapping[str, Any] | None = None

    def take(self, event: Event) -> None:
        _, self.stage, self.done, self.steps, values = event
        if self.stage == "pretraining" and "loss" in values:
            self.losses.append(values["loss"])


@contextmanager
def live(plan: Plan, console: Console) -> Iterator[Observer]:
    """Show a table that follows the jobs, on a terminal."""
    rows = {f"{arm}-{seed}": _Row() for seed in plan.seeds for arm in plan.arms}
    started = time.monotonic()
    said: list[str] = []

    def screen() -> RenderableType:
        table = _table(plan, rows, console.width, console.height - _AROUND)
        return Group(*map(Text, said[-3:]), table, Text(duration(time.monotonic() - started)))

    with Live(screen(), console=console, refresh_per_second=4, transient=True) as display:

        def say(line: str) -> None:
            said.append(line)
            display.update(screen())  # before the jobs begin nothing ticks

        yield Observer(
            say=say,
            event=lambda event: rows[event[0]].take(event),
            measured=lambda job, measures: _take_measures(rows[job], measures),
            tick=lambda: display.update(screen()),
        )


@contextmanager
def plain(plan: Plan, console: Console) -> Iterator[Observer]:
    """Print lines where there is no terminal: the state of each job now and then, and what it reached."""
    printed: dict[str, float] = {}

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    def event(event: Event) -> None:
        job, stage, done, steps, values = event
        now = time.monotonic()
        if now - printed.get(job, -_INTERVAL) >= _INTERVAL and steps and stage != "done":
            printed[job] = now
            loss = f"  loss {values['loss']:.3f}" if "loss" in values else ""
            say(f"{job:<12} {stage} {done:,}/{steps:,}{loss}")

    def measured(job: str, measures: Mapping[str, Any]) -> None:
        say(f"{job:<12} {_in_words(measures)}")

    yield Observer(say=say, event=event, measured=measured)


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """Return a curve of the values in characters; its height is their range."""
    if len(values) < 2:
        return ""
    step = max(len(values) / width, 1.0)
    picked = [values[min(int(i * step), len(values) - 1)] for i in range(min(width, len(values)))]
    low, high = min(picked), max(picked)
    return "".join(_BARS[round((value - low) / ((high - low) or 1.0) * (len(_BARS) - 1))] for value in picked)


def _take_measures(row: _Row, measures: Mapping[str, Any]) -> None:
    row.measures, row.stage = measures, "done"


def _table(plan: Plan, rows: Mapping[str, _Row], width: int, height: int) -> Table:
    names = {arm: ARMS[arm].label for arm in plan.arms}
    if max(map(len, names.values())) + _OTHERS + _WIDTH // 2 > width:
        names = {arm: arm for arm in plan.arms}
    longest = max(map(len, [*names.values(), "framework"]))
    curve = max(min(width - longest - _OTHERS, _WIDTH), 5)
    caption = (
        "class: accuracy after fine-tuning; choice: one of four pieces; nats: per token of a blank; bits: per byte"
    )
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
    for name in ("framework", "seed", "", "loss", "curve"):
        table.add_column(name, no_wrap=True)
    for name in ("class", "choice", "nats", "bits"):
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    jobs = [(arm, seed, rows[f"{arm}-{seed}"]) for seed in plan.seeds for arm in plan.arms]
    shown = [job for job in jobs if job[1] == plan.seeds[0] or job[2].stage != "waiting"]
    done = [job for job in shown if job[2].stage == "done"]
    hidden = done[: max(len(shown) - height, 0)]  # what a terminal cannot hold flickers
    if hidden:
        table.caption = f"and {len(hidden)} more that are done; {caption}"
    for arm, seed, row in shown:
        if (arm, seed, row) not in hidden:
            share = f" {100 * row.done // row.steps} %" if row.steps and row.stage != "done" else ""
            loss = f"{row.losses[-1]:.3f}" if row.losses else ""
            stage = _SHORT.get(row.stage, row.stage) + share
            numbers = _numbers(row.measures or {})
            table.add_row(names[arm], str(seed), stage, loss, sparkline(row.losses, curve), *numbers)
    return table


def _numbers(measures: Mapping[str, Any]) -> list[str]:
    finetuned = measures.get("finetuned", {}).get("test")
    values = (finetuned, measures.get("choice"), measures.get("blank_nll"), measures.get("bits_per_byte"))
    return ["" if value is None else f"{value:.3f}" for value in values]


def _in_words(measures: Mapping[str, Any]) -> str:
    names = ("classification", "choice", "nats a token of a blank", "bits per byte")
    pairs = zip(names, _numbers(measures), strict=True)
    return "  ".join(f"{name} {value}" for name, value in pairs if value)
