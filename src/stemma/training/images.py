"""From a recipe of images to a trained model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma import families
from stemma.data.image_preprocessing import Preprocessing, for_channels
from stemma.data.images import ImageSet, held_out, read_images
from stemma.data.repeated_images import RepeatedImages
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.families.image_classification import Distillation, ImageClassification
from stemma.families.vit.continuing import continued
from stemma.families.vit.model import ViT
from stemma.training.batches import Plan, derived_seed
from stemma.training.distributed import Workers
from stemma.training.image_accuracy import measure
from stemma.training.image_recipe import DECISIVE, ImageRecipe, read_image_recipe
from stemma.training.objective import Display, Measured
from stemma.training.pretrain import publisher
from stemma.training.progress import quantity
from stemma.training.running import Run, run
from stemma.training.teachers import load_teacher
from stemma.training.trainer import Outcome, Task

HELD_OUT = 0.1  # of images that come without a part for testing


@dataclass(frozen=True)
class PreparedImages:
    """Everything of a run but the running."""

    recipe: ImageRecipe
    train: ImageSet
    test: ImageSet
    preprocessing: Preprocessing
    task: Task

    @property
    def summary(self) -> dict[str, Any]:
        """Numbers to know before the start."""
        return {
            "images": len(self.train),
            "held_out_images": len(self.test),
            "classes": len(self.train.class_names),
            "parameters": sum(parameter.numel() for parameter in self.task.model.parameters()),
            "steps": self.task.steps,
            "images_seen": self.task.steps * self.recipe.training.batch,
            "learning_rate": self.recipe.training.scaled.learning_rate,
        }

    @property
    def lines(self) -> list[str]:
        """The same in a few lines."""
        numbers, recipe = self.summary, self.recipe
        teacher = recipe.distillation
        taught = ""
        if teacher is not None:
            names = ", ".join(teacher.teachers)
            taught = f", taught by {names} ({teacher.kind}, alpha {teacher.alpha:g})"
        start = "" if recipe.start is None else f" from {recipe.start}"
        return [
            f"images     {recipe.data.source}: {numbers['images']:,} of {numbers['classes']} classes, "
            f"{numbers['held_out_images']:,} to measure on",
            f"model      {recipe.family}{start}, {numbers['parameters']:,} parameters, "
            f"{self.preprocessing.size} x {self.preprocessing.size} pixels{taught}",
            f"training   {numbers['steps']:,} steps of {recipe.training.batch:,} images = "
            f"{quantity(numbers['images_seen'])} images, {numbers['images_seen'] / numbers['images']:.2f} epochs, "
            f"learning rate {numbers['learning_rate']:.3g}",
        ]


def train_images(
    recipe: ImageRecipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
) -> Outcome:
    """Train the recipe's model into the directory `out`, or go on where an earlier run of it stopped there.

    Raises:
        InputError: see `prepare_images` and `run`. Diverged, OSError: see `run`.
    """

    def build(workers: Workers, shown: Display) -> Run:
        prepared = prepare_images(recipe)
        publish = publisher(prepared.task.model, None, prepared.preprocessing)
        return Run(prepared.task, publish, prepared.lines)

    executed = recipe.model_copy(update={"training": recipe.training.scaled})
    return run(
        executed,
        out,
        build,
        resume=resume,
        overwrite=overwrite,
        display=display,
        read=read_image_recipe,
        decisive=DECISIVE,
    )


def prepare_images(recipe: ImageRecipe) -> PreparedImages:
    """Build all that a recipe speaks of.

    Raises:
        InputError: images, a checkpoint or a teacher that cannot be read or do not fit.
    """
    train, test = split_images(recipe)
    torch.manual_seed(derived_seed(recipe.seed))
    model, preprocessing = _model(recipe, train.class_names)
    augmentation = recipe.augmentation
    objective = ImageClassification(
        preprocessing,
        len(train.class_names),
        None if augmentation is None else augmentation.single,
        None if augmentation is None else augmentation.pairs,
        0.0 if augmentation is None else augmentation.label_smoothing,
        _distillation(recipe, train.class_names, preprocessing),
    )
    sequences = RepeatedImages(train, recipe.seed, 1 if augmentation is None else augmentation.repeats)
    training = recipe.training
    plan = Plan(training.batch, training.ramp)
    steps = training.steps or plan.steps_for((training.epochs or 0) * len(sequences))
    task = Task(
        model,
        objective,
        sequences,
        length=getattr(model.config, "tokens", 1),
        steps=steps,
        held_out=Measured(lambda network: measure(network, test, preprocessing)),
        fingerprints={"data": sequences.fingerprint},
    )
    return PreparedImages(recipe, train, test, preprocessing, task)


def _distillation(recipe: ImageRecipe, class_names: tuple[str, ...], seen: Preprocessing) -> Distillation | None:
    wanted = recipe.distillation
    if wanted is None:
        return None
    teachers = [load_teacher(name, class_names, seen) for name in wanted.teachers]
    return Distillation(teachers, wanted.kind, wanted.alpha, wanted.temperature, wanted.mean)


def split_images(recipe: ImageRecipe) -> tuple[ImageSet, ImageSet]:
    """Return the images to train on and those to measure on.

    Raises:
        InputError: they cannot be read, or there are too few of them.
    """
    data = recipe.data
    train, test = read_images(data.source)
    if isinstance(data.held_out, str):
        other, part = read_images(data.held_out)
        test = (part or other).with_classes(train.class_names)
    elif data.held_out is not None or test is None:
        train, test = held_out(train, HELD_OUT if data.held_out is None else data.held_out, recipe.seed)
    if data.limit is not None and data.limit < len(train):
        train = train.selected(np.random.default_rng(0).permutation(len(train))[: data.limit])
    return train, test


def _model(recipe: ImageRecipe, class_names: tuple[str, ...]) -> tuple[Any, Preprocessing]:
    branch, wanted = families.FAMILIES[recipe.family], recipe.preprocessing
    if recipe.start is None:
        config = branch.config(**recipe.model, classes=len(class_names), class_names=class_names)
        mean, std = (for_channels(values, config.channels) for values in (wanted.mean, wanted.std))
        size = config.image_size
        return branch.model(config), Preprocessing(
            size, round(size / wanted.ratio), mean=mean, std=std, resample=wanted.resample
        )
    start: Any = families.load(recipe.start, dtype=torch.float32)
    if not isinstance(start, ViT) or recipe.family != "vit":
        raise InputError(f"start: {recipe.start} is a {type(start).__name__}, expected a ViT for the family vit")
    model = continued(start, class_names, **recipe.model)
    before = Preprocessing.load(resolve(recipe.start), channels=model.config.channels)
    size = model.config.image_size
    resized = round(size * (before.resized or before.size) / before.size)
    return model, replace(before, size=size, resized=resized)
