"""`stemma tokenizer`: what it prints, what it writes, and what it says to mistakes."""

import gzip
import json
import os
import pydoc_data.topics
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from stemma.cli.tokenizer import app
from stemma.data.tokenizers import load_tokenizer, train_tokenizer
from stemma.errors import InputError

TEXTS = list(pydoc_data.topics.topics.values())[:30]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    return path


def run(*arguments: str | Path, text: bytes | None = None):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_train(corpus, tmp_path, kind):
    options = ["--field", "body", "--held-out", "0", "--kind", kind, "--vocabulary", 900, "--out", tmp_path / kind]
    result = run("train", corpus, *options, "--json")
    printed = json.loads(result.stdout)
    expected = train_tokenizer(TEXTS, kind, 900)
    loaded = load_tokenizer(tmp_path / kind)
    assert loaded.fingerprint == expected.fingerprint == printed["fingerprint"]
    assert (printed["kind"], printed["vocabulary"]) == (kind, 900)
    assert printed["bytes_read"] == sum(len(text.encode()) for text in TEXTS)
    tokens = sum(map(len, expected.encode_batch(TEXTS)))
    assert printed["bytes_per_token"] == pytest.approx(printed["bytes_read"] / tokens, abs=1e-3)
    assert len(AutoTokenizer.from_pretrained(tmp_path / kind)) == 900
    assert sorted(os.listdir(tmp_path / kind)) == ["tokenizer.json", "tokenizer_config.json"]
    assert "reading the text" in result.stderr


def test_train_on_several_corpora_up_to_a_limit(tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write("\n".join(TEXTS[:10]))
    (tmp_path / "b.txt").write_text("zebra " * 100_000)
    options = ["--held-out", "0", "--documents", "line", "--vocabulary", 300, "--overwrite", "--out", tmp_path / "out"]
    both = json.loads(run("train", tmp_path / "a.txt.gz", tmp_path / "b.txt", *options, "--json").stdout)
    assert both["bytes_read"] > 600_000
    assert "Ġzebra" in load_tokenizer(tmp_path / "out").backend.get_vocab()
    some = json.loads(
        run("train", tmp_path / "a.txt.gz", tmp_path / "b.txt", *options, "--limit-mb", "0.01", "--json").stdout
    )
    assert 10_000 <= some["bytes_read"] < 12_000
    assert "Ġzebra" not in load_tokenizer(tmp_path / "out").backend.get_vocab()


def test_train_says_what_it_did(corpus, tmp_path):
    result = run("train", corpus, "--field", "body", "--vocabulary", 300, "--special", "[MASK]", "-o", tmp_path / "out")
    assert "out: 300 tokens (bpe) from 0." in result.stdout.replace("\n", "")
    assert "bytes per token" in result.stdout
    assert load_tokenizer(tmp_path / "out").id("[MASK]") == 1


def test_too_little_text_is_a_warning_line(tmp_path):
    (tmp_path / "small.txt").write_text("to be or not to be")
    result = run("train", tmp_path / "small.txt", "--held-out", "0", "--out", tmp_path / "out")
    lines = [line for line in result.stderr.split("\n") if "warning" in line.lower()]
    assert len(lines) == 1 and lines[0].startswith("warning: ") and "too little for 8192 tokens" in lines[0]


def test_mistakes_cost_nothing(corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    run("train", corpus, "--field", "body", "--vocabulary", 300, "--out", tmp_path / "out")
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    for arguments, message in [
        ([tmp_path / "corpus.json", "--out", tmp_path / "new"], "did you mean 'corpus.jsonl'"),
        ([corpus, "--out", tmp_path / "new"], "corpus.jsonl, line 1: .*body"),
        ([corpus, "--field", "body", "--kind", "wordpeice", "--out", tmp_path / "new"], "did you mean 'wordpiece'"),
        ([corpus, "--field", "body", "--vocabulary", 10, "--out", tmp_path / "new"], "10 tokens .* at least 257 "),
        ([corpus, "--field", "body", "--limit-mb", 0, "--out", tmp_path / "new"], "no text to learn"),
        ([corpus, "--field", "body", "--out", tmp_path / "out"], "there is a tokenizer here already; give --overwrite"),
        ([corpus, "--field", "body", "--out", tmp_path / "file" / "out"], "file is not a writable folder"),
    ]:
        with pytest.raises(InputError, match=message):
            run("train", *arguments)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before


def test_inspect(tmp_path):
    tokenizer = train_tokenizer(TEXTS, "bpe", 600)
    tokenizer.save(tmp_path)
    text = "the naïve <|endoftext|>\n"
    printed = json.loads(run("inspect", tmp_path, text, "--json").stdout)
    ids = tokenizer.encode(text)
    assert [token["id"] for token in printed["tokens"]] == ids
    assert [token["token"] for token in printed["tokens"]] == [tokenizer.token(index) for index in ids]
    assert printed["bytes"] == 25 and printed["bytes_per_token"] == pytest.approx(25 / len(ids), abs=1e-3)
    assert printed["unchanged"] is True and printed["special"]["eos_token"] == "<|endoftext|>"
    lines = run("inspect", tmp_path, "-", text=text.encode()).stdout.split("\n")
    assert lines[0].split() == [str(ids[0]), tokenizer.token(ids[0]), repr(tokenizer.decode(ids[:1]))]
    assert f"{len(ids)} tokens, 25 bytes" in lines[len(ids)]


def test_inspect_shows_what_is_lost(tmp_path):
    train_tokenizer(TEXTS, "wordpiece", 600, lowercase=True).save(tmp_path)
    assert "decoded, the text is another: 'the end'" in run("inspect", tmp_path, "The  End").stdout


@pytest.mark.parametrize("arguments", [[], ["train"], ["inspect"]])
def test_help_has_an_example(arguments):
    printed = run(*arguments, "--help").stdout
    assert "Example: stemma tokenizer" in " ".join(printed.split())
