"""`stemma fill`, in this process but through the real entry point."""

import json

import pytest
import torch

from stemma.data.tokenizers import load_tokenizer, train_tokenizer
from stemma.families import load, save
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.tokens import prepare_tokenizer
from stemma.inference.filling import fill


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = prepare_tokenizer(train_tokenizer(["the lazy dog jumps over the fox " * 50], "wordpiece", 280))
    path = tmp_path_factory.mktemp("models") / "small"
    model = BERT(BERTConfig(tokenizer.vocabulary, context=32, layers=2, hidden=32, heads=4, initial_std=0.3))
    save(model, tokenizer, path)
    return path


@pytest.fixture
def run(stemma, directory):
    """run(*arguments, stdin=bytes) -> (exit code, standard output, standard error)."""

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        return stemma("fill", directory, *arguments, stdin=stdin)

    return call


def test_prints_the_fillings(run, directory):
    code, out, _ = run("the [MASK] dog", "[MASK] fox", "--top-k", "2")
    best = fill(load(directory), load_tokenizer(directory), "the [MASK] dog", top_k=2)[0]
    lines = out.splitlines()
    assert code == 0 and len(lines) == 6
    assert lines[0] == "the [MASK] dog" and lines[3] == "[MASK] fox"
    assert [line.split("  ->  ")[1] for line in lines[1:3]] == [one.text for one in best]


def test_reads_standard_input_and_prints_json(run):
    lines = b"\xef\xbb\xbfthe [MASK] dog\r\n\nlazy\x0c [MASK]\n"
    code, out, _ = run("--file", "-", "--json", "--top-k", "3", stdin=lines)
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [result["text"] for result in results] == ["the [MASK] dog", "lazy\f [MASK]"]
    assert all(len(result["fillings"]) == 3 for result in results)


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), b"", "give either texts or --file"),
        (("no blank",), b"", "no blank in 'no blank'"),
        (("--file", "-"), b"\n", "no text in it"),
        (("--file", "-"), b"ab\xff", "not UTF-8 at byte 2"),
        (("--file", "absent.txt"), b"", "absent.txt: cannot be read (No such file or directory)"),
    ],
)
def test_bad_input_is_one_line(run, arguments, stdin, message):
    code, out, err = run(*arguments, stdin=stdin)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1
