"""Trainings of small image models for claims: a job trains one arm with one seed and measures it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemma import families
from stemma.data.image_preprocessing import Preprocessing
from stemma.data.images import ImageSet
from stemma.insights.experiments import Column, Job, Measures
from stemma.insights.workers import Interrupted, Report, Reporter
from stemma.training.image_accuracy import measure
from stemma.training.image_recipe import load_image_recipe
from stemma.training.images import split_images, train_images
from stemma.training.objective import Display
from stemma.training.run_directory import RECIPE

ACCURACY = Column("accuracy", "accuracy", lambda m: m.get("accuracy"))
HEADS = (
    ACCURACY,
    Column("accuracy, class token's head", "class", lambda m: m.get("class_accuracy")),
    Column("accuracy, distillation token's head", "distil", lambda m: m.get("distillation_accuracy")),
    Column("accuracy, sum of both heads' probabilities", "sum", lambda m: m.get("accuracy_by_probabilities")),
)
# All arms are measured once, at the end: nothing is chosen by what is measured.
_COMMON = ("output={save_every: 200, keep: 1, log_every: 50}", "evaluation={every: 1000000000}")


def train_student(job: Job, report: Report, overrides: Sequence[str]) -> Measures:
    """Train a ViT by the recipe of vit/tiny with `overrides`; return what it reaches on the images held out."""
    settings = job.settings
    given = [f"training.steps={settings['steps']}", f"seed={job.seed}", *overrides]
    return trained("vit/tiny", given, job.folder / "run", Reporter(job.name, report, "training"))


def train_teacher(settings: Mapping[str, Any], images: int, folder: Path) -> None:
    """Train a convolutional teacher on so many images into a folder."""
    given = [f"data.source={settings['source']}", f"data.limit={images}", f"training.steps={settings['teacher_steps']}"]
    trained("resnet/tiny", given, folder)


def trained(name: str, overrides: Sequence[str], folder: Path, display: Display | None = None) -> dict[str, float]:
    """Train by a shipped recipe of images into a folder, or go on there; return loss and metrics at the end.

    Raises:
        Interrupted: a signal came; what was done is saved.
    """
    recipe = load_image_recipe(name, [*_COMMON, *overrides])
    assert recipe is not None, f"{name} is no recipe of images"
    outcome = train_images(recipe, folder, display=display)
    if outcome.reason == "interrupted":
        raise Interrupted
    reached: Any = outcome.progress.evaluation
    return {**reached["metrics"], "loss": reached["loss"]}


def held_out_of(folder: Path) -> tuple[ImageSet, Preprocessing]:
    """Return the images that a run in a folder is measured on, and how its model wants them."""
    recipe = load_image_recipe(folder / RECIPE)
    assert recipe is not None, f"{folder} is no run of images"
    return split_images(recipe)[1], Preprocessing.load(folder, channels=recipe.model["channels"])


def teacher_accuracy(folder: Path) -> float:
    """Return what a teacher that `train_teacher` made reaches on the images held out."""
    return float(measure(families.load(folder), *held_out_of(folder)).metrics["accuracy"])
