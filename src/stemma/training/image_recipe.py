"""Recipes of models that read images: supervised training is their pretraining, and fine-tuning goes on with it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from stemma import families
from stemma.data.image_augmentation import Augmentation, Mixing
from stemma.layers.ensembles import Mean
from stemma.training.architecture import check_fields, expand_model
from stemma.training.recipe import RunRecipe, Section, TrainingRecipe
from stemma.training.recipe_source import RecipeSource, find_recipe

# Sections that decide the resulting weights.
DECISIVE = ("family", "model", "start", "data", "preprocessing", "augmentation", "distillation", "training", "seed")
# What a checkpoint's weights decide.
_FIXED = {
    "vit": ("patch_size", "channels", "classes", "class_names", "layers", "hidden", "heads", "feed_forward")
    + ("activation", "norm_epsilon", "distilled", "initial_std"),
    "resnet": ("channels", "classes", "class_names", "blocks", "width", "groups"),
}


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("expected two positive numbers, the smaller one first")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class ImageDataRecipe(Section):
    """The images (see `stemma.data.images.read_images`).

    Args:
        held_out: what is measured on: a share of them, or another source; default: the part of the source that is for
            testing, or else a tenth. limit: train on so many of them only, the same with every seed.
    """

    source: str = "digits"
    held_out: float | str | None = None
    limit: int | None = Field(default=None, gt=0)


class PreprocessingRecipe(Section):
    """See `stemma.data.image_preprocessing.Preprocessing`.

    Args:
        mean, std: of the channels; one number is that of all. ratio: of the side that is seen to the side that the
            shorter one is resized to first, outside of training.
    """

    mean: list[float] = Field(default=[0.5], min_length=1)
    std: list[Annotated[float, Field(gt=0)]] = Field(default=[0.5], min_length=1)
    ratio: float = Field(default=1.0, gt=0, le=1)
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"


class AugmentationRecipe(Section):
    """What is done to training images; the defaults are DeiT's (see `stemma.data.image_augmentation`).

    Args:
        repeats: how often an image comes in a row, each time augmented anew. mixing: probability of mixing a batch.
    """

    repeats: int = Field(default=3, gt=0)
    crop: Range = (0.08, 1.0)
    ratio: Range = (0.75, 4 / 3)
    flip: float = Field(default=0.5, ge=0, le=1)
    operations: int = Field(default=2, ge=0)
    magnitude: float = Field(default=9.0, ge=0, le=10)
    deviation: float = Field(default=0.5, ge=0)
    erasing: float = Field(default=0.25, ge=0, le=1)
    erased: Range = (0.02, 1 / 3)
    mixup: float = Field(default=0.8, ge=0)
    cutmix: float = Field(default=1.0, ge=0)
    switch: float = Field(default=0.5, ge=0, le=1)
    mixing: float = Field(default=1.0, ge=0, le=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)

    @property
    def single(self) -> Augmentation:
        """What is done to each image."""
        names = ("crop", "ratio", "flip", "operations", "magnitude", "deviation", "erasing", "erased")
        return Augmentation(**{name: getattr(self, name) for name in names})

    @property
    def pairs(self) -> Mixing:
        """What is done to a batch."""
        return Mixing(self.mixup, self.cutmix, self.switch, self.mixing)


class DistillationRecipe(Section):
    """A teacher or several (see `stemma.families.image_classification.Distillation`).

    Args:
        teacher: a checkpoint directory or hub id that `stemma.load` takes, or "timm:NAME"; or a list of such. mean: of
            several.
    """

    teacher: str | Annotated[tuple[str, ...], Field(min_length=1)]
    kind: Literal["hard", "soft"] = "hard"
    alpha: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=3.0, gt=0)
    mean: Mean = "arithmetic"

    @property
    def teachers(self) -> tuple[str, ...]:
        """Their names."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher


class ImageTrainingRecipe(TrainingRecipe):
    """How it is trained.

    Args:
        reference_batch: the batch that the learning rate is for; that of another is in proportion (Goyal et al. 2017,
            section 2.1). null: the learning rate is as it stands.
    """

    reference_batch: int | None = Field(default=None, gt=0)

    @property
    def scaled(self) -> "ImageTrainingRecipe":
        """The same with the learning rate of its batch."""
        if self.reference_batch is None:
            return self
        rate = self.learning_rate * self.batch / self.reference_batch
        return self.model_copy(update={"learning_rate": rate, "reference_batch": None})


class ImageRecipe(RunRecipe):
    """A whole recipe.

    Args:
        model: `preset` and fields of the family's configuration; the classes follow from the data. With `start` only
            what changes: image_size, dropout, stochastic_depth.
        start: a checkpoint to go on from, whose configuration and preprocessing it is then.
        augmentation: null: the images as they are.
    """

    family: Literal["vit", "resnet"]
    model: dict[str, Any] = {}
    start: str | None = None
    data: ImageDataRecipe = ImageDataRecipe()
    preprocessing: PreprocessingRecipe = PreprocessingRecipe()
    augmentation: AugmentationRecipe | None = AugmentationRecipe()
    distillation: DistillationRecipe | None = None
    training: ImageTrainingRecipe

    @model_validator(mode="after")
    def _no_tokens(self) -> "ImageRecipe":
        for name, value in (("training.length", self.training.length), ("evaluation.tokens", self.evaluation.tokens)):
            if value is not None:
                raise ValueError(f"{name} is of texts, expected null")
        return self


def load_image_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> ImageRecipe | None:
    """Read, override, validate and expand a recipe of images; None if it is one of another family.

    Raises:
        InputError: no such recipe; an unknown key (naming the closest known one) or a bad value, with file and line.
    """
    source = RecipeSource(find_recipe(name_or_path))
    for override in overrides:
        source.override(override)
    if source.content.get("family") not in families.IMAGE_FAMILIES:
        return None
    try:
        recipe = ImageRecipe.model_validate(source.content)
    except ValidationError as error:
        raise source.explain(error, ImageRecipe) from error
    branch = families.FAMILIES[recipe.family]
    if recipe.start is not None:
        check_fields(branch.config, recipe.model, "model", source.where, hidden=set(_FIXED[recipe.family]))
        return recipe
    model = expand_model(branch, recipe.model, source.where)
    for name in ("classes", "class_names"):
        del model[name]
    return recipe.model_copy(update={"model": model})


def read_image_recipe(path: Path) -> RunRecipe:
    """Read the recipe of an earlier run, of whatever kind.

    Raises:
        InputError: see `load_recipe`.
    """
    from stemma.training.recipe import load_recipe

    return load_image_recipe(path) or load_recipe(path)
