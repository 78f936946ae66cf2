"""`stemma probe edges`, in this process but through the real entry point."""

import json
from pathlib import Path

import pytest
from tiny_models import directory_of

from stemma.insights.parts import Bars
from stemma.insights.report import read_report

WORDS = ["the", "fox", "sings", "to", "Anna", "and", "Boris", "in", "Paris"]


@pytest.fixture
def run(monkeypatch, stemma, tmp_path: Path):
    """run(*arguments) -> (exit code, standard output, standard error), beside a model and edges.jsonl."""
    directory_of("bert", tmp_path)
    targets = [
        {"span1": [at, at + 1], "label": "name" if word[0].isupper() else "word"} for at, word in enumerate(WORDS)
    ]
    line = json.dumps({"text": " ".join(WORDS), "targets": targets})
    (tmp_path / "edges.jsonl").write_text(f"{line}\n" * 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        return stemma("probe", "edges", *arguments)

    return call


DATA = ("--task", "edges", "--train", "edges.jsonl", "--dev", "edges.jsonl", "--epochs", "2")


def test_a_table_predictions_and_bars_for_each_layer(run, tmp_path: Path) -> None:
    code, out, err = run("bert", *DATA, "--layers", "--control", "--out", "out")
    assert code == 0, err
    assert "embeddings (lexical)" in out and "train: 8 sentences, 72 targets, 2 labels" in out
    assert "selectivity" in out and "expected layer" in out and "minimum description length" not in out
    assert "tokens x 3 x 32" in err  # how large the layers are, before they are computed
    results = json.loads((tmp_path / "out/results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    said = [target["preds"]["proba"] for row in rows for target in row["targets"]]
    assert len(said) == 72 and all(len(row) == len(results["labels"]) == 2 for row in said)
    section, again = read_report(tmp_path / "out/report.html").sections
    bars = [part for part in section.parts if isinstance(part, Bars)]
    assert [chart.labels for chart in bars] == [("layer alone", "layers up to it"), ("share of the mix",)]
    assert all(chart.groups == ("0", "1", "2") for chart in bars) and "--layers" in again.parts[0].text


def test_results_as_json(run) -> None:
    code, out, _ = run("bert", *DATA, "--no-baselines", "--labels", "name", "--json")
    results = json.loads(out)
    assert code == 0 and results["model"] == "bert" and list(results["encoders"]) == ["mix"]
    assert list(results["by_label"]) == ["name"] and results["by_label"]["name"]["support"] == 24


def test_a_folder_that_cannot_be_written_is_one_line(run) -> None:
    code, out, err = run("bert", *DATA, "--no-baselines", "--out", "edges.jsonl/out", "--json")
    assert code == 1 and out == "" and err.count("error:") == 1 and "Not a directory" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bert", "--task", "egdes"), "--task egdes (did you mean 'edges'?): expected one of edges, dependencies"),
        (("bert", "--task", "edges"), "--task edges: expected --train and --dev with it"),
        (("bert", "--train", "edges.jsonl"), "--task python-roles: needs no files"),
        (("bert", *DATA, "--out", "edges.jsonl"), "--out edges.jsonl: a file; expected a folder"),
        (("bert", *DATA, "--labels", "none"), "no label matches 'none'; there are name, word"),
    ],
)
def test_bad_input_is_one_line(run, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert message in err and err.count("error:") == 1
