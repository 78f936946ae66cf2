"""A very small comparison from end to end: what it leaves behind, and that an interrupted one ends the same."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from stemma.errors import InputError
from stemma.insights import experiments
from stemma.insights.arms import Scale
from stemma.insights.compare import compare, recipes
from stemma.insights.experiments import Observer
from stemma.insights.labels import divide_labelled, labelled
from stemma.insights.plan import Plan

WORDS = ("amber", "birch", "cedar", "dune", "elm", "fern", "gorse", "heath", "iris", "kelp", "moss", "oak", "reed")
TIMES = ("seconds", "pretraining_seconds")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text of 60 documents, and a table of labelled texts in which all of a label stand together."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [" ".join(WORDS[(line * step + line) % len(WORDS)] for step in range(150)) + "." for line in range(60)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["review", "verdict"])
        for label, word in (("bad, really", "moss"), ("good", "oak")):
            rows.writerows([f"{word} {WORDS[number % 9]} {number}", label] for number in range(40))
    return folder


@pytest.fixture(scope="module")
def plan(corpus: Path) -> Plan:
    return Plan(
        text=str(corpus / "text.txt"), field="text", documents="line", labels=str(corpus / "labels.csv"),
        label_text="review", label_column="verdict", arms=("gpt", "glm"), seeds=(1,),
        scale=Scale(1, 32, 2, 300, 4, 2, 32), held_out=0.2, examples=16, epochs=1, passages=4, passage_tokens=40,
        blanks=6, blank_tokens=40, longest_blank=3,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of its own, which workers see too."""
    before = os.environ.get("STEMMA_CACHE")
    os.environ["STEMMA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["STEMMA_CACHE"]
    else:
        os.environ["STEMMA_CACHE"] = before


@pytest.fixture(scope="module")
def whole(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> tuple[Path, dict[str, Any], list[Any]]:
    """The directory, the results and the events of an undisturbed comparison, one job after the other here."""
    out, told = tmp_path_factory.mktemp("whole") / "out", []

    def in_turn(work: Any, jobs: Any, *, workers: int, on_event: Any, tick: Any) -> None:
        for job in jobs:
            work(job, on_event)
            tick()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "run_jobs", in_turn)
        observer = Observer(
            event=lambda event: told.append(event), measured=lambda job, measures: told.append((job, measures))
        )
        return out, compare(plan, out, observer=observer), told


def without_times(measures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in measures.items() if name not in TIMES}


@pytest.mark.slow
def test_what_comes_out(whole: tuple[Path, dict[str, Any], list[Any]], plan: Plan) -> None:
    out, results, told = whole
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert Plan.of(json.loads((out / "plan.json").read_text())) == plan == Plan.of(results["plan"])
    assert set(results["measures"]) == {"gpt-1", "glm-1"}
    gpt, glm = results["parameters"].values()
    assert abs(gpt / glm - 1) < 0.02
    for job, measures in results["measures"].items():
        assert measures == json.loads((out / job / "measures.json").read_text())
        assert 0 < measures["bits_per_byte"] < 20 and 3 < measures["blank_nll"] < 12
        for share in ("exact_match", "rouge_l", "choice"):
            assert 0 <= measures[share] <= 1
        assert 0 < measures["pretraining_seconds"] <= measures["seconds"]
        assert len(measures["samples"]) == 6
        for stage in ("finetuned", "from-random"):
            assert measures[stage]["majority"] >= 0.5 and 0 <= measures[stage]["test"] <= 1
        assert results["curves"][job]["tokens"] == [64, 128, 192, 256]
        assert (job, measures) in told
        stages = list(dict.fromkeys(event[1] for event in told if event[0] == job and len(event) == 5))
        assert stages == ["pretraining", "fine-tuning", "fine-tuning from random weights", "measuring", "done"]
    assert {name: recipe.training.steps for (name, _), recipe in recipes(plan, out).items()} == {"gpt": 4, "glm": 4}


def test_the_labelled_texts_are_divided(plan: Plan, tmp_path: Path) -> None:
    """Each text in one part, and both labels in what is trained on, though the table has one after the other."""
    divide_labelled(
        labelled(str(plan.labels), text=plan.label_text, label=plan.label_column, each=96),
        tmp_path,
        examples=plan.examples,
    )
    parts = {}
    for name in ("train", "dev", "test"):
        lines = (tmp_path / f"labels-{name}.jsonl").read_text(encoding="utf-8").splitlines()
        parts[name] = [tuple(json.loads(line).values()) for line in lines]
    assert len(parts["train"]) == 16 and 20 <= len(parts["test"]) <= 44 and 3 <= len(parts["dev"]) <= 16
    texts = [text for part in parts.values() for text, _ in part]
    assert len(set(texts)) == len(texts)
    for part in parts.values():
        assert {label for _, label in part} == {"bad, really", "good"}
        assert all(text.startswith("moss") == (label == "bad, really") for text, label in part)


@pytest.mark.slow
def test_again_nothing_is_done_twice(
    whole: tuple[Path, dict[str, Any], list[Any]], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results, _ = whole
    monkeypatch.setattr(experiments, "run_jobs", None)  # there are no jobs
    measured: dict[str, Any] = {}
    again = compare(plan, out, observer=Observer(measured=measured.__setitem__))
    assert again == results and measured == results["measures"]


def test_a_rare_label_is_learned_or_left_out(plan: Plan, tmp_path: Path) -> None:
    """One of each label is among the few that are trained on; what is only in the other parts is in none."""
    labels = ["common"] * 60 + [f"rare-{number}" for number in range(12)]
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["review", "verdict"], *([f"text {i}", name] for i, name in enumerate(labels))])
    table = labelled(str(tmp_path / "labels.csv"), text="review", label="verdict", each=96)
    divide_labelled(table, tmp_path, examples=3)
    found = {
        name: [json.loads(line)["label"] for line in (tmp_path / f"labels-{name}.jsonl").read_text().splitlines()]
        for name in ("train", "dev", "test")
    }
    assert "common" in found["train"] and 3 <= len(found["train"]) == len(set(found["train"])) < 13
    assert set(found["test"]) | set(found["dev"]) <= set(found["train"])


