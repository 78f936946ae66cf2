"""Recipes of word vectors: families that no gradient of PyTorch trains."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from stemma.data.word_corpora import WordOptions
from stemma.families.glove.model import GloVeConfig
from stemma.families.word2vec.model import Word2VecConfig
from stemma.files import write_whole
from stemma.training.architecture import check_fields
from stemma.training.recipe import Section, changed
from stemma.training.recipe_source import RecipeSource, find_recipe


class TextRecipe(Section):
    """The corpus (see `stemma.data.corpora.CorpusSource`), all of which is trained on; a line is a sentence."""

    source: str = "python"
    field: str = "text"
    documents: Literal["file", "paragraph", "line"] = "file"
    format: str | None = None


class VocabularyRecipe(Section):
    """What of the text becomes words (see `stemma.data.word_corpora.WordOptions`)."""

    min_count: int = Field(default=5, ge=1)
    max_words: int | None = Field(default=None, ge=1)
    lowercase: bool = False
    phrases: list[float] = []

    @property
    def options(self) -> WordOptions:
        """The same as the data layer has it."""
        return WordOptions(self.min_count, self.max_words, self.lowercase, tuple(self.phrases))


class VectorTrainingRecipe(Section):
    """How it is trained.

    Args:
        learning_rate: the first one; default: the family's. threads: default: all processors. One thread gives the
            same bits each time, several do not.
    """

    epochs: int = Field(gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    threads: int | None = Field(default=None, gt=0)


class VectorOutputRecipe(Section):
    """What is written beside the directory's own files: vectors in other formats."""

    formats: list[Literal["word2vec", "word2vec-binary", "glove"]] = []


class VectorRecipe(Section):
    """What both families have."""

    data: TextRecipe = TextRecipe()
    vocabulary: VocabularyRecipe = VocabularyRecipe()
    training: VectorTrainingRecipe
    output: VectorOutputRecipe = VectorOutputRecipe()
    seed: int = Field(default=1, ge=0)


class Word2VecRecipe(VectorRecipe):
    """A whole recipe of word2vec."""

    family: Literal["word2vec"]
    model: Word2VecConfig = Word2VecConfig()
    training: VectorTrainingRecipe = VectorTrainingRecipe(epochs=5)


class GloVeRecipe(VectorRecipe):
    """A whole recipe of GloVe. memory: gigabytes for counting, about; what is more goes to disk."""

    family: Literal["glove"]
    model: GloVeConfig = GloVeConfig()
    training: VectorTrainingRecipe = VectorTrainingRecipe(epochs=25)
    memory: float = Field(default=2.0, ge=0.02)


RECIPES: dict[str, type[Word2VecRecipe] | type[GloVeRecipe]] = {"word2vec": Word2VecRecipe, "glove": GloVeRecipe}
# What may differ from the run that is gone on with.
INDIFFERENT: Any = {"training": {"threads"}, "output": True, "memory": True}


def load_vector_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Word2VecRecipe | GloVeRecipe | None:
    """Read, override and validate a recipe of word vectors; None if it is one of another family.

    Raises:
        InputError: no such recipe; an unknown key (naming the closest known one) or a bad value, with file and line.
    """
    source = RecipeSource(find_recipe(name_or_path))
    for override in overrides:
        source.override(override)
    recipe = RECIPES.get(str(source.content.get("family")))
    if recipe is None:
        return None
    training = source.content.get("training")
    if isinstance(training, dict) and "steps" in training and training["steps"] is None:
        del training["steps"]  # that is how an overridden number of epochs takes back a number of steps
    model = source.content.get("model")
    if isinstance(model, dict):
        check_fields(recipe.model_fields["model"].annotation, model, "model", source.where)
    try:
        return recipe.model_validate(source.content)
    except ValidationError as error:
        raise source.explain(error, recipe) from error


def write_vector_recipe(recipe: VectorRecipe, path: Path) -> None:
    """Write the whole recipe, defaults included, so that it can be run again as it is."""
    content = recipe.model_dump(mode="json")
    names = ["family", "model", *(name for name in content if name not in ("family", "model"))]
    with write_whole(path) as temporary:
        text = yaml.safe_dump({name: content[name] for name in names}, sort_keys=False)
        temporary.write_text(text, encoding="utf-8")


def changed_keys(recipe: VectorRecipe, other: VectorRecipe) -> list[str]:
    """Return the keys that decide the vectors and differ, as "section.key: here, there"."""
    here, there = (one.model_dump(mode="json", exclude=INDIFFERENT) for one in (recipe, other))
    return changed(here, there)
