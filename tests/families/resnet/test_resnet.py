"""The small residual network: its published sizes, its block by hand, and its directory."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import stemma
from stemma.errors import InputError
from stemma.families.resnet.model import PRESETS, Block, ResNet, ResNetConfig

SMALL = ResNetConfig(image_size=8, channels=1, classes=3, class_names=("a", "b", "c"), blocks=1, width=8, groups=2)


@pytest.mark.parametrize(("preset", "millions"), [("20", 0.27), ("56", 0.85)])
def test_published_numbers_of_parameters(preset: str, millions: float) -> None:
    """He et al. 2015, table 6."""
    assert round(sum(p.numel() for p in ResNet(PRESETS[preset]).parameters()) / 1e6, 2) == millions


def test_a_block_that_halves_the_side_and_doubles_the_channels() -> None:
    torch.manual_seed(0)
    block, x = Block(2, 4, 2, 1), torch.randn(3, 2, 6, 6)
    inner = torch.relu(F.group_norm(F.conv2d(x, block.first.weight, stride=2, padding=1), 1))
    branch = F.group_norm(F.conv2d(inner, block.second.weight, padding=1), 1)
    skipped = torch.cat([x[:, :, ::2, ::2], torch.zeros(3, 2, 3, 3)], dim=1)
    assert (block(x) - torch.relu(branch + skipped)).abs().max() < 1e-5


def test_the_images_of_a_batch_do_not_matter_to_each_other() -> None:
    torch.manual_seed(0)
    model = ResNet(SMALL)
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(4, 1, 8, 8)
    assert (model(images)[1] - model(images[1:2])[0]).abs().max() < 1e-5


def test_its_directory(tmp_path: Path) -> None:
    model = ResNet(SMALL)
    torch.nn.init.normal_(model.head.weight)
    stemma.save(model, None, tmp_path)
    again = stemma.load(tmp_path)
    assert again.config == SMALL
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(images), model(images))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "widht": 3}))
    with pytest.raises(InputError, match=r"unknown key 'widht' for stemma-resnet \(did you mean 'width'\?\)"):
        stemma.load(tmp_path)
    with pytest.raises(InputError, match="must be a multiple of groups"):
        ResNetConfig(width=12, groups=8)
