"""Pictures of images: they are what they say, and the page holds them."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stemma
from stemma.data.image_augmentation import Augmentation, Mixing
from stemma.data.image_preprocessing import Preprocessing
from stemma.data.images import read_images
from stemma.errors import InputError
from stemma.families.resnet.model import ResNet, ResNetConfig
from stemma.families.vit.model import PRESETS, ViT
from stemma.insights.image_page import write_page
from stemma.insights.image_pictures import HEAT, attention_pictures, augmentation_pictures
from stemma.insights.parts import Report, Section, from_json, to_json
from stemma.insights.report import read_report, render

GREY = Preprocessing(8, mean=(0.5,), std=(0.5,))
SMALL = replace(PRESETS["tiny"], layers=2, hidden=16, heads=2, distilled=True)


def decoded(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def test_pictures_of_augmentation_show_the_images_and_their_shares() -> None:
    images, _ = read_images("digits")
    nothing = Augmentation(crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, operations=0, erasing=0.0)
    part = augmentation_pictures(images, [3, 4], GREY, nothing, Mixing(0.8, 0.0), draws=1)
    for (name, row), number in zip(part.rows, (3, 4), strict=True):
        assert name == images.class_names[images.labels[number]]
        assert [what for _, what in row[:2]] == ["as it is", "draw 1"]
        for picture, _ in row[:2]:
            assert np.abs(decoded(picture).astype(int) - np.asarray(images.read(number))).max() <= 1
    shares = [float(one.split()[-1]) for one in part.rows[0][1][2][1].removeprefix("mixed: ").split(", ")]
    assert sum(shares) == pytest.approx(1, abs=0.011)
    assert from_json(to_json(Report("x", sections=[Section("y", [part])]))).sections[0].parts == (part,)


def test_the_patch_that_is_looked_at_most_is_the_brightest() -> None:
    torch.manual_seed(0)
    model = ViT(SMALL).eval()
    images, _ = read_images("digits")
    part = attention_pictures(model, images, [0], GREY)
    weights = model.attention_weights(torch.from_numpy(GREY(images.read(0)))[None])[-1].mean(1)[0]
    (_, row) = part.rows[0]
    assert [what for _, what in row] == ["image", "class token, last block", "distillation token, last block"]
    for token, (picture, _) in enumerate(row[1:]):
        shown = decoded(picture).astype(float)
        side = shown.shape[0] // 4
        patch = int(weights[token, 2:].argmax())
        top, left = (patch // 4) * side, (patch % 4) * side
        grey = float(np.asarray(images.read(0))[2 * (patch // 4), 2 * (patch % 4)])
        assert shown[top, left] == pytest.approx(0.3 * grey + 0.7 * HEAT, abs=2)


def test_a_page(tmp_path: Path) -> None:
    stemma.save(ViT(SMALL), None, tmp_path / "vit", preprocessing=GREY)
    write_page(str(tmp_path / "vit"), "digits", 3, tmp_path / "page.html")
    report = read_report(tmp_path / "page.html")
    assert [section.title for section in report.sections] == ["Augmentation", "Attention"]
    page = render(report)
    assert page.count("<img src=") == 3 * 7 + 3 * 3 and "img-src data:" in page
    stemma.save(ResNet(ResNetConfig(channels=1)), None, tmp_path / "net", preprocessing=GREY)
    with pytest.raises(InputError, match="is a ResNet, expected a ViT"):
        write_page(str(tmp_path / "net"), "digits", 3, tmp_path / "page.html")
