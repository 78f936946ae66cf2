"""Experiments of claims: jobs that are done once, whatever comes between, and how they are shown."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stemma.errors import InputError
from stemma.evaluation.intervals import over_seeds
from stemma.insights import experiments, reproduce
from stemma.insights.claims import Claim, Decision, by_sign, difference
from stemma.insights.experiments import Column, Experiment, Job, run_experiment
from stemma.insights.live import plain
from stemma.insights.parts import Code, Paragraph
from stemma.insights.reproduce import CLAIMS, section_of, trial_of
from stemma.insights.tables import average, rows_of
from stemma.insights.workers import Report

ADDED = Column("sum", "sum", lambda m: m["sum"])
ERRORS = Column("errors", "", lambda m: m.get("errors"), more=False)


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    (shared / "offset").write_text(str(settings["offset"]))


def work(job: Job, report: Report) -> dict[str, float]:
    """The sum of what is shared, the seed and the arm's number; one job fails when told to, after it left a file."""
    report((job.name, "adding", 0, 1, {"loss": 1.0}))
    with (job.folder / "times").open("a") as file:
        file.write("x")
    if job.settings["fails"] == job.name:
        raise InputError("as told")
    value = float((job.shared / "offset").read_text()) + job.seed + {"one": 1.0, "ten": 10.0}[job.arm]
    return {"sum": value} | ({"errors": 0.5} if job.arm == "ten" else {})


EXPERIMENT = Experiment(
    {"one": "plus one", "ten": "plus ten"},
    {"small": {"offset": 100, "fails": ""}, "paper": {"offset": 1000, "fails": ""}},
    work,
    (ADDED, ERRORS),
    prepare,
    lambda results: [Paragraph(f"{len(results['measures'])} measured")],
)
SETTINGS = {"offset": 100, "fails": ""}


@pytest.fixture(autouse=True)
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(work: Any, jobs: Any, *, workers: int, on_event: Any, tick: Any) -> None:
        for job in jobs:
            work(job, on_event)

    monkeypatch.setattr(experiments, "run_jobs", run)


def test_each_arm_and_seed_is_measured_once(tmp_path: Path) -> None:
    results = run_experiment(EXPERIMENT, SETTINGS, (1, 2), tmp_path, workers=1)
    sums = {name: measures["sum"] for name, measures in results["measures"].items()}
    assert sums == {"one-1": 102.0, "ten-1": 111.0, "one-2": 103.0, "ten-2": 112.0}
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["plan"] == {"offset": 100, "fails": "", "arms": ["one", "ten"], "seeds": [1, 2]}
    assert run_experiment(EXPERIMENT, SETTINGS, (1, 2), tmp_path, workers=1) == results
    assert {path.read_text() for path in tmp_path.glob("*/times")} == {"x"}


def test_after_a_failure_it_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="as told"):
        run_experiment(EXPERIMENT, {**SETTINGS, "fails": "one-2"}, (1, 2), tmp_path, workers=1)
    assert sorted(path.parent.name for path in tmp_path.glob("*/measures.json")) == ["one-1", "ten-1"]
    plan = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "fails": ""}))
    results = run_experiment(EXPERIMENT, SETTINGS, (1, 2), tmp_path, workers=1)
    assert len(results["measures"]) == 4
    assert [(tmp_path / job / "times").read_text() for job in ("one-1", "one-2")] == ["x", "xx"]


def failing(error: Exception) -> Experiment:
    """The experiment, its preparation interrupted by an error."""

    def broken(settings: Mapping[str, Any], shared: Path) -> None:
        (shared / "rest").touch()
        raise error

    return replace(EXPERIMENT, prepare=broken)


def test_what_was_half_prepared_is_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        run_experiment(failing(KeyError()), SETTINGS, (1,), tmp_path, workers=1)
    run_experiment(EXPERIMENT, SETTINGS, (1,), tmp_path, workers=1)
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["offset", "rest"]


def test_what_is_put_right_goes_into_the_same_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text"):
        run_experiment(failing(InputError("no text")), SETTINGS, (1,), tmp_path, workers=1)
    assert not list(tmp_path.iterdir())
    run_experiment(EXPERIMENT, {**SETTINGS, "offset": 7}, (1,), tmp_path, workers=1)
    with pytest.raises(InputError, match="another experiment"):
        run_experiment(EXPERIMENT, SETTINGS, (1,), tmp_path, workers=1)
    assert (tmp_path / "results.json").is_file()


def test_another_experiment_in_the_same_folder(tmp_path: Path) -> None:
    run_experiment(EXPERIMENT, SETTINGS, (1,), tmp_path, workers=1)
    with pytest.raises(InputError, match=r"another experiment \(here, there\): offset: 7, 100; seeds: \[1, 2\], \[1\]"):
        run_experiment(EXPERIMENT, {**SETTINGS, "offset": 7}, (1, 2), tmp_path, workers=1)


def test_settings_are_those_of_the_scale_and_the_user() -> None:
    assert EXPERIMENT.settings("paper", {"offset": 3}) == {"offset": 3, "fails": ""}
    with pytest.raises(InputError, match="--scale huge: expected one of small, paper"):
        EXPERIMENT.settings("huge", {})
    with pytest.raises(InputError, match="--labels: this claim's experiment has none"):
        EXPERIMENT.settings("small", {"labels": "my.csv"})


def test_rows_mark_the_best_and_leave_out_what_nobody_has(tmp_path: Path) -> None:
    results = run_experiment(EXPERIMENT, SETTINGS, (1, 2, 3), tmp_path, workers=1)
    never = Column("never", "", lambda m: None)
    (title, one, ten), (_, empty, errors) = rows_of(results, (ADDED, ERRORS, never))
    assert title == "sum" and (one.best, ten.best) == (False, True)
    assert ten.value == over_seeds([111.0, 112.0, 113.0]) == average(results, "ten", ADDED)
    assert empty.value == "" and errors.value.estimate == 0.5 and not errors.best  # nobody to be better than
    (row,) = rows_of(results, (Column("sum", "", ADDED.value, more=False),), running=lambda arm, _: arm == "ten")
    assert not any(cell.best for cell in row[1:])


def test_lines_and_section_of_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(results: Mapping[str, Any]) -> Decision:
        effect = difference(results, "ten", "one", lambda m: m["sum"])
        return Decision(by_sign(effect), effect)

    claim = Claim(
        "adding", "a paper", "ten is more than one", "what is added", "all else", "the sum", decide, EXPERIMENT
    )
    console = Console(file=io.StringIO(), width=80, record=True)
    trial = trial_of(claim, seeds=2)
    with plain(trial.board, console) as observer:
        decision = reproduce.reproduce(trial, tmp_path, workers=1, observer=observer)
    assert decision.outcome == "reproduced" and decision.effect.estimate == 9.0
    assert "ten-2        sum 112.000" in console.export_text().splitlines()
    assert json.loads((tmp_path / "adding" / "verdict.json").read_text())["outcome"] == "reproduced"
    results = json.loads((tmp_path / "adding" / "results.json").read_text())
    parts = section_of(trial, decision, results, tmp_path / "adding").parts
    command = Code("stemma reproduce adding --seeds 2 --scale small", caption="to run it again")
    assert Paragraph("4 measured") in parts and command in parts
    assert "ten is more than one" in (tmp_path / "report.html").read_text()
    given = {"steps": 7, "text": "my text.txt"}
    command = trial_of(CLAIMS["sliding-window"], seeds=3, scale="medium", given=given).command
    assert command == "stemma reproduce sliding-window --seeds 3 --scale medium --steps 7 --text 'my text.txt'"
