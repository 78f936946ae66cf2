"""Whole runs: killed and resumed, best weights by metric, random weights, learning by heart, and mistakes."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import Interrupted
from tiny_models import FAMILIES, directory_of, model_of, recipe_of

import stemma
from stemma.errors import InputError
from stemma.finetuning import run as runs
from stemma.finetuning.checkpoint import load_finetuned
from stemma.finetuning.run import build, finetune, measure_directory, read_splits
from stemma.training.objective import Measurement

LABELS = {"dog": "animal", "fox": "animal", "cat": "animal", "red": "colour", "blue": "colour", "green": "colour"}
BOTH = ("whole", "killed")
VERBS = ("the {}", "a good {} film", "who sees {}")
ROWS = [{"text": verb.format(word), "label": label} for verb in VERBS for word, label in LABELS.items()][:16]


def table(folder: Path, rows: list[dict[str, Any]] = ROWS, name: str = "train") -> str:
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / f"{name}.jsonl")


def recipe(folder: Path, family: str = "bert", task: dict[str, Any] | None = None, **training: Any) -> Any:
    directory = folder / family if (folder / family).exists() else directory_of(family, folder)
    path = table(folder)
    return recipe_of(directory, task or {}, {"train": path, "dev": path}, **training)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_a_killed_run_ends_where_an_undisturbed_one_does(family: str, tmp_path: Path) -> None:
    task = {"dropout": 0.1, "language_model": 0.5 if family == "gpt" else 0.0}
    settings = recipe(tmp_path, family, task, steps=9, batch=3, ema=0.9)
    settings = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"every": 2})})
    _, whole = finetune(settings, tmp_path / "whole")
    for after in (2, 5):
        outcome, nothing = finetune(settings, tmp_path / "killed", display=Interrupted(after))
        assert outcome.reason == "interrupted" and outcome.signal == signal.SIGINT and nothing is None
        assert outcome.progress.step == after
    outcome, results = finetune(settings, tmp_path / "killed")
    assert results == whole and outcome.reason == "finished"
    for part in (".", "best"):
        assert equal(weights(tmp_path / "whole" / part), weights(tmp_path / "killed" / part))
    states = [
        load_file(next((tmp_path / name).glob("training_state/*9/*.safetensors"))) for name in ("whole", "killed")
    ]
    assert equal(*states)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in BOTH]
    scores = [[json.loads(line).get("held_out_accuracy") for line in one] for one in lines]
    assert scores[0] == scores[1]
    # Once more: nothing is left to do.
    assert finetune(settings, tmp_path / "killed")[1] == results


def test_the_best_weights_by_the_metric_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(tmp_path, task={"metric": "macro_f1"}, steps=5, batch=4)
    settings = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"every": 1})})
    measure, seen = runs.measure, []

    def watched(model: Any, objective: Any, examples: Any, data: Any, metric: str | None = None) -> Measurement:
        found = measure(model, objective, examples, data, metric)
        if len(data) < len(ROWS):
            return found
        assert found.score == found.metrics["macro_f1"]
        # The third is made the best, whose loss is not the lowest.
        seen.append({name: value.clone() for name, value in model.named_parameters()})
        score = {3: 0.9, 5: 0.8}.get(len(seen), 0.1)
        return Measurement(found.loss + (len(seen) == 3), found.examples, found.metrics, score)

    monkeypatch.setattr(runs, "measure", watched)
    outcome, _ = finetune(settings, tmp_path / "run")
    assert outcome.progress.best_step == 3
    best = dict(load_finetuned(tmp_path / "run" / "best")[0].named_parameters())
    kept = {
        name: value for name, value in seen[2].items() if name.split(".")[1] not in ("masked_head", "next_sentence")
    }
    assert equal(kept, {name: best[name] for name in kept})


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_instead_of_the_pretrained_ones(family: str, tmp_path: Path) -> None:
    settings = recipe(tmp_path, family)
    train = read_splits(settings).train
    pretrained = dict(model_of(family).named_parameters())
    for initialize in (False, True):
        changed = settings.model_copy(update={"initialize": initialize})
        model = build(changed, train)[0]
        ours = dict(getattr(model, "backbone", model).named_parameters())
        rows = slice(0, 100)  # a GPT has further tokens
        same = {name: torch.equal(ours[name][rows], pretrained[name][rows]) for name in pretrained}
        moved = [name for name in same if not same[name]]
        assert bool(moved) == initialize
        if initialize:  # all matrices; norms begin at 1 either way
            assert set(moved) >= {name for name, value in pretrained.items() if value.dim() > 1}
            again = build(changed, train)[0]
            assert equal(dict(model.named_parameters()), dict(again.named_parameters()))
    finetune(
        settings.model_copy(update={"training": settings.training.model_copy(update={"steps": 1})}), tmp_path / "r"
    )
    with pytest.raises(InputError, match="initialize: True, False"):
        finetune(settings.model_copy(update={"initialize": True}), tmp_path / "r")


@pytest.mark.parametrize("family", FAMILIES)
def test_learns_sixteen_examples_by_heart(family: str, tmp_path: Path) -> None:
    _, results = finetune(recipe(tmp_path, family), tmp_path / "run")
    assert results is not None and len(ROWS) == results["dev"]["examples"] == 16
    assert results["dev"]["metrics"]["accuracy"] == 1.0
    data = read_splits(recipe(tmp_path, family)).train
    assert measure_directory(tmp_path / "run" / "best", data).metrics["accuracy"] == 1.0
    assert stemma.predict(tmp_path / "run" / "best", [row["text"] for row in ROWS]) == [row["label"] for row in ROWS]


@pytest.mark.parametrize(
    ("family", "task", "message"),
    [
        ("bert", {"metric": "acuracy"}, "task.metric: no metric 'acuracy' here (did you mean 'accuracy'?)"),
        ("bert", {"formulation": "cloze"}, "task.formulation: a BERT has no 'cloze' for classification, expected head"),
        ("gpt", {"formulation": "text"}, "task.formulation: a GPT has no 'text' for classification, expected head"),
        ("t5", {"formulation": "cloze"}, "a T5 has no 'cloze' for classification, expected head or text"),
        ("glm", {"pattern": "{text} It is"}, "pattern '{text} It is': 0 blanks; expected one [MASK] in it"),
        ("glm", {"label_words": {"anmal": "x"}}, "no label 'anmal' in the training set (did you mean 'animal'?)"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_begun(
    family: str, task: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        finetune(recipe(tmp_path, family, task, steps=2), tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)
    finetune(recipe(tmp_path, family, steps=1), tmp_path / "run")


def test_labels_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    dev = table(tmp_path, [{"text": "a cat", "label": "anmal"}], "dev")
    with pytest.raises(InputError, match=r"dev.jsonl, line 1: unknown label 'anmal' \(did you mean 'animal'\?\)"):
        read_splits(settings.model_copy(update={"data": settings.data.model_copy(update={"dev": dev})}))
    one = table(tmp_path, [row for row in ROWS if row["label"] == "animal"], "one")
    data = settings.data.model_copy(update={"train": one, "dev": one})
    with pytest.raises(InputError, match="1 label names; expected at least two"):
        finetune(settings.model_copy(update={"data": data}), tmp_path / "run")


def test_another_run_in_the_directory_is_refused_and_overwritten(tmp_path: Path) -> None:
    finetune(recipe(tmp_path, steps=2), tmp_path / "run")
    other = recipe(tmp_path, task={"metric": "f1"}, steps=4)
    with pytest.raises(InputError, match="initialize: True, False"):
        finetune(recipe(tmp_path, steps=2).model_copy(update={"initialize": True}), tmp_path / "run")
    with pytest.raises(InputError, match="holds a run of another recipe .*task.metric: f1, None"):
        finetune(other, tmp_path / "run")
    outcome, nothing = finetune(other, tmp_path / "run", overwrite=True, display=Interrupted(1))
    assert nothing is None and outcome.progress.step == 1
    assert not (tmp_path / "run" / "results.json").exists()  # those of the other run


def test_a_disk_without_room_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"run: 0\.00 MB free, but the checkpoints need"):
        finetune(recipe(tmp_path, steps=2), tmp_path / "run")
    assert not (tmp_path / "run" / "training_state").exists()
    monkeypatch.undo()
    finetune(recipe(tmp_path, steps=2), tmp_path / "run")
