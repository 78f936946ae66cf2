"""The page that `stemma look` writes."""

from pathlib import Path

import numpy as np

from stemma import families
from stemma.data.image_preprocessing import Preprocessing
from stemma.data.images import read_images
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.families.vit.model import ViT
from stemma.insights.image_pictures import attention_pictures, augmentation_pictures
from stemma.insights.parts import Curves, Part, Report, Section, Series
from stemma.insights.report import write_report
from stemma.training.image_accuracy import token_cosines
from stemma.training.image_recipe import AugmentationRecipe, load_image_recipe
from stemma.training.run_directory import RECIPE


def write_page(path_or_hub_id: str, what: str, count: int, out: Path) -> None:
    """Write a report about a ViT and some images.

    Args:
        what: see `read_images`. count: images that are shown, spread evenly over those for testing, if there are any.
    Raises:
        InputError: no ViT, or images that cannot be read.
    """
    model = families.load(path_or_hub_id)
    if not isinstance(model, ViT):
        raise InputError(f"{path_or_hub_id} is a {type(model).__name__}, expected a ViT")
    directory = resolve(path_or_hub_id)
    preprocessing = Preprocessing.load(directory, channels=model.config.channels)
    whole, part = read_images(what)
    images = part or whole
    numbers = [int(number) for number in np.linspace(0, len(images) - 1, min(count, len(images)))]
    recipe = load_image_recipe(directory / RECIPE) if (directory / RECIPE).is_file() else None
    drawn = (recipe.augmentation if recipe is not None else None) or AugmentationRecipe()
    attention: list[Part] = [attention_pictures(model, images, numbers, preprocessing)]
    if model.config.distilled:
        cosines = token_cosines(model, images, preprocessing)
        series = Series("class and distillation token", list(range(len(cosines))), cosines)
        attention.append(Curves([series], "blocks passed", "cosine", "how alike the two tokens are"))
    sections = [
        Section(
            "Augmentation",
            [augmentation_pictures(images, numbers, preprocessing, drawn.single, drawn.pairs)],
        ),
        Section("Attention", attention),
    ]
    write_report(Report(f"{path_or_hub_id} on {what}", sections=sections), out)
