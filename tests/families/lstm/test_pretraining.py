"""Whole runs: learning, going on with the carried state, writing, measuring; and what cannot be."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import Interrupted

import stemma
from stemma.data.corpora import CorpusSource
from stemma.errors import InputError
from stemma.evaluation.likelihood import score_text
from stemma.inference.quantization import quantize_
from stemma.training.distributed import Workers
from stemma.training.pretrain import prepare_run, pretrain
from stemma.training.recipe import load_recipe
from stemma.training.trainer import Trainer

from .plain import Plain, nll

ORDER = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
pytestmark = pytest.mark.filterwarnings("ignore:the text repeats too little")


def recipe_of(folder: Path, *overrides: str) -> Any:
    """Documents that count on from anywhere."""
    rng = np.random.default_rng(0)
    drawn = [(int(rng.integers(10)), int(rng.integers(12, 40))) for _ in range(300)]
    texts = (" ".join(ORDER[(start + n) % 10] for n in range(size)) + "." for start, size in drawn)
    (folder / "corpus.txt").write_text("\n".join(texts))
    return load_recipe(
        "lstm/tiny",
        [
            f"data.source={folder / 'corpus.txt'}",
            "data.documents=line",
            "tokenizer.vocabulary=300",
            "model.embedding=32",
            "model.hidden=32",
            "training={steps: 60, batch: 8, length: 20, learning_rate: 2e-2, schedule: {name: constant}}",
            "evaluation={every: 30, tokens: null}",
            "execution={device: cpu, precision: float32}",
            *overrides,
        ],
    )


def test_learns_to_count_and_writes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = recipe_of(tmp_path, "model.weight_dropout=0.1", "objective.deviation=2", "training.steps=150")
    pretrain(recipe, out, cache=tmp_path / "cache")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["held_out_loss"] < 1.0, lines[-1]  # log 300 = 5.7 at first; each text begins anywhere
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert len(set(rates)) > 1 and all(1e-2 < rate < 3e-2 for rate in rates)  # of a constant schedule
    model, tokenizer = stemma.load(out), stemma.load_tokenizer(out)
    (text,) = stemma.generate(model, tokenizer, "four five six", max_new_tokens=5, temperature=0.0)
    assert text.text.split()[:3] == ["seven", "eight", "nine"]
    # Measured as what torch's own layers give each document.
    (tmp_path / "few.txt").write_text("two three four\nnine ten one two\n")
    found = score_text(model, tokenizer, CorpusSource(str(tmp_path / "few.txt"), documents="line"))
    texts = [tokenizer.encode(line) for line in ("two three four", "nine ten one two")]
    total = sum(float(nll(Plain(model), [tokenizer.separator, *text]).detach()) for text in texts)
    assert found.loss * found.targets == pytest.approx(total, rel=1e-5)
    assert found.targets == sum(map(len, texts))
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / 30, rel=1e-2)  # with or without line ends


@pytest.mark.parametrize("objective", ["causal", "autoencoder"])
def test_a_killed_run_ends_where_an_undisturbed_one_does(objective: str, tmp_path: Path) -> None:
    options = ["training.steps=9", "model.output_dropout=0.2", "training.ema=0.9", "evaluation.tokens=200"]
    recipe = recipe_of(tmp_path, f"objective.name={objective}", *options)
    pretrain(recipe, tmp_path / "whole", cache=tmp_path / "cache")
    for after in (2, 5):
        outcome = pretrain(recipe, tmp_path / "killed", cache=tmp_path / "cache", display=Interrupted(after))
        assert outcome.reason == "interrupted" and outcome.progress.step == after
    pretrain(recipe, tmp_path / "killed", cache=tmp_path / "cache")
    states = [
        load_file(tmp_path / name / "training_state/step-00000009/tensors.safetensors") for name in ("whole", "killed")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    carried = {name: tensor for name, tensor in states[0].items() if name.startswith("carried.")}
    if objective == "causal":
        assert {name: tuple(tensor.shape) for name, tensor in carried.items()} == {
            "carried.hidden.0": (8, 32),
            "carried.cells.0": (8, 32),
        }
        assert all(tensor.any(1).all() for tensor in carried.values())
    else:
        assert not carried
        lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1].get("held_out_bits_per_byte") is None and lines[-1]["held_out_loss"] > 0


def test_words_give_no_bits_per_byte(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "tokenizer.kind=word", "training.steps=3")
    outcome = pretrain(recipe, tmp_path / "run", cache=tmp_path / "cache")
    assert outcome.progress.evaluation is not None and outcome.progress.evaluation["bits_per_byte"] is None
    model, tokenizer = stemma.load(tmp_path / "run"), stemma.load_tokenizer(tmp_path / "run")
    assert tokenizer.unknown in tokenizer.encode("one eleven two")
    found = score_text(model, tokenizer, CorpusSource(str(tmp_path / "corpus.txt"), documents="line"))
    assert found.bits_per_byte is None and found.loss > 0


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training.ramp: the rows carry a state"):
        prepare_run(recipe_of(tmp_path, "training.ramp={start: 2, steps: 4}"), cache=tmp_path / "cache")
    recipe = recipe_of(tmp_path)
    prepared = prepare_run(recipe, cache=tmp_path / "cache")
    workers = Workers(rank=0, world=2)
    with pytest.raises(InputError, match="the rows of an LSTM carry a state .* 2 workers do not share"):
        Trainer(prepared.task, recipe, tmp_path, publish=lambda weights, path: None, workers=workers)
    with pytest.raises(InputError, match="an LSTM is not served by the engine"):
        stemma.Engine(prepared.task.model.eval(), prepared.tokenizer)
    with pytest.raises(InputError, match="an LSTM's weights are not rounded"):
        quantize_(prepared.task.model, "int8")
    with pytest.raises(InputError, match="objective.carried: unknown key"):
        recipe_of(tmp_path, "objective.carried=1")
