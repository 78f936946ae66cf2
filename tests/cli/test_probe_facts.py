"""`stemma probe facts` and `stemma ask`, in this process but through the real entry point."""

import json
from pathlib import Path

import pytest
import torch

from stemma.data.tokenizers import load_tokenizer, train_tokenizer
from stemma.families import load, save
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.inference.filling import fill
from stemma.insights.report import read_report

WORDS = "Dante was born in Florence . Bach died in Leipzig . the method append belongs to the type list and int , "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and facts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("facts")
    pieces = prepare_tokenizer(train_tokenizer([WORDS * 50], "wordpiece", 150))
    save(BERT(BERTConfig(pieces.vocabulary, context=32, layers=2, hidden=32, heads=4)), pieces, folder / "bert")
    plain = train_tokenizer([WORDS * 50], "bpe", 350)
    small = {"vocabulary": plain.vocabulary, "context": 32, "layers": 2, "hidden": 32, "heads": 4}
    save(GPT(GPTConfig(**small, vocabulary_multiple=1)), plain, folder / "gpt")
    rows = {
        "relations.jsonl": [
            {"relation": "P19", "template": "[X] was born in [Y] .", "label": "place of birth", "type": "N-1"},
            {"relation": "P20", "template": "[X] died in [Y] .", "label": "place of death", "type": "N-1"},
        ],
        "facts.jsonl": [
            {"relation": "P19", "sub_label": "Dante", "obj_label": "Florence", "uuid": "1"},
            {"relation": "P20", "sub_label": "Bach", "obj_label": "Leipzig", "uuid": "2"},
            {"relation": "P20", "sub_label": "Bach", "obj_label": "Rome", "uuid": "3"},
        ],
        "extractor.jsonl": [{"uuid": "1", "answers": ["Florence"]}],
    }
    for name, content in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "words.txt").write_text("Florence\nLeipzig\nDante\nBach\n")
    return folder


@pytest.fixture
def run(monkeypatch, stemma, folder, tmp_path):
    """run(verb, *arguments, stdin=bytes) -> (exit code, standard output, standard error)."""

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
        return stemma(*arguments, stdin=stdin)

    return call


def test_models_side_by_side_in_a_table_and_a_report(run, tmp_path: Path) -> None:
    options = ("--facts", "facts.jsonl", "--vocabulary", "words.txt", "--answers", "extractor=extractor.jsonl")
    code, out, _ = run("probe", "facts", "bert", "gpt", *options, "--out", str(tmp_path / "out"))
    assert code == 0
    for name in ("most frequent object", "extractor", "bert", "gpt"):
        assert any(line.startswith(f"│ {name} ") for line in out.splitlines()), out
    assert "2 facts asked of 3 lines read, 1 object not one token in every model; candidates: 4 words" in out
    (results,) = json.loads((tmp_path / "out/results.json").read_text())
    assert results["answers"]["extractor"]["micro"]["p_at_1"] == 0.5
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [(row["model"], row["object"]) for row in rows] == [
        ("bert", "Florence"), ("bert", "Leipzig"), ("gpt", "Florence"), ("gpt", "Leipzig")
    ]  # fmt: skip
    report = read_report(tmp_path / "out/report.html")
    assert report.sections[0].title == "facts" and "--vocabulary words.txt" in report.sections[1].parts[0].text


def _public(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]


def test_a_folder_that_cannot_be_written_is_one_line(run) -> None:
    code, out, err = run("probe", "facts", "bert", "--facts", "facts.jsonl", "--out", "words.txt/out", "--json")
    assert code == 1 and out == "" and err.count("error:") == 1 and "Not a directory" in err


def test_facts_about_python_need_no_data(run) -> None:
    code, out, _ = run("probe", "facts", "bert", "--json")
    (results,) = json.loads(out)
    assert (
        code == 0
        and results["facts"] == "python"
        and results["coverage"]["asked"] == len(_public(list)) + len(_public(int))
    )
    assert set(results["answers"]) == {"most frequent object", "bert", "bert, best template", "bert, all templates"}


def test_ask_gives_the_fillings_and_the_triples(run, folder: Path) -> None:
    question = "Dante was born in [MASK]."
    code, out, _ = run("ask", "bert", question, "--knowledge", "facts.jsonl", "-n", "3", "--json")
    found = json.loads(out)
    expected = fill(load(folder / "bert"), load_tokenizer(folder / "bert"), question, top_k=3)[0]
    assert code == 0 and [one["answer"] for one in found["answers"]] == [one.pieces[0] for one in expected]
    assert found["knowledge"] == [{"subject": "Dante", "relation": "place of birth", "object": "Florence"}]
    _, out, _ = run("ask", "bert", question, "--knowledge", "facts.jsonl", "-n", "3")
    assert "(Dante, place of birth, Florence)" in out and out.count("%") == 3
    _, out, _ = run("ask", "bert", "Nobody knows [MASK].", "--knowledge", "facts.jsonl")
    assert "nothing" in out


def test_ask_reads_questions_one_after_the_other(run) -> None:
    lines = b"Dante was born in [MASK]\nno blank\nBach died in [MASK]\n\nnot [MASK] read\n"
    code, out, err = run("ask", "gpt", "-n", "2", "--json", stdin=lines)
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == [
        "Dante was born in [MASK]",
        "Bach died in [MASK]",
    ]
    assert err == "error: no blank in 'no blank': expected [MASK] in it\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("probe", "facts", "bert", "bert"), "bert, bert: one model is there twice"),
        (("probe", "facts", "bert", "--facts", "absent"), "absent: no such file or folder of facts"),
        (
            ("probe", "facts", "bert", "--facts", "facts.jsonl", "--patterns", "absent"),
            "absent: no such folder of templates",
        ),
        (("probe", "facts", "bert", "--relations", "relations.jsonl"), "expected --facts with them"),
        (("probe", "facts", "bert", "--facts", "python", "--patterns", "."), "expected --facts with them"),
        (
            ("ask", "bert", "x [MASK]", "--knowledge", "facts.jsonl", "--patterns", "absent"),
            "absent: no such folder of",
        ),
        (("probe", "facts", "bert", "--per-token"), "expected --candidates objects"),
        (("probe", "facts", "bert", "--candidates", "objects", "--vocabulary", "words.txt"), "--vocabulary: with"),
        (("probe", "facts", "bert", "--answers", "file.jsonl"), "--answers file.jsonl: expected NAME=FILE"),
        (("probe", "facts", "bert", "--out", "words.txt"), "--out words.txt: a file; expected a folder"),
        (("probe", "facts", "bert", "--vocabulary", "empty.txt"), "empty.txt: no words in it"),
        (("ask", "bert", "x [MASK]", "--relations", "relations.jsonl"), "expected --knowledge with them"),
        (("ask", "bert", "x [MASK]", "--knowledge", "absent"), "absent: no such file or folder of facts"),
        (("ask", "bert", "no blank"), "no blank in 'no blank'"),
    ],
)
def test_bad_input_is_one_line(run, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    (folder / "empty.txt").touch()
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1
