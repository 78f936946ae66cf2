"""A whole run, from a text to a directory: gaps are learned, and a killed run with Adafactor goes on exactly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stemma
from stemma.errors import InputError
from stemma.families.t5.tokens import sentinel_ids, split_spans
from stemma.training.pretrain import prepare_run, pretrain
from stemma.training.recipe import Recipe, load_recipe

WORDS = "one two three four five six seven eight nine ten"


def write_corpus(path: Path) -> None:
    """Documents of one word each, so that what fills a gap stands on both sides of it."""
    words, rng = WORDS.split(), np.random.default_rng(0)
    path.write_text("\n\n".join(" ".join([words[index % 10]] * rng.integers(30, 60)) for index in range(300)))


def recipe_for(folder: Path, *overrides: str) -> Recipe:
    write_corpus(folder / "corpus.txt")
    return load_recipe(
        "t5/tiny",
        [
            f"data.source={folder / 'corpus.txt'}",
            "data.documents=paragraph",
            "tokenizer={kind: bpe, vocabulary: 300}",
            "model={preset: tiny, layers: 1, hidden: 128, heads: 4, feed_forward: 256}",
            "training.steps=60",
            "training.batch=16",
            "training.length=40",
            "training.schedule={name: t5, warmup: 60}",
            "evaluation={every: 60, tokens: null}",
            "output={log_every: 10, save_every: 100}",
            "execution.device=cpu",
            *overrides,
        ],
    )


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:the text repeats too little")
@pytest.mark.parametrize("objective", ["span-corruption", "prefix-lm"])
def test_gaps_are_learned(objective: str, tmp_path: Path) -> None:
    pretrain(recipe_for(tmp_path, f"objective.name={objective}"), tmp_path / "run", cache=tmp_path / "cache")
    first, last = metrics(tmp_path / "run")[0], metrics(tmp_path / "run")[-1]
    # What cannot be known is how long a gap is, and which word follows where one document ends.
    assert first["loss"] > 1.6 and last["loss"] < first["loss"] / 2
    assert last["held_out_loss"] < 1.1 and "held_out_bits_per_byte" not in last

    model, tokenizer = stemma.load(tmp_path / "run"), stemma.load_tokenizer(tmp_path / "run")
    sources = ["one one one<extra_id_0> one one one", "six six six six<extra_id_0> six six six"]
    for source, text in zip(
        sources, stemma.generate(model, tokenizer, sources, max_new_tokens=3, temperature=0), strict=True
    ):
        filling = split_spans(text.tokens, sentinel_ids(tokenizer), 1)[0] if "span" in objective else text.tokens
        assert set(tokenizer.decode(filling).split()) == {source[:3]}


@pytest.mark.filterwarnings("ignore:the text repeats too little")
def test_a_run_with_adafactor_goes_on_exactly(tmp_path: Path) -> None:
    options = ("model={preset: small, layers: 1, hidden: 128, heads: 2, head_dim: 64, feed_forward: 128}",)
    recipe = recipe_for(tmp_path, *options, "training.steps=6", "output={log_every: 1, save_every: 3}")
    pretrain(recipe, tmp_path / "whole", cache=tmp_path / "cache")
    half = recipe_for(tmp_path, *options, "training.steps=3", "output={log_every: 1, save_every: 3}")
    pretrain(half, tmp_path / "resumed", cache=tmp_path / "cache")
    state = load_file(tmp_path / "resumed" / "training_state" / "step-00000003" / "tensors.safetensors")
    assert state["optimizer.rows.token_embedding.weight"].dim() == 1
    pretrain(recipe, tmp_path / "resumed", resume=True, cache=tmp_path / "cache")
    one, other = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_length_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.length: is missing"):
        prepare_run(recipe_for(tmp_path, "training.length=null"), cache=tmp_path / "cache")
