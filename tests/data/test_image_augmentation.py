"""Augmentation against timm, operation by operation, and by what must be true of every draw."""

import random
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from timm_package import import_timm

from stemma.data.image_augmentation import Augmentation, Mixing
from stemma.data.image_preprocessing import Preprocessing
from stemma.data.rand_augment import OPERATIONS, rand_augment

THEIRS = {
    "auto contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear x": "ShearX",
    "shear y": "ShearY",
    "translate x": "TranslateXRel",
    "translate y": "TranslateYRel",
}


def photo(size: tuple[int, int] = (20, 14)) -> Image.Image:
    """Smooth colours with some noise, so that every operation changes something."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    noise = np.random.default_rng(0).integers(0, 40, (size[1], size[0], 3))
    return Image.fromarray((np.stack([rows * 9, columns * 7, rows + columns], -1) + noise).astype(np.uint8))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0.0, 3.7, 9.3])
def test_operations_are_timms_pixel_by_pixel(name: str, magnitude: float) -> None:
    import_timm()
    from timm.data import auto_augment

    fill = (124, 116, 104)
    for sign in (1, -1):
        options = {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
        operation = auto_augment.AugmentOp(THEIRS[name], prob=1.0, magnitude=magnitude, hparams=options)
        with patch.object(random, "random", lambda: 0.9 if sign < 0 else 0.1):  # noqa: B023
            expected = operation(photo())
        assert np.array_equal(OPERATIONS[name](photo(), magnitude / 10, sign, fill), expected), sign


def test_timm_draws_of_the_same_operations() -> None:
    import_timm()
    from timm.data import auto_augment

    assert set(THEIRS.values()) == set(auto_augment._RAND_INCREASING_TRANSFORMS)


def test_operations_are_drawn_with_replacement_and_carried_out_half_the_time() -> None:
    seen: list[tuple[str, float, int]] = []

    def recorded(name: str):  # noqa: ANN202
        return lambda image, level, sign, fill: seen.append((name, level, sign)) or image

    with patch.dict(OPERATIONS, {name: recorded(name) for name in OPERATIONS}):
        for number in range(3000):
            rand_augment(photo((2, 2)), np.random.default_rng(number))
    counts = np.array([sum(name == one for one, _, _ in seen) for name in OPERATIONS])
    assert counts.sum() == pytest.approx(3000, abs=120) and counts.min() > 140 and counts.max() < 260
    levels = np.array([level for _, level, _ in seen])
    assert levels.max() == 1 and levels.mean() == pytest.approx(0.9, abs=0.01)
    # Normal with a deviation of .05, of which what is above 1 is cut.
    assert levels.std() == pytest.approx(0.05, abs=0.005)
    assert np.mean([sign for _, _, sign in seen]) == pytest.approx(0, abs=0.06)


def test_the_same_seed_gives_the_same_image_in_grey_too() -> None:
    for mode in ("RGB", "L"):
        means = (0.5,) * (3 if mode == "RGB" else 1)
        preprocessing = Preprocessing(8, mean=means, std=means)
        one, other, different = (
            Augmentation()(photo(), preprocessing, np.random.default_rng(seed)) for seed in (4, 4, 5)
        )
        assert one.shape == (len(means), 8, 8) and one.dtype == np.float32
        assert np.array_equal(one, other) and not np.array_equal(one, different)


def test_without_anything_it_is_the_preprocessing() -> None:
    nothing = Augmentation(crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, operations=0, erasing=0.0)
    square, preprocessing = photo((12, 12)), Preprocessing(6)
    assert np.array_equal(nothing(square, preprocessing, np.random.default_rng(0)), preprocessing(square))
    mirrored = Augmentation(crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0, operations=0, erasing=0.0)
    assert np.array_equal(
        mirrored(square, Preprocessing(12), np.random.default_rng(0)), Preprocessing(12)(square)[:, :, ::-1]
    )


def test_what_is_cut_out_has_the_share_and_the_ratio() -> None:
    from stemma.data.image_augmentation import _crop

    boxes = np.array([_crop((200, 100), (0.08, 1.0), (3 / 4, 4 / 3), np.random.default_rng(n)) for n in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 200 and boxes[:, 3].max() <= 100
    shares, ratios = widths * heights / 20000, widths / heights
    assert shares.min() > 0.075 and 0.73 < ratios.min() < 0.8 and 1.28 < ratios.max() < 1.37
    # An area that never fits: the middle, as much of it as the ratio allows.
    assert _crop((400, 10), (1.0, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0)) == (193, 0, 206, 10)


def test_erasing_fills_a_rectangle_of_the_right_area_with_normal_noise() -> None:
    augmentation, shares, values = Augmentation(), [], []
    for number in range(2000):
        pixels = augmentation.erase(np.full((3, 32, 32), 9.0, np.float32), np.random.default_rng(number))
        changed = pixels != 9.0
        if changed.any():
            rows, columns = np.nonzero(changed.any((0, 2)))[0], np.nonzero(changed.any((0, 1)))[0]
            assert changed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            shares.append(changed.mean())
            values.append(pixels[changed])
    assert len(shares) / 2000 == pytest.approx(0.25, abs=0.03)
    assert min(shares) > 0.015 and max(shares) < 0.35
    noise = np.concatenate(values)
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_say_the_share_of_each_image(mixup: float, cutmix: float) -> None:
    """Image n is constant n, so that the share of a pair can be read from the pixels."""
    images = np.ones((4, 1, 10, 12), np.float32) * np.arange(4).reshape(4, 1, 1, 1)
    targets = np.eye(4, dtype=np.float32)
    blended = 0
    for number in range(200):
        mixed, labels = Mixing(mixup, cutmix)(images, targets, np.random.default_rng(number))
        assert labels.sum(1) == pytest.approx(1, abs=1e-6) and mixed.dtype == labels.dtype == np.float32
        assert mixed.mean((1, 2, 3)) == pytest.approx(labels @ np.arange(4), abs=1e-5)
        assert (labels * targets[::-1])[:, ::-1].diagonal() == pytest.approx(
            1 - (labels * targets).diagonal(), abs=1e-6
        )
        blended += not np.isin(mixed, images).all()
    assert blended == {0.0: 0, 0.8: 200}[mixup] if not (mixup and cutmix) else 60 < blended < 140
    assert np.array_equal(images[:, 0, 0, 0], np.arange(4))  # the batch itself is left alone


def test_no_mixing() -> None:
    images, targets = np.zeros((2, 1, 2, 2), np.float32), np.eye(2, dtype=np.float32)
    for mixing in (Mixing(0.0, 0.0), Mixing(probability=0.0)):
        assert mixing(images, targets, np.random.default_rng(0)) == (images, targets)


def test_the_box_of_cutmix_is_timms() -> None:
    import_timm()
    from timm.data.mixup import cutmix_bbox_and_lam

    from stemma.data.image_augmentation import _box

    for number in range(100):
        share = number / 100
        rows, columns, left = _box(10, 12, share, np.random.default_rng(number))
        rng = np.random.default_rng(number)
        middles = iter((rng.integers(10), rng.integers(12)))
        with patch.object(np.random, "randint", lambda *_, **__: next(middles)):  # noqa: B023
            expected = cutmix_bbox_and_lam((4, 1, 10, 12), share)
        assert ((rows.start, rows.stop, columns.start, columns.stop), left) == (
            tuple(map(int, expected[0])),
            pytest.approx(expected[1]),
        )
