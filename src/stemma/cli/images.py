"""What `stemma pretrain`, `stemma finetune` and `stemma evaluate` do with models that read images."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from stemma.training.image_recipe import ImageRecipe
    from stemma.training.progress import ConsoleDisplay


def is_image_model(path_or_hub_id: str) -> bool:
    """Return whether a checkpoint is of a model that reads images.

    Raises:
        InputError: there is no checkpoint.
    """
    from stemma.families import FAMILIES, IMAGE_FAMILIES
    from stemma.families.directory import read_json, resolve

    path = resolve(path_or_hub_id) / "config.json"
    config = read_json(path) if path.is_file() else {}
    types = {kind for name in IMAGE_FAMILIES for kind in FAMILIES[name].model_types}
    return config.get("model_type") in types or "architecture" in config


def train_images(
    recipe: "ImageRecipe",
    directory: Path,
    display: "ConsoleDisplay",
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train on images, and print how that ended."""
    import json
    from dataclasses import asdict

    from stemma.training.distributed import is_main
    from stemma.training.images import prepare_images
    from stemma.training.images import train_images as run
    from stemma.training.progress import duration

    console = display.console
    if dry_run:
        prepared = prepare_images(recipe)
        for line in prepared.lines:
            display.say(line)
        if as_json:
            print(json.dumps(prepared.summary))
        return
    outcome = run(recipe, directory, resume=resume, overwrite=overwrite, display=display)
    progress = outcome.progress
    if is_main() and as_json:
        result = asdict(progress)
        del result["window"]
        print(json.dumps({"reason": outcome.reason, "steps": outcome.steps, "out": str(directory), **result}))
    elif is_main():
        title = f"{outcome.reason} after {progress.step:,} of {outcome.steps:,} steps in {duration(progress.seconds)}"
        if outcome.reason == "interrupted":
            console.print(f"{title}; saved; the same command again goes on from here", highlight=False)
        else:
            measured = progress.evaluation or {}
            _print(console, title, {**(measured.get("metrics") or {}), "loss": measured.get("loss")})
            console.print(f"next: stemma evaluate {directory} {recipe.data.source}", highlight=False, soft_wrap=True)
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


def continue_images(
    model: str, train: str, dev: str | None, overrides: list[str], directory: Path, overwrite: bool, as_json: bool
) -> None:
    """Go on with the training of a checkpoint, on other images or at another resolution."""
    from rich.console import Console

    from stemma.errors import InputError
    from stemma.training.image_recipe import load_image_recipe
    from stemma.training.progress import ConsoleDisplay

    given = [f"start={model}", f"data.source={train}", *([] if dev is None else [f"data.held_out={dev}"])]
    recipe = load_image_recipe("vit/finetune", [*given, *overrides])
    if recipe is None:
        raise InputError("family: fine-tuning of images is of the family vit")
    train_images(recipe, directory, ConsoleDisplay(Console(stderr=as_json)), False, overwrite, False, as_json)


def image_student(student: str) -> list[str]:
    """Return the recipe of a student that reads images, and what it is to be overridden with: of a recipe its own, of
    a checkpoint that of fine-tuning; an empty list: it reads none.

    Raises:
        InputError: it is no recipe and no checkpoint.
    """
    from stemma.training.image_recipe import load_image_recipe
    from stemma.training.recipe_source import shipped_recipes

    if student in shipped_recipes() or Path(student).is_file():
        return [student] if load_image_recipe(student) is not None else []
    return ["vit/finetune", f"start={student}"] if is_image_model(student) else []


def distil_images(
    student: list[str],
    train: str,
    dev: str | None,
    distillation: Mapping[str, Any],
    overrides: list[str],
    directory: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a student of images as `stemma pretrain` and `stemma finetune` do, on soft targets.

    Args:
        student: see `image_student`. distillation: keys of that section of the recipe; None: not given.
    """
    import json

    from rich.console import Console

    from stemma.training.image_recipe import load_image_recipe
    from stemma.training.progress import ConsoleDisplay

    soft = {"kind": "soft", **{name: value for name, value in distillation.items() if value is not None}}
    given = [f"data.source={train}", *([] if dev is None else [f"data.held_out={dev}"])]
    recipe = load_image_recipe(student[0], [*student[1:], *given, f"distillation={json.dumps(soft)}", *overrides])
    assert recipe is not None
    train_images(recipe, directory, ConsoleDisplay(Console(stderr=as_json)), False, overwrite, False, as_json)


def evaluate_images(model: str, images: str, device: str, as_json: bool) -> None:
    """Print the accuracy on the images that a source has for testing, or on all of them."""
    import json

    from rich.console import Console

    from stemma.cli.devices import device_named
    from stemma.data.image_preprocessing import Preprocessing
    from stemma.data.images import read_images
    from stemma.errors import InputError
    from stemma.families import load
    from stemma.families.directory import resolve
    from stemma.training.hardware import prepare_processor
    from stemma.training.image_accuracy import measure

    prepare_processor()
    network = load(model, device=device_named(device))
    config: object = network.config
    whole, part = read_images(images)
    found, names = part or whole, getattr(config, "class_names", ())
    if names:
        found = found.with_classes(names)
    elif int(found.labels.max()) >= getattr(config, "classes", 0):
        raise InputError(f"{images}: {len(found.class_names)} classes, more than the model's")
    reached = measure(network, found, Preprocessing.load(resolve(model), channels=getattr(config, "channels", 3)))
    metrics = dict(reached.metrics)
    if as_json:
        summary = {"model": model, "images": images, "examples": reached.examples, "loss": reached.loss}
        print(json.dumps({**summary, "metrics": metrics}))
        return
    title = f"{model} on {images}: {reached.examples:,} images"
    _print(Console(), title, {**metrics, "loss": reached.loss})


def _print(console: object, title: str, numbers: dict[str, float | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    table = Table("measure", title=title, title_justify="left")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        if value is not None:
            table.add_row(name.replace("_", " "), f"{value:.4f}")
    console.print(table)
