"""The shipped recipes: those of the paper have its numbers (section 5, table 3)."""

import pytest

from stemma.training import schedules
from stemma.training.recipe import load_recipe


@pytest.mark.parametrize(
    ("name", "hidden", "heads", "feed_forward", "dropout", "steps", "average"),
    [("base", 512, 8, 2048, 0.1, 100_000, 5), ("big", 1024, 16, 4096, 0.3, 300_000, 20)],
)
def test_the_paper_s_models(
    name: str, hidden: int, heads: int, feed_forward: int, dropout: float, steps: int, average: int
) -> None:
    recipe = load_recipe(f"transformer/{name}")
    training, model = recipe.training, recipe.model
    assert (model["layers"], model["norm"], model["activation"]) == (6, "post", "relu")
    assert [model[key] for key in ("hidden", "heads", "feed_forward", "dropout")] == [
        hidden, heads, feed_forward, dropout,
    ]  # fmt: skip
    assert (training.steps, training.batch * training.length, training.average) == (steps, 25_000, average)
    assert (training.betas, training.epsilon, training.weight_decay, training.clip) == ((0.9, 0.98), 1e-9, 0, None)
    for step in (1, 4000, 50_000):
        factor = schedules.factor(training.schedule.name, step - 1, total=steps, warmup=4000, final=0.0)
        expected = hidden**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert training.learning_rate * factor == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["tiny", "multi30k"])
def test_the_small_ones_read(name: str) -> None:
    recipe = load_recipe(f"transformer/{name}")
    assert recipe.objective["name"] == "translation" and recipe.training.average in (None, 5)
