"""Pictures for a report: what augmentation does to images, and what the tokens of a ViT look at."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stemma.data.image_augmentation import Augmentation, Mixing
from stemma.data.image_preprocessing import Preprocessing
from stemma.data.images import ImageSet
from stemma.families.vit.model import ViT
from stemma.insights.parts import Pictures

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 112  # pixels, at least, of what shows a map
HEAT = np.array([255, 110, 0], np.float32)  # what is looked at most


def picture_of(image: "Image") -> str:
    """Return an image as a PNG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def augmentation_pictures(
    images: ImageSet,
    numbers: Sequence[int],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    mixing: Mixing,
    *,
    draws: int = 5,
    seed: int = 1,
) -> Pictures:
    """Show images as they are, augmented several times, and mixed with each other.

    Args:
        numbers: of the images; of a mixed one the partner is at the mirrored place among them.
    """
    rng = np.random.default_rng(seed)
    pixels = [
        [augmentation(images.read(number), preprocessing, rng) for _ in range(draws)] for number in numbers
    ]  # [numbers][draws] of [channels, size, size]
    labels = np.eye(len(images.class_names), dtype=np.float32)[images.labels[list(numbers)]]
    mixed, shares = mixing(np.stack([row[0] for row in pixels]), labels, rng)
    rows = []
    for place, number in enumerate(numbers):
        name = images.class_names[images.labels[number]]
        row = [(picture_of(preprocessing.coloured(images.read(number))), "as it is")]
        row += [(_picture(one, preprocessing), f"draw {draw}") for draw, one in enumerate(pixels[place], 1)]
        parts = [f"{images.class_names[k]} {shares[place][k]:.2f}" for k in np.flatnonzero(shares[place])]
        row.append((_picture(mixed[place], preprocessing), f"mixed: {', '.join(parts)}"))
        rows.append((name, row))
    return Pictures(rows, "training images, and what the recipe makes of them")


@torch.no_grad()
def attention_pictures(model: ViT, images: ImageSet, numbers: Sequence[int], preprocessing: Preprocessing) -> Pictures:
    """Show where the class token and the distillation token look in the last block, in the mean over its heads.

    Args:
        model: in evaluation mode.
    """
    pixels = torch.from_numpy(np.stack([preprocessing(images.read(number)) for number in numbers]))
    weights = model.attention_weights(pixels)[-1].mean(1)  # [images, tokens, tokens]
    tokens = ("class token", "distillation token")[: model.config.prefix]
    rows = []
    for place, number in enumerate(numbers):
        row = [(_picture(pixels[place].numpy(), preprocessing), "image")]
        for token, name in enumerate(tokens):
            looked = weights[place, token, model.config.prefix :]
            row.append((_picture(pixels[place].numpy(), preprocessing, _grid(looked)), f"{name}, last block"))
        rows.append((images.class_names[images.labels[number]], row))
    return Pictures(
        rows, "where the tokens look: the share of a token's attention that a patch has, brightest the most"
    )


def _grid(looked: Tensor) -> np.ndarray:
    """Return float [rows, columns] from 0 to 1 of the attention to the patches of a square."""
    side = round(len(looked) ** 0.5)
    return (looked / looked.max()).view(side, side).numpy()


def _picture(pixels: np.ndarray, preprocessing: Preprocessing, looked: np.ndarray | None = None) -> str:
    """Return normalised pixels, float [channels, height, width], as a picture; with a map of heat over it."""
    from PIL import Image

    mean, std = (np.asarray(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    shown = np.clip((pixels * std + mean) * 255, 0, 255).transpose(1, 2, 0).astype(np.uint8)
    image = Image.fromarray(shown.squeeze(2) if shown.shape[2] == 1 else shown)
    if looked is None:
        return picture_of(image)
    times = -(-SIDE // image.width)
    large = image.convert("RGB").resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    heat = Image.fromarray((looked * 255).astype(np.uint8)).resize(large.size, Image.Resampling.NEAREST)
    share = 0.7 * np.asarray(heat, np.float32)[..., None] / 255
    mixed = (1 - share) * np.asarray(large.convert("L"), np.float32)[..., None] + share * HEAT
    return picture_of(Image.fromarray(mixed.astype(np.uint8)))
