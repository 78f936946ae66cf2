"""RandAugment (Cubuk et al. 2019, "RandAugment: Practical automated data augmentation with a reduced search space") in
the form that DeiT was trained with: `rand-m9-mstd0.5-inc1` of timm. Pillow does the work on the pixels."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Fill = int | tuple[int, ...]
TRANSLATION = 0.45  # of a side, at the largest magnitude
_BICUBIC, _AFFINE = 3, 0  # Pillow's numbers


def rand_augment(
    image: "Image",
    rng: np.random.Generator,
    *,
    operations: int = 2,
    magnitude: float = 9.0,
    deviation: float = 0.5,
    probability: float = 0.5,
    fill: Fill = 128,
) -> "Image":
    """Return the image after some operations, which are drawn with replacement.

    Args:
        image: in grey ("L") or "RGB".
        operations: how many are drawn; each is carried out with `probability`.
        magnitude: from 0 to 10; that of each operation is normal around it with `deviation`, cut to the same range.
        fill: what comes in from outside.
    """
    for name in rng.choice(list(OPERATIONS), operations):
        if rng.random() < probability:
            level = float(np.clip(rng.normal(magnitude, deviation), 0, 10)) / 10
            image = OPERATIONS[name](image, level, 1 if rng.random() < 0.5 else -1, fill)
    return image


def _enhanced(kind: str) -> Callable[..., "Image"]:
    """Blend towards or away from nothing of that kind; 1 is no change."""

    def operation(image: "Image", level: float, sign: int, fill: Fill) -> "Image":
        from PIL import ImageEnhance

        enhance: Any = getattr(ImageEnhance, kind)
        return enhance(image).enhance(max(0.1, 1 + sign * 0.9 * level))

    return operation


def _plain(kind: str) -> Callable[..., "Image"]:
    """An operation without a magnitude."""

    def operation(image: "Image", level: float, sign: int, fill: Fill) -> "Image":
        from PIL import ImageOps

        return getattr(ImageOps, kind)(image)

    return operation


def _posterize(image: "Image", level: float, sign: int, fill: Fill) -> "Image":
    from PIL import ImageOps

    return ImageOps.posterize(image, 4 - int(4 * level))


def _solarize(image: "Image", level: float, sign: int, fill: Fill) -> "Image":
    from PIL import ImageOps

    return ImageOps.solarize(image, 256 - int(256 * level))


def _solarize_add(image: "Image", level: float, sign: int, fill: Fill) -> "Image":
    table = [min(255, value + int(110 * level)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _rotate(image: "Image", level: float, sign: int, fill: Fill) -> "Image":
    return image.rotate(sign * 30 * level, _BICUBIC, fillcolor=fill)  # type: ignore[arg-type]


def _affine(
    coefficients: Callable[["Image", float], tuple[float, ...]],
) -> Callable[..., "Image"]:
    def operation(image: "Image", level: float, sign: int, fill: Fill) -> "Image":
        data = coefficients(image, sign * level)
        return image.transform(image.size, _AFFINE, data, _BICUBIC, fillcolor=fill)  # type: ignore[arg-type]

    return operation


# (image, level from 0 to 1, sign, fill) -> image; the stronger the larger the level ("inc1").
OPERATIONS: dict[str, Callable[..., "Image"]] = {
    "auto contrast": _plain("autocontrast"),
    "equalize": _plain("equalize"),
    "invert": _plain("invert"),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize add": _solarize_add,
    "color": _enhanced("Color"),
    "contrast": _enhanced("Contrast"),
    "brightness": _enhanced("Brightness"),
    "sharpness": _enhanced("Sharpness"),
    "shear x": _affine(lambda image, level: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear y": _affine(lambda image, level: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate x": _affine(lambda image, level: (1, 0, TRANSLATION * level * image.width, 0, 1, 0)),
    "translate y": _affine(lambda image, level: (1, 0, 0, 0, 1, TRANSLATION * level * image.height)),
}
