"""T5's recipes have the settings of the paper, and nothing else."""

import pytest

from stemma.families.t5.corruption import corrupted_lengths
from stemma.families.t5.model import PRESETS
from stemma.training.recipe import load_recipe


@pytest.mark.parametrize("name", ["small", "base", "1.1-small", "1.1-base"])
def test_the_papers_settings(name):
    """2^19 updates of 128 texts, 512 tokens of source; Adafactor with 1 / sqrt(max(n, 10^4)); dropout 0.1 in 1.0."""
    recipe = load_recipe(f"t5/{name}")
    training = recipe.training
    assert corrupted_lengths(training.length) == (512, 114)
    assert (training.steps, training.batch * 512) == (2**19, 2**16)
    assert (training.optimizer, training.clip, training.learning_rate) == ("adafactor", None, 1e4**-0.5)
    assert (training.schedule.name, training.schedule.warmup) == ("t5", 10_000)
    assert recipe.model["dropout"] == (0.0 if name.startswith("1.1") else 0.1)
    assert recipe.model["hidden"] == PRESETS[name].hidden and recipe.model["tie_output"] == (not name.startswith("1.1"))
    assert recipe.objective["name"] == "span-corruption"
    assert recipe.tokenizer.vocabulary + 100 == 32_100
