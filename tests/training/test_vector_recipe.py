"""Recipes of word vectors: shipped ones have the published settings, and what decides the vectors is compared."""

from pathlib import Path

from stemma.training.vector_recipe import changed_keys, load_vector_recipe, write_vector_recipe


def test_shipped_settings_are_those_of_the_demos():
    """demo-word.sh and demo-train-big-model-v1.sh of word2vec.c."""
    for name, (size, window, negative, sample, iterations) in {
        "text8": (200, 8, 25, 1e-4, 15),
        "big": (500, 10, 10, 1e-5, 3),
    }.items():
        recipe = load_vector_recipe(f"word2vec/{name}")
        model = recipe.model
        assert (model.dimensions, model.window, model.negatives, model.subsample) == (size, window, negative, sample)
        assert (model.architecture, model.output, recipe.training.epochs) == ("cbow", "negative", iterations)
        assert recipe.training.learning_rate == 0.05 and model.cbow_gradient == "reference"
    assert load_vector_recipe("word2vec/big").vocabulary.phrases == [200, 100]


def test_recipes_of_other_families_are_left_to_others():
    assert load_vector_recipe("gpt/tiny") is None


def test_written_and_read_it_is_the_same(tmp_path: Path):
    recipe = load_vector_recipe("glove/paper", ["model.dimensions=50", "seed=7"])
    write_vector_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_vector_recipe(tmp_path / "recipe.yaml") == recipe


def test_what_decides_the_vectors():
    recipe = load_vector_recipe("glove/tiny")
    same = load_vector_recipe("glove/tiny", ["training.threads=3", "memory=0.5", "output.formats=[glove]"])
    other = load_vector_recipe("glove/tiny", ["training.epochs=3", "data.source=x.txt", "seed=2"])
    assert changed_keys(same, recipe) == []
    assert changed_keys(other, recipe) == ["data.source: x.txt, python", "training.epochs: 3, 15", "seed: 2, 1"]
