"""`--quantize` of `stemma generate` and `stemma evaluate`, in this process but through the real entry point."""

import json
import re

import pytest
import torch

from stemma.data.corpora import CorpusSource
from stemma.data.tokenizers import train_tokenizer
from stemma.evaluation.likelihood import score_text
from stemma.families import load, save
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.inference.generate import generate
from stemma.inference.quantization import quantize_

TEXT = "the lazy dog jumps over the quick brown fox " * 50


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], "bpe", 289)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    config = MistralConfig(
        vocabulary=289, context=64, layers=2, hidden=64, heads=4, key_value_heads=2, feed_forward=96, windows=(16,)
    )
    path = tmp_path_factory.mktemp("models") / "small"
    model = Mistral(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    save(model, tokenizer, path)
    return path


@pytest.fixture
def run(monkeypatch, stemma, tmp_path):
    """run(*arguments) -> (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("STEMMA_CACHE", str(tmp_path))
        return stemma(*arguments)

    return call


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_generate(run, directory, tokenizer, kind):
    options = {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.95, "seed": 4}
    own = generate(load(directory), tokenizer, "the dog", **options)[0].text
    text = generate(quantize_(load(directory), kind), tokenizer, "the dog", **options)[0].text
    given = run("generate", directory, "--prompt", "the dog", "-n", "12", "--seed", "4", "--quantize", kind)
    assert given == (0, text + "\n", "")
    assert kind == "int8" or text != own


def test_evaluate_prints_what_rounding_costs(run, directory, tokenizer, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    own = score_text(load(directory), tokenizer, CorpusSource(str(file)))
    rounded = score_text(quantize_(load(directory), "int4"), tokenizer, CorpusSource(str(file)))
    assert rounded.bits_per_byte != own.bits_per_byte
    code, output, _ = run("evaluate", directory, file, "--quantize", "int4")
    numbers = re.search(r"int4: ([\d.]+) -> ([\d.]+) bits per byte", output)
    assert code == 0 and numbers is not None
    assert [float(number) for number in numbers.groups()] == pytest.approx(
        [own.bits_per_byte, rounded.bits_per_byte], abs=1e-4
    )
    summary = json.loads(run("evaluate", directory, file, "--quantize", "int4", "--json")[1])
    assert summary["quantize"] == "int4" and summary["loss"] == pytest.approx(own.loss)
    assert summary["quantized"]["loss"] == pytest.approx(rounded.loss)


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_a_wrong_kind_is_one_line(run, verb, directory):
    code, output, error = run(verb, directory, "--quantize", "int3")
    assert (code, output) == (2, "")
    assert error.startswith("error: quantisation 'int3'") and "expected one of int8, int4, int4:32" in error
