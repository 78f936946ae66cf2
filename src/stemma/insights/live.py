"""What a person sees while jobs run: a line for each arm and seed, with its loss so far and what it reached."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stemma.insights.experiments import Board, Column, Measures, Observer
from stemma.insights.workers import Event
from stemma.training.progress import CURVE, duration, sparkline

_OTHERS = 31  # characters of a row beside the name, the curve and the measures
_NUMBER = 7  # characters of a measure
_AROUND = 8  # lines of the screen beside the rows: messages, header, caption, time
_SHORT = {"fine-tuning from random weights": "from random"}  # so that a row fits into 80 characters
_INTERVAL = 5.0  # seconds between plain lines of a job


@dataclass
class _Row:
    stage: str = "waiting"
    done: int = 0
    steps: int = 0
    learned: str = ""  # the first stage with a loss: pretraining, where there is any
    losses: list[float] = field(default_factory=list)
    measures: Measures | None = None

    def take(self, event: Event) -> None:
        _, self.stage, self.done, self.steps, values = event
        if "loss" in values:
            self.learned = self.learned or self.stage
            if self.stage == self.learned:
                self.losses.append(values["loss"])


@contextmanager
def live(board: Board, console: Console) -> Iterator[Observer]:
    """Show a table that follows the jobs, on a terminal."""
    rows = {f"{arm}-{seed}": _Row() for seed in board.seeds for arm in board.labels}
    started = time.monotonic()
    said: list[str] = []

    def screen() -> RenderableType:
        table = _table(board, rows, console.width, console.height - _AROUND)
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
def plain(board: Board, console: Console) -> Iterator[Observer]:
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

    def measured(job: str, measures: Measures) -> None:
        say(f"{job:<12} {_in_words(board, measures)}")

    yield Observer(say=say, event=event, measured=measured)


def _take_measures(row: _Row, measures: Measures) -> None:
    row.measures, row.stage = measures, "done"


def _table(board: Board, rows: Mapping[str, _Row], width: int, height: int) -> Table:
    names, columns = dict(board.labels), _columns(board)
    others = _OTHERS + _NUMBER * len(columns)
    if max(map(len, names.values())) + others + CURVE // 2 > width:
        names = {arm: arm for arm in names}
    longest = max(map(len, [*names.values(), board.first]))
    curve = max(min(width - longest - others, CURVE), 5)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, caption=board.caption, caption_justify="left")
    for name in (board.first, "seed", "", "loss", "curve"):
        table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True, min_width=_NUMBER - 1)
    jobs = [(arm, seed, rows[f"{arm}-{seed}"]) for seed in board.seeds for arm in names]
    shown = [job for job in jobs if job[1] == board.seeds[0] or job[2].stage != "waiting"]
    done = [job for job in shown if job[2].stage == "done"]
    hidden = done[: max(len(shown) - height, 0)]  # what a terminal cannot hold flickers
    if hidden:
        table.caption = f"and {len(hidden)} more that are done; {board.caption}"
    for arm, seed, row in shown:
        if (arm, seed, row) not in hidden:
            share = f" {100 * row.done // row.steps} %" if row.steps and row.stage != "done" else ""
            loss = f"{row.losses[-1]:.3f}" if row.losses else ""
            stage = _SHORT.get(row.stage, row.stage) + share
            numbers = _numbers(columns, row.measures)
            table.add_row(names[arm], str(seed), stage, loss, sparkline(row.losses, curve), *numbers)
    return table


def _columns(board: Board) -> list[Column]:
    return [column for column in board.columns if column.header]


def _numbers(columns: Sequence[Column], measures: Measures | None) -> list[str]:
    values = [None if measures is None else column.value(measures) for column in columns]
    return ["" if value is None else f"{value:.3f}" for value in values]


def _in_words(board: Board, measures: Measures) -> str:
    columns = _columns(board)
    pairs = zip(columns, _numbers(columns, measures), strict=True)
    return "  ".join(f"{column.title} {value}" for column, value in pairs if value)
