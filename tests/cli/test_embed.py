"""`stemma embed`, in this process but through the real entry point."""

import json

import numpy as np
import pytest
import torch

from stemma.data.tokenizers import load_tokenizer, train_tokenizer
from stemma.families import load, save
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer
from stemma.inference.embeddings import embed


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = prepare_tokenizer(train_tokenizer(["the lazy dog jumps over the fox " * 50], "wordpiece", 280))
    path = tmp_path_factory.mktemp("models") / "small"
    save(BERT(BERTConfig(tokenizer.vocabulary, context=32, layers=2, hidden=32, heads=4)), tokenizer, path)
    return path


@pytest.fixture
def run(monkeypatch, stemma, directory, tmp_path):
    """run(*arguments) -> (exit code, standard output, standard error), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        return stemma("embed", directory, *arguments, stdin=stdin)

    return call


def test_npy(run, directory, tmp_path):
    (tmp_path / "a.txt").write_text("the lazy dog\nfox\n")
    code, out, _ = run("a.txt", "--out", "v.npy", "--pooling", "max", "--normalize")
    assert code == 0 and out == "v.npy: 2 vectors of 32\n"
    expected = embed(load(directory), load_tokenizer(directory), ["the lazy dog", "fox"], pooling="max", normalize=True)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, rtol=0, atol=1e-6)


def test_parquet_of_jsonl(run, directory, tmp_path):
    import pyarrow.parquet as parquet

    (tmp_path / "a.jsonl").write_text('{"s": "fox"}\n{"s": "the dog"}\n')
    code, out, _ = run("a.jsonl", "--field", "s", "--out", "v.parquet", "--json")
    assert code == 0 and json.loads(out) == {"out": "v.parquet", "texts": 2, "hidden": 32, "truncated": 0}
    table = parquet.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == ["fox", "the dog"]
    expected = embed(load(directory), load_tokenizer(directory), ["fox", "the dog"])
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, rtol=0, atol=1e-6)


def test_standard_input_and_what_is_cut(run, directory, tmp_path):
    texts = ["the lazy dog", "fox " * 31, "dog " * 30, "the lazy fox " * 20]  # the model reads 32, two of them special
    code, out, err = run("-", "--out", "v.npy", "--json", stdin="\n".join(texts).encode())
    assert code == 0
    assert json.loads(out) == {"out": "v.npy", "texts": 4, "hidden": 32, "truncated": 2}
    assert err == "2 of 4 texts are longer than 32 tokens and cut\n"
    expected = embed(load(directory), load_tokenizer(directory), texts)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, rtol=0, atol=1e-6)
    code, out, err = run("-", "--out", "w.npy", stdin=b"")
    assert code == 2 and err == "error: standard input: no text in it\n"
    code, out, err = run("-", "--out", "w.npy", stdin=b"dog\n\nfox\n")
    assert code == 2 and err == "error: standard input, line 2: empty; expected a text in every line or row\n"
    code, out, err = run("-", "--out", "w.npy", stdin=b"dog\ncaf\xe9\n")
    assert code == 2 and err.startswith("error: standard input: not UTF-8 at byte 7 (0xe9")


def test_plain_lines_of_progress(run, tmp_path, monkeypatch):
    monkeypatch.setattr("stemma.training.progress.PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr("stemma.inference.embeddings.batches_by_length", lambda lengths, size: iter([[0], [1, 2], [3]]))
    code, _, err = run("-", "--out", "v.npy", stdin=b"dog\nfox\nthe dog\nthe fox\n")
    lines = err.splitlines()
    assert code == 0 and [line.split("  ")[0] for line in lines] == ["embedding 1/4", "embedding 3/4"]
    assert all(line.endswith(" left") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.txt", "--out", "v.csv"), "--out v.csv: expected a name that ends in .npy, .parquet or .hdf5"),
        (("a.txt", "--out", "no/v.npy"), "is not there"),
        (("b.txt", "--out", "v.npy"), "b.txt: no such file"),
        (("empty.txt", "--out", "v.npy"), "empty.txt: no text in it"),
        (("gap.txt", "--out", "v.npy"), "gap.txt, line 2: empty; expected a text in every line or row"),
        (("gap.jsonl", "--out", "v.npy"), "gap.jsonl, line 2: empty; expected a text in every line or row"),
        (("number.jsonl", "--out", "v.npy"), "field 'text' is of type int; expected a string"),
        (("a.txt", "--out", "v.npy", "--device", "abacus"), "--device abacus: "),
        (("a.txt", "--out", "v.npy", "--pooling", "sum"), "pooling is 'sum'"),
        (("a.jsonl", "--out", "v.npy"), "a.jsonl, line 1: no field 'text'"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, arguments, message):
    (tmp_path / "a.txt").write_text("fox\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "gap.txt").write_text("fox\n \ndog\n")
    (tmp_path / "gap.jsonl").write_text('{"text": "fox"}\n{"text": null}\n')
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "a.jsonl").write_text('{"s": "fox"}\n')
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("v.*"))
