"""Whole runs of each objective, and the settings of the shipped recipes."""

import json
from pathlib import Path

import numpy as np
import pytest

from stemma.families.glm.model import PRESETS
from stemma.training.pretrain import pretrain
from stemma.training.recipe import load_recipe

ORDER = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.mark.filterwarnings("ignore:the text repeats too little")
@pytest.mark.parametrize(
    "options",
    [
        ["objective={name: left-to-right, task_masks: true}"],
        ["objective={name: blank-infilling, sentinel: true}"],
        ["objective={name: blank-infilling, block_positions: false, shuffle: false}", "model.block_positions=false"],
    ],
    ids=["left to right", "sentinels", "one position"],
)
def test_objectives_learn(options: list[str], tmp_path: Path) -> None:
    """Documents that count on from anywhere; a vocabulary of 300 makes the loss log 300 = 5.7 at first."""
    rng = np.random.default_rng(0)
    drawn = [(int(rng.integers(10)), int(rng.integers(12, 40))) for _ in range(300)]
    texts = (" ".join(ORDER[(start + n) % 10] for n in range(size)) + "." for start, size in drawn)
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    recipe = load_recipe(
        "glm/tiny",
        [
            f"data.source={tmp_path / 'corpus.txt'}",
            "data.documents=paragraph",
            "tokenizer.vocabulary=300",
            "model={preset: tiny, layers: 2, hidden: 64, heads: 4, context: 64}",
            "training={steps: 30, batch: 16, length: 56, learning_rate: 4e-3, schedule: {name: cosine, warmup: 20}}",
            "evaluation={every: 30, tokens: null}",
            "execution.device=cpu",
            *options,
        ],
    )
    pretrain(recipe, tmp_path / "run", cache=tmp_path / "cache")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["held_out_loss"] < 4
    assert ("held_out_bits_per_byte" in lines[-1]) == ("left-to-right" in options[0])


@pytest.mark.parametrize(("name", "steps", "decay", "rate"), [("base", 150, 120, 4e-4), ("large", 200, 160, 2e-4)])
def test_recipes_have_the_authors_settings(name: str, steps: int, decay: int, rate: float) -> None:
    recipe = load_recipe(f"glm/{name}")
    training, schedule = recipe.training, recipe.training.schedule
    assert (training.steps, training.batch, training.length) == (steps * 1000, 1024, 512)
    assert (training.learning_rate, training.betas, training.epsilon) == (rate, (0.9, 0.98), 1e-6)
    assert (training.weight_decay, training.clip) == (0.1, 1.0)
    assert (schedule.name, schedule.final) == ("cosine", 0.05)
    assert (schedule.until, schedule.warmup) == (decay * 1000, decay * 50)
    assert recipe.model["layers"] == PRESETS[name].layers and recipe.objective == {"name": "blank-infilling"}