def test_another_comparison_in_the_same_directory(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text(json.dumps(asdict(plan)))
    with pytest.raises(InputError) as caught:
        compare(replace(plan, seeds=(1, 2)), out)
    message = str(caught.value)
    assert message == f"{out}: holds another experiment (here, there): seeds: [1, 2], [1]. Give another --out"
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds something else; expected a new or empty directory"):
        compare(plan, tmp_path)
    (tmp_path / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"plan.json: not the plan of an experiment \(.*\); give another --out"):
        compare(plan, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "no-such-file.txt"}, "no-such-file.txt"),
        ({"label_text": "text"}, "labels.csv, line 2: no field 'text'; the fields are: review, verdict"),
        ({"passage_tokens": 4000}, "no held-out document has 4000 tokens"),
        ({"blank_tokens": 4000}, "no held-out document has 4000 tokens"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    plan: Plan, tmp_path: Path, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "run_jobs", None)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        compare(replace(plan, **change), out)
    assert not list(out.iterdir())  # put right, the same command goes on here
    (out / "plan.json").write_text(json.dumps(asdict(plan)))
    with pytest.raises(InputError, match="holds another experiment"):
        compare(replace(plan, **change), out)
    assert [path.name for path in out.iterdir()] == ["plan.json"]


INTERRUPTED = """
import json
import sys
from pathlib import Path
from stemma.insights.compare import compare
from stemma.insights.plan import Plan

if __name__ == "__main__":
    compare(Plan.of(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]), workers=1)
"""


@pytest.mark.slow
def test_an_interrupted_comparison_ends_with_the_same_numbers(
    whole: tuple[Path, dict[str, Any], list[Any]], plan: Plan, tmp_path: Path
) -> None:
    """SIGTERM when the first job is done; then on with the others, in two workers."""
    script, out = tmp_path / "interrupted.py", tmp_path / "out"
    script.write_text(INTERRUPTED, encoding="utf-8")
    (tmp_path / "plan.json").write_text(json.dumps(asdict(plan)))
    command = [sys.executable, str(script), str(tmp_path / "plan.json"), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    first, second = (out / job / "measures.json" for job in ("gpt-1", "glm-1"))
    end = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.strip().endswith("Interrupted") and first.exists() and not second.exists()
    finished = first.stat().st_mtime_ns
    results = compare(plan, out, workers=2)
    assert first.stat().st_mtime_ns == finished and second.exists()
    for job, measures in results["measures"].items():
        assert without_times(measures) == without_times(whole[1]["measures"][job])
    assert results["curves"] == whole[1]["curves"]
    assert asdict(Plan.of(results["plan"])) == asdict(plan)
