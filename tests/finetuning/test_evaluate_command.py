"""`stemma evaluate` of fine-tuned models: the metrics and predictions of every task, and one line for what is wrong."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_models import WORDS, directory_of, recipe_of, tokenizer_of

import stemma
from stemma import files
from stemma.finetuning.checkpoint import save_finetuned
from stemma.finetuning.recipe import LoRARecipe
from stemma.finetuning.run import build, finetune, measure_directory, read_splits

PARTS = [" ".join(WORDS.split()[start : start + 4]) for start in range(0, 40, 4)]


@pytest.fixture
def run(stemma: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments) -> (exit code, standard output, standard error)."""
    return partial(stemma, "evaluate")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untrained(folder: Path, family: str, task: dict[str, Any], data: dict[str, Any]) -> Path:
    """Write a model with a random output layer as `finetune` would."""
    recipe = recipe_of(directory_of(family, folder), task, data)
    model, tokenizer, _, description = build(recipe, read_splits(recipe).train)
    save_finetuned(model.eval(), tokenizer, description, folder / "finetuned")
    return folder / "finetuned"


def examples_of(kind: str, folder: Path) -> tuple[str, dict[str, str], list[Any], list[Any]]:
    """Return a file, the names of its columns, and what stands in it: inputs as `predict` takes them, and labels."""
    path = folder / "examples.jsonl"
    if kind == "tagging":
        words = [part.split() for part in PARTS]
        tags = [["B-X" if word < "k" else "O" for word in one] for one in words]
        lines = ["\n".join(map(" ".join, zip(*one, strict=True))) for one in zip(words, tags, strict=True)]
        (folder / "examples").write_text("\n\n".join(lines))
        return str(folder / "examples"), {}, words, tags
    if kind == "answering":
        answers = [part.split()[0] for part in PARTS]
        paragraphs = [
            {"context": part, "qas": [{"id": part, "question": "who", "answers": [{"text": one, "answer_start": 0}]}]}
            for part, one in zip(PARTS, answers, strict=True)
        ]
        (folder / "examples.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
        return str(folder / "examples.json"), {}, [("who", part) for part in PARTS], [[one] for one in answers]
    labels: list[Any] = [number % 2 for number in range(len(PARTS))]
    columns, inputs = {"text": "sentence", "label": "kind"}, PARTS
    rows: list[dict[str, Any]] = [{"sentence": part, "kind": label} for part, label in zip(PARTS, labels, strict=True)]
    if kind == "classification":
        labels = [str(label) for label in labels]
    elif kind == "regression":
        columns["pair"], inputs = "other", [(part, "the dog") for part in PARTS]
        rows = [row | {"other": "the dog"} for row in rows]
    elif kind == "text":
        columns, labels = {"source": "from", "target": "to"}, PARTS[::-1]
        rows = [{"from": part, "to": other} for part, other in zip(PARTS, labels, strict=True)]
    else:
        columns, inputs = {"question": "q", "choices": "a,b", "label": "kind"}, [(p, ["red", "blue"]) for p in PARTS]
        rows = [{"q": part, "a": "red", "b": "blue", "kind": label} for part, label in zip(PARTS, labels, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path), columns, inputs, labels


@pytest.mark.parametrize(
    ("family", "kind", "names"),
    [
        ("bert", "classification", ["text"]),
        ("glm", "classification", ["text"]),
        ("gpt", "regression", ["text", "pair"]),
        ("bert", "tagging", ["words"]),
        ("t5", "text", ["text"]),
        ("glm", "choice", ["question", "choices"]),
        ("bert", "answering", ["question", "context"]),
    ],
)
def test_every_task_is_measured_and_predicted(run, family: str, kind: str, names: list[str], tmp_path: Path) -> None:
    path, columns, inputs, labels = examples_of(kind, tmp_path)
    data = {"train": path, "dev": path, "longest_target": 6, **columns}
    directory, said = untrained(tmp_path, family, {"kind": kind}, data), tmp_path / "said.jsonl"
    options = [part for name, column in columns.items() for part in (f"--{name}", column)]
    code, printed, error = run(directory, path, *options, "--predictions", said, "--json")
    assert code == 0, error
    found = json.loads(printed)
    measured = measure_directory(directory, read_splits(recipe_of(tmp_path / family, {"kind": kind}, data)).dev)
    assert found["metrics"] == pytest.approx(dict(measured.metrics), nan_ok=True)
    assert found["loss"] == pytest.approx(measured.loss)
    assert (found["task"], found["examples"]) == (kind, len(PARTS))
    assert ("signatures" in found) == (kind == "text")
    assert ("majority" in found) == (kind in ("classification", "tagging"))
    rows = rows_of(said)
    assert list(rows[0]) == [*names, "label", "prediction"]
    assert [row["label"] for row in rows] == labels
    answers = [row["prediction"] for row in rows]
    expected = stemma.predict(directory, inputs)
    assert answers == (pytest.approx(expected) if kind == "regression" else expected)
    given = [tuple(row[name] for name in names) if len(names) > 1 else row[names[0]] for row in rows]
    assert given == inputs


def test_the_best_weights_reach_what_the_run_said_and_csv_holds_it(run, tmp_path: Path) -> None:
    path, columns, _, labels = examples_of("classification", tmp_path)
    recipe = recipe_of(directory_of("bert", tmp_path), {}, {"train": path, "dev": path, **columns}, steps=30)
    _, results = finetune(recipe, tmp_path / "run")
    said = tmp_path / "said.csv"
    said.write_text("of before")
    arguments = (tmp_path / "run/best", path, "--text", "sentence", "--label", "kind", "--predictions", said)
    code, printed, _ = run(*arguments)
    assert code == 0 and results is not None
    accuracy = results["dev"]["metrics"]["accuracy"]
    assert "accuracy" in printed and f"{accuracy:.4f}" in printed and f"predictions: {said}" in printed
    with open(said, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == labels and [row["text"] for row in rows] == PARTS
    assert sum(row["label"] == row["prediction"] for row in rows) / len(rows) == accuracy > 0.5


def test_predictions_are_whole_or_not_there(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, columns, _, _ = examples_of("classification", tmp_path)
    directory, said = untrained(tmp_path, "bert", {}, {"train": path, "dev": path, **columns}), tmp_path / "said.jsonl"
    said.write_text("of before")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_flush", full)
    code, printed, error = run(directory, path, "--text", "sentence", "--label", "kind", "--predictions", said)
    assert code == 1 and not printed and error == f"error: --predictions {said}: No space left on device\n"
    assert said.read_text() == "of before" and not list(tmp_path.glob(".said*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["examples.jsonl"], "examples.jsonl, line 1: no field 'text'"),
        (["other.jsonl", "--text", "sentence", "--label", "kind"], "other.jsonl, line 1: unknown label '2'"),
        (["nowhere.csv"], "nowhere.csv: cannot be read (No such file or directory)"),
        ([], "python: not a table by its name"),
        (["examples.jsonl", "--pair", "kind"], "finetuned: fine-tuned on single texts; expected one text"),
        (
            ["examples.jsonl", "--documents", "line"],
            "--documents: finetuned is fine-tuned, and this option is of a language model",
        ),
        (
            ["examples.jsonl", "--predictions", "said.txt"],
            "--predictions said.txt: expected a name that ends in .jsonl",
        ),
        (["examples.jsonl", "--predictions", "none/said.csv"], "none is not there"),
    ],
)
def test_what_is_wrong_is_one_line(
    run, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, columns, _, _ = examples_of("classification", tmp_path)
    untrained(tmp_path, "bert", {}, {"train": path, "dev": path, **columns})
    Path("other.jsonl").write_text('{"sentence": "a dog", "kind": 2}\n')
    code, printed, error = run("finetuned", *arguments)
    assert code == 2 and not printed
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_language_model_has_no_task(run, tmp_path: Path) -> None:
    directory = directory_of("gpt", tmp_path)
    (tmp_path / "text.txt").write_text(WORDS)
    code, _, error = run(directory, tmp_path / "text.txt", "--predictions", "said.csv")
    assert code == 2 and "--predictions: " in error and "no fine-tuned model" in error
    code, printed, error = run(directory, tmp_path / "text.txt", "--json")
    assert code == 0, error
    assert json.loads(printed)["targets"] == len(tokenizer_of("gpt").encode(WORDS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shots", 4], "--shots: gpt is no fine-tuned model, and this option is of a task that stands in a prompt"),
        (["--votes", 5], "--votes: gpt is"),
        (["--reasoning", "few-shot"], "--reasoning: gpt is"),
        (["--out", "folder"], "--out: gpt is"),
        (["--most", 5], "--most: gpt is"),
        (["--judge", "reward"], "--judge: gpt is"),
        (["--restrict", 10], "--restrict: gpt is no fine-tuned model, and this option is of word vectors"),
        (["--no-header"], "--header: gpt is no fine-tuned model, and this option is of a fine-tuned model"),
        (["--task", "sums.yaml", "--against", "other"], "--against: sums.yaml stands in a prompt, and"),
        (["--task", "sums.yaml", "--length", 5], "--length: sums.yaml stands in a prompt, and"),
        (["--task", "preference", "--shots", 4], "--shots: --task preference compares responses, and"),
        (["--task", "preferences"], "--task preferences: no such evaluation (did you mean 'preference'?)"),
        (["a.txt", "--task", "sums.yaml"], "a.txt: sums.yaml stands in a prompt, and no CORPUS is read"),
        (["a.txt", "--analogies", "b.txt"], "a.txt: --analogies and --similarity are of word vectors, and no CORPUS"),
        (["--analogies", "a.txt", "--task", "sums.yaml"], "--task: --analogies and --similarity are of word vectors"),
    ],
)
def test_options_of_another_evaluation_are_refused(
    run, arguments: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory_of("gpt", tmp_path)
    code, printed, error = run("gpt", *arguments)
    assert code == 2 and not printed
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_adapters_are_measured_as_they_are(run, tmp_path: Path) -> None:
    path, columns, _, labels = examples_of("classification", tmp_path)
    recipe = recipe_of(directory_of("bert", tmp_path), {}, {"train": path, "dev": path, **columns}, steps=30)
    recipe = recipe.model_copy(update={"lora": LoRARecipe(rank=4)})
    _, results = finetune(recipe, tmp_path / "run")
    arguments = (tmp_path / "run/best", path, "--text", "sentence", "--label", "kind", "--json")
    code, printed, error = run(*arguments)
    assert code == 0 and results is not None, error
    found = json.loads(printed)
    assert found["metrics"] == results["dev"]["metrics"] and found["examples"] == len(labels)
