"""Recipes: validation with file, line and closest key; overrides; what may differ when a run is resumed."""

import pytest
import yaml

from stemma.errors import InputError
from stemma.families.gpt.model import PRESETS
from stemma.training.image_recipe import load_image_recipe
from stemma.training.recipe import DECISIVE, ROUNDING, differences, load_recipe, write_recipe
from stemma.training.recipe_source import shipped_recipes
from stemma.training.vector_recipe import load_vector_recipe

TEXT = """\
family: gpt
model: {preset: gpt2, layers: 3}
training:
  steps: 10
  batch: 4
  learning_rate: 0.001
  schedule: {name: cosine, warmup: 2}
seed: 7
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return path


def test_a_preset_becomes_all_its_fields_and_leaves_the_vocabulary_to_the_tokenizer(file):
    recipe = load_recipe(file, ["model.context=64"])
    assert (recipe.model["layers"], recipe.model["hidden"], recipe.model["context"]) == (3, 768, 64)
    assert "vocabulary" not in recipe.model and "preset" not in recipe.model
    assert load_recipe(file, ["model.vocabulary=99"]).model["vocabulary"] == 99
    assert recipe.objective == {"name": "causal"}


def test_overrides_set_any_key(file):
    recipe = load_recipe(
        file, ["training.lr=3e-4", "training.schedule.final=0.5", "output.keep=5", "objective.separate_documents=false"]
    )
    assert recipe.training.learning_rate == 3e-4
    assert recipe.training.schedule.final == 0.5 and recipe.training.schedule.warmup == 2
    assert recipe.output.keep == 5
    assert recipe.objective["separate_documents"] is False
    epochs = load_recipe(file, ["training.epochs=1.5"]).training
    assert (epochs.steps, epochs.epochs) == (None, 1.5)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.bach=3", ["command line", "training.bach", "'batch'"]),
        ("modle.layers=3", ["command line", "modle", "'model'"]),
        ("model.headz=3", ["command line", "model.headz", "'heads'"]),
        ("model.heads=many", ["command line", "model.heads", "integer", "'many'"]),
        ("model.heads=5", ["hidden (768)", "heads (5)"]),
        ("model.preset=gtp2", ["command line", "'gpt2'"]),
        ("training.batch=0", ["training.batch", "greater than 0", "got 0"]),
        ("training.batch", ["command line", "section.key=value"]),
        ("seed.x=1", ["seed is not a section"]),
        ("training.schedule.naem=x", ["command line", "'name'"]),
        ("training.schedule.name=cosin", ["training.schedule.name", "'cosine'"]),
        ("objective.overlop=1", ["objective.overlop", "'overlap'"]),
        ("objective.separator=1", ["objective.separator", "unknown key"]),
        ("family=gtp", ["family", "'gpt'"]),
    ],
)
def test_a_bad_override_is_one_line_that_helps(file, override, words):
    with pytest.raises(InputError) as caught:
        load_recipe(file, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_bad_key_in_the_file_is_named_with_its_line(file):
    file.write_text(TEXT.replace("batch: 4", "bacth: 4"))
    with pytest.raises(InputError, match=r"mine\.yaml:5: training\.bacth: unknown key \(did you mean 'batch'\?\)"):
        load_recipe(file)
    file.write_text(TEXT.replace("  batch: 4\n", ""))
    with pytest.raises(InputError, match=r"mine\.yaml:3: training\.batch: is missing"):
        load_recipe(file)
    file.write_text(TEXT.replace("batch: 4", "batch: [4"))
    with pytest.raises(InputError, match=r"mine\.yaml:\d+: not YAML"):
        load_recipe(file)
    file.write_text(TEXT.replace("steps: 10", "steps: 10\n  epochs: 1"))
    with pytest.raises(InputError, match="either steps or epochs"):
        load_recipe(file)


def test_an_unknown_name_names_the_closest_shipped_recipe():
    with pytest.raises(InputError, match="did you mean 'gpt/tiny'"):
        load_recipe("gpt/tny")


def test_the_written_recipe_loads_as_the_same(file, tmp_path):
    recipe = load_recipe(file, ["training.betas=[0.8, 0.99]", "model.attention_pattern=[dense, banded]"])
    write_recipe(recipe, tmp_path / "recipe.yaml")
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert differences(again, recipe, (*DECISIVE, *ROUNDING)) == []


def test_differences_name_the_keys_that_decide_the_weights(file):
    recipe = load_recipe(file)
    other = load_recipe(file, ["training.batch=8", "output.keep=9", "execution.micro_batch=2", "model.layers=4"])
    assert differences(other, recipe) == ["model.layers: 4, 3", "training.batch: 8, 4"]
    assert differences(other, recipe, ROUNDING) == ["execution.micro_batch: 2, None"]


def test_more_steps_are_no_difference_where_the_schedule_does_not_depend_on_them(file):
    longer = ["training.steps=20"]
    assert differences(load_recipe(file, longer), load_recipe(file)) == ["training.steps: 20, 10"]
    constant = ["training.schedule.name=constant"]
    assert differences(load_recipe(file, longer + constant), load_recipe(file, constant)) == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name):
    if name.startswith(("align/", "distill/", "instruct/")):  # they say how; what and on what is given beside them
        return
    if load_vector_recipe(name) is not None or load_image_recipe(name) is not None:  # which have no context
        return
    recipe = load_recipe(name)
    if "context" in recipe.model:
        assert (recipe.training.length or 0) <= recipe.model["context"]
    else:
        assert recipe.training.length is not None


# Brown et al. 2020, table 2.1: learning rate and batch in tokens.
TABLE = {
    "gpt3-125m": (6.0e-4, 0.5e6),
    "gpt3-350m": (3.0e-4, 0.5e6),
    "gpt3-760m": (2.5e-4, 0.5e6),
    "gpt3-1.3b": (2.0e-4, 1e6),
    "gpt3-2.7b": (1.6e-4, 1e6),
    "gpt3-6.7b": (1.2e-4, 2e6),
    "gpt3-13b": (1.0e-4, 2e6),
    "gpt3-175b": (0.6e-4, 3.2e6),
}


@pytest.mark.parametrize(("name", "published"), TABLE.items())
def test_gpt3_recipes_have_the_settings_of_table_2_1(name, published):
    recipe = load_recipe(f"gpt/{name}")
    training = recipe.training
    rate, tokens = published
    assert training.learning_rate == rate
    assert training.batch * 2048 == pytest.approx(tokens, rel=0.06)
    assert recipe.model["hidden"] == PRESETS[name].hidden
    assert (training.betas, training.epsilon, training.clip, training.weight_decay) == ((0.9, 0.95), 1e-8, 1.0, 0.1)
    # appendix B: warm-up over 375M tokens, cosine to 10 % at 260B, 300B tokens in all
    per_step = training.batch * 2048
    ramped = training.ramp.steps * (training.batch - training.ramp.start) // 2 * 2048
    assert training.steps * per_step - ramped == pytest.approx(300e9, rel=0.01)
    assert training.schedule.until * per_step - ramped == pytest.approx(260e9, rel=0.01)
    assert training.schedule.final == 0.1
    assert recipe.objective["separate_documents"] is False


def test_a_recipe_is_plain_yaml(file, tmp_path):
    write_recipe(load_recipe(file), tmp_path / "recipe.yaml")
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["training"]["steps"] == 10
