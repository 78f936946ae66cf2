"""Arms with several seeds each, run as jobs that are measured once: for comparisons and for experiments of claims.

<out>/plan.json                      what decides the results, fixed once; the same command goes on with it
<out>/shared/                        what the jobs share
<out>/<arm>-<seed>/                  what a job keeps, to go on with
<out>/<arm>-<seed>/measures.json     what came out
<out>/results.json
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stemma.errors import InputError
from stemma.files import write_whole
from stemma.insights.workers import Event, Report, run_jobs

PLAN, SHARED, MEASURES, RESULTS = "plan.json", "shared", "measures.json", "results.json"

Measures = Mapping[str, Any]


@dataclass
class Observer:
    """Who is told how the jobs go; see `live`."""

    say: Callable[[str], None] = lambda message: None
    event: Report = lambda event: None
    measured: Callable[[str, Measures], None] = lambda job, measures: None
    tick: Callable[[], None] = field(default=lambda: None)


class Named(Protocol):
    """A job: `name` is that of its folder."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Column:
    """A measure as it is shown.

    Args:
        title: in the report. header: where there is little room. value: of a job's measures, None where it has none.
        more: whether more is better.
    """

    title: str
    header: str
    value: Callable[[Measures], float | None]
    more: bool = True


@dataclass(frozen=True)
class Board:
    """What a display shows: a row for each arm and seed, a column for each measure.

    Args:
        first: what the arms are. labels: what people call them, by name. caption: explains the headers.
    """

    first: str
    labels: Mapping[str, str]
    seeds: Sequence[int]
    columns: Sequence[Column]
    caption: str = ""


@dataclass(frozen=True)
class Job:
    """One arm with one seed.

    Args:
        folder: its own, where it goes on from. shared: what `Experiment.prepare` made. settings: of the experiment.
    """

    arm: str
    seed: int
    folder: Path
    shared: Path
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


@dataclass(frozen=True)
class Experiment:
    """An experiment of any arms.

    Args:
        arms: what people call them, by name. scales: what else decides the results ("small" for two cores, "paper"
            for GPUs), plain data; "text", "labels" and "steps" in it can be given by the user.
        work: a module's function that does a job and returns its measures; it goes on from what it left in the folder.
        columns: what is shown of the measures. prepare: makes what all jobs share; it goes on from what
            it left in the folder.
        charts: further parts of the report, from the results.
    """

    arms: Mapping[str, str]
    scales: Mapping[str, Mapping[str, Any]]
    work: Callable[[Job, Report], Measures]
    columns: Sequence[Column]
    prepare: Callable[[Mapping[str, Any], Path], None] = lambda settings, shared: None
    charts: Callable[[Mapping[str, Any]], Sequence[Any]] = lambda results: ()

    def settings(self, scale: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a scale with what the user gave in place of it.

        Raises:
            InputError: no such scale, or something is given that the experiment does not have.
        """
        if scale not in self.scales:
            raise InputError(f"--scale {scale}: expected one of {', '.join(self.scales)}")
        settings = dict(self.scales[scale])
        for name in given:
            if name not in settings:
                raise InputError(f"--{name}: this claim's experiment has none")
        return {**settings, **given}


def run_experiment(
    experiment: Experiment,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    out: Path,
    *,
    workers: int,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Run an experiment, or go on with one that is in `out`; return its results, as in `out`/results.json.

    Raises:
        InputError: `out` holds something else. Interrupted: everything finished so far is kept.
    """
    observer = observer or Observer()
    plan = {**settings, "arms": list(experiment.arms), "seeds": list(seeds)}
    shared = out / SHARED
    with claimed(out, plan):
        if not shared.is_dir():
            building = out / f"{SHARED}.building"
            building.mkdir(exist_ok=True)
            observer.say("preparing what all share ...")
            experiment.prepare(settings, building)
            building.rename(shared)
    jobs = [Job(arm, seed, out / f"{arm}-{seed}", shared, settings) for seed in seeds for arm in experiment.arms]
    measures = run_missing(experiment.work, jobs, out, workers=workers, observer=observer)
    return write_results(out, {"plan": plan, "measures": measures})


def run_missing(
    work: Callable[[Any, Report], Measures], jobs: Sequence[Named], out: Path, *, workers: int, observer: Observer
) -> dict[str, Measures]:
    """Do the jobs that have no measures yet; return those of all by name.

    Raises:
        Interrupted, ChildProcessError: see `run_jobs`.
    """
    found = {job.name: read_measures(out / job.name) for job in jobs}
    for name, measures in found.items():
        if measures is not None:
            observer.measured(name, measures)
    todo = [(work, job, out / job.name) for job in jobs if found[job.name] is None]

    def on_event(event: Event) -> None:
        observer.event(event)
        if event[1] == "done":
            observer.measured(event[0], read_measures(out / event[0]) or {})

    if todo:
        observer.say(f"{len(todo)} of {len(jobs)} jobs to do")
        run_jobs(_measure, todo, workers=workers, on_event=on_event, tick=observer.tick)
    return {job.name: read_measures(out / job.name) or {} for job in jobs}


def _measure(task: tuple[Callable[[Any, Report], Measures], Named, Path], report: Report) -> None:
    work, job, folder = task
    folder.mkdir(parents=True, exist_ok=True)
    measures = work(job, report)
    with write_whole(folder / MEASURES) as temporary:
        temporary.write_text(json.dumps(measures) + "\n", encoding="utf-8")
    report((job.name, "done", 1, 1, {}))


def read_measures(folder: Path) -> dict[str, Any] | None:
    """Return what a job measured; None if it has not."""
    try:
        content: dict[str, Any] = json.loads((folder / MEASURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


@contextmanager
def claimed(out: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """Take a folder for what a plan decides; a new one is emptied when what is done then ends with an `InputError`, so
    that it can be given with what is wrong put right.

    Raises:
        InputError: it holds something else, or what another plan made.
    """
    new = _claim(out, json.loads(json.dumps(plan)))
    try:
        yield
    except InputError:
        for path in out.iterdir() if new else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _claim(out: Path, plan: Mapping[str, Any]) -> bool:
    path = out / PLAN
    if path.is_file():
        try:
            there = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not the plan of an experiment ({error}); give another --out") from error
        changed = [
            f"{name}: {plan.get(name)}, {there.get(name)}"
            for name in {**plan, **there}
            if plan.get(name) != there.get(name)
        ]
        if changed:
            raise InputError(f"{out}: holds another experiment (here, there): {'; '.join(changed)}. Give another --out")
        return False
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds something else; expected a new or empty directory")
    out.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    return True


def write_results(out: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Write `out`/results.json; return the results."""
    with write_whole(out / RESULTS) as temporary:
        temporary.write_text(json.dumps(results) + "\n", encoding="utf-8")
    return results
