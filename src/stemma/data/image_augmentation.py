"""The augmentation of DeiT's recipe (Touvron et al. 2021, section 6 and table 9): each image by itself, and in pairs.

Everything is drawn from the generator that is given: the same sample has the same pixels, whoever computes it.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stemma.data.image_preprocessing import RESAMPLE, Preprocessing
from stemma.data.rand_augment import rand_augment

if TYPE_CHECKING:
    from PIL.Image import Image

ATTEMPTS = 10  # at a rectangle that fits


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image.

    Args:
        crop: least and largest share of the area that is cut out and resized. ratio: of width to height of the cut.
        flip: probability of mirroring left and right (0 for digits and letters).
        operations: of RandAugment (0: none), see `rand_augment`. magnitude, deviation: of each.
        erasing: probability that a rectangle becomes noise. erased: its share of the area.
    """

    crop: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    operations: int = 2
    magnitude: float = 9.0
    deviation: float = 0.5
    erasing: float = 0.25
    erased: tuple[float, float] = (0.02, 1 / 3)

    def __call__(self, image: "Image", preprocessing: Preprocessing, rng: np.random.Generator) -> np.ndarray:
        """Return float32 [channels, size, size], normalised."""
        image = self.picture(preprocessing.coloured(image), preprocessing, rng)
        return self.erase(preprocessing.normalised(image), rng)

    def picture(self, image: "Image", preprocessing: Preprocessing, rng: np.random.Generator) -> "Image":
        """Return what a person would see of it: all but the normalisation and the erasing."""
        size = (preprocessing.size, preprocessing.size)
        box = _crop(image.size, self.crop, self.ratio, rng)
        image = image.crop(box).resize(size, RESAMPLE[preprocessing.resample])
        if rng.random() < self.flip:
            image = image.transpose(0)  # type: ignore[arg-type]  # Pillow's FLIP_LEFT_RIGHT
        fill = tuple(min(255, round(255 * mean)) for mean in preprocessing.mean)
        return rand_augment(
            image,
            rng,
            operations=self.operations,
            magnitude=self.magnitude,
            deviation=self.deviation,
            fill=fill if len(fill) > 1 else fill[0],
        )

    def erase(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Fill a rectangle of float32 [channels, height, width] with normal noise (Zhong et al. 2017), in place."""
        if rng.random() >= self.erasing:
            return pixels
        channels, height, width = pixels.shape
        for _ in range(ATTEMPTS):
            area = rng.uniform(*self.erased) * height * width
            aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if rows < height and columns < width:
                top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
                noise = rng.standard_normal((channels, rows, columns), np.float32)
                pixels[:, top : top + rows, left : left + columns] = noise
                break
        return pixels


def _crop(
    size: tuple[int, int], share: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a random part (Szegedy et al. 2014, section 6), or of the middle."""
    width, height = size
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(*share)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            left, top = int(rng.integers(width - columns + 1)), int(rng.integers(height - rows + 1))
            return left, top, left + columns, top + rows
    rows, columns = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows


@dataclass(frozen=True)
class Mixing:
    """Each image of a batch with its partner, the one at the mirrored place: blended, or with a box of it put in.

    Mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019), one of the two and one share for a whole batch.

    Args:
        mixup, cutmix: parameters of the shares' symmetric Beta distributions; 0: never. switch: probability of CutMix
            where both may be. probability: of mixing at all.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    probability: float = 1.0

    def __call__(
        self, images: np.ndarray, targets: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return images float32 [batch, channels, height, width] and targets float32 [batch, classes], both mixed."""
        if not (self.mixup or self.cutmix) or rng.random() >= self.probability:
            return images, targets
        boxed = bool(self.cutmix) and (not self.mixup or rng.random() < self.switch)
        alpha = self.cutmix if boxed else self.mixup
        share = float(rng.beta(alpha, alpha))  # of the image itself
        if boxed:
            images = images.copy()
            rows, columns, share = _box(images.shape[2], images.shape[3], share, rng)
            images[:, :, rows, columns] = images[::-1, :, rows, columns].copy()
        else:
            images = share * images + (1 - share) * images[::-1]
        mixed = share * targets + (1 - share) * targets[::-1]
        return images.astype(np.float32, copy=False), mixed.astype(np.float32, copy=False)


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice, float]:
    """Return the rows and columns of a box with about 1 - `share` of the area, and what is really left outside it.

    Its middle may be anywhere, so that the image's border may cut it.
    """
    sides = [(int(whole * math.sqrt(1 - share)), whole) for whole in (height, width)]
    middles = [int(rng.integers(whole)) for whole in (height, width)]
    rows, columns = (
        slice(max(middle - side // 2, 0), min(middle + (side + 1) // 2, whole))
        for middle, (side, whole) in zip(middles, sides, strict=True)
    )
    return rows, columns, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
