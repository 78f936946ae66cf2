"""Whole runs: they learn, they go on bit for bit, and what they publish loads and predicts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import stemma
from stemma.data.corpora import CorpusSource
from stemma.errors import InputError
from stemma.evaluation.likelihood import score_text
from stemma.inference.word_states import WordStates
from stemma.training.pretrain import prepare_run, pretrain
from stemma.training.recipe import Recipe, load_recipe

ORDER = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def corpus(folder: Path) -> Path:
    """Counting on from anywhere: each word tells the next and the last one."""
    rng = np.random.default_rng(0)
    drawn = [(int(rng.integers(10)), int(rng.integers(5, 12))) for _ in range(200)]
    lines = [" ".join(ORDER[(start + n) % 10] for n in range(size)) for start, size in drawn]
    path = folder / "corpus.txt"
    path.write_text("\n\n".join("\n".join(lines[i : i + 4]) for i in range(0, 200, 4)))
    return path


def recipe(folder: Path, *options: str) -> Recipe:
    small = ("projection=24", "cell=32", "filters=[[1, 8], [2, 16], [3, 16]]", "longest_word=10", "feed_forward=32")
    return load_recipe(
        "elmo/tiny",
        [
            f"data.source={corpus(folder)}",
            "data.documents=paragraph",
            "data.held_out=0.2",
            *(f"model.{option}" for option in small),
            "training={steps: 40, batch: 8, length: 24, learning_rate: 1e-2, schedule: {name: constant}}",
            "evaluation={every: 20, tokens: null}",
            "execution={device: cpu, precision: float32}",
            *options,
        ],
    )


@pytest.mark.filterwarnings("ignore:the text repeats too little")
@pytest.mark.parametrize("architecture", ["lstm", "transformer", "gated-cnn"])
def test_every_architecture_learns_to_count_in_both_directions(architecture: str, tmp_path: Path) -> None:
    options = [f"model.architecture={architecture}", "model.bottleneck=16", "model.layers=2"]
    pretrain(recipe(tmp_path, *options), tmp_path / "run", cache=tmp_path / "cache")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    # Ends come anywhere, and the first word of a line is any of ten: of an average of 8.5 + 1 predictions that leaves
    # about log(10) / 9.5 + the end's surprise, 0.6 nats; ignorance is log(11) = 2.4.
    assert last["held_out_loss"] < 1.3
    parts = last["held_out_forward_loss"], last["held_out_backward_loss"]
    assert last["held_out_loss"] == pytest.approx(sum(parts) / 2) and max(parts) < 1.4
    assert "held_out_bits_per_byte" not in last

    model, tokenizer = stemma.load(tmp_path / "run"), stemma.load_tokenizer(tmp_path / "run")
    scored = score_text(model, tokenizer, CorpusSource(str(corpus(tmp_path)), documents="paragraph"), length=24)
    assert scored.loss < 1.3 and scored.bits_per_byte is None and set(scored.parts or {}) == {
        "forward_loss", "backward_loss",
    }  # fmt: skip
    (layers,) = WordStates(model)([["seven", "eight", "unheard-of"]])
    assert layers.shape == (3, 3, 48)


def test_a_stopped_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    """With dropout, sampled words and Adagrad, whose randomness and sums must come back too."""
    options = [
        "objective.samples=4", "training.optimizer=adagrad", "training.accumulator=0.1", "training.learning_rate=0.1",
        "model.dropout=0.2",
    ]  # fmt: skip
    for name, stops in (("whole", [12]), ("parts", [5, 12])):
        for steps in stops:
            made = recipe(tmp_path, *options, f"training.steps={steps}")
            outcome = pretrain(made, tmp_path / name, cache=tmp_path / "cache")
            assert outcome.progress.step == steps
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.filterwarnings("ignore:the text repeats too little")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tokenizer={kind: word, vocabulary: 300}", "tokenizer: not of words with </S>, <S>, <UNK> .* kind: elmo"),
        ("objective.samples=0", "samples: 0, expected 1 or more words, or null for all"),
    ],
)
def test_what_it_cannot_predict_with_is_said(option: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare_run(recipe(tmp_path, option), cache=tmp_path / "cache")


def test_a_family_that_does_not_read_text_this_way_is_still_refused(tmp_path: Path) -> None:
    from stemma.families.bert.model import BERT, BERTConfig

    model = BERT(BERTConfig(vocabulary=20, context=8, layers=1, hidden=8, heads=2))
    with pytest.raises(InputError, match="not scored from left to right"):
        score_text(model, None, CorpusSource())  # type: ignore[arg-type]
