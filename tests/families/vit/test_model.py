"""ViT: sizes of the papers' models, other resolutions, both tokens, stochastic depth."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm_package import import_timm

from stemma.errors import InputError
from stemma.families.vit.continuing import continued
from stemma.families.vit.model import PRESETS, ViT, ViTConfig
from stemma.families.vit.positions import resize_positions
from stemma.families.weights import build_empty
from stemma.layers.stochastic_depth import StochasticDepth

SMALL = ViTConfig(image_size=8, patch_size=2, channels=1, hidden=16, heads=2, layers=3, classes=4)


@pytest.mark.parametrize(
    ("preset", "plain", "distilled"),
    [
        ("ti", 5_717_416, 5_910_800),
        ("s", 22_050_664, 22_436_432),
        ("b", 86_567_656, 87_338_192),
        ("l", 304_326_632, None),
    ],
)
def test_published_numbers_of_parameters(preset: str, plain: int, distilled: int | None) -> None:
    for number, distilling in ((plain, False), (distilled, True)):
        if number is not None:
            config = replace(PRESETS[preset], distilled=distilling)
            assert sum(parameter.numel() for parameter in build_empty(lambda: ViT(config)).parameters()) == number  # noqa: B023


def test_patches_are_read_row_by_row_as_a_convolution_does() -> None:
    model = ViT(SMALL)
    images = torch.randn(2, 1, 8, 8)
    expected = F.conv2d(images, model.embeddings.patch.weight, model.embeddings.patch.bias, stride=2)
    found = model.embeddings(images)[:, 1:] - model.embeddings.position[:, 1:]
    assert (found - expected.flatten(2).transpose(1, 2)).abs().max() < 1e-5


def test_the_last_block_computes_what_the_heads_read_and_nothing_else() -> None:
    model = ViT(replace(SMALL, distilled=True)).eval()
    images = torch.randn(3, 1, 8, 8)
    states = model.hidden_states(images)
    assert len(states) == 4 and states[0].shape == (3, 18, 16)
    ours, other = model.heads(images)
    assert other is not None
    assert (ours - model.head(states[-1][:, 0])).abs().max() < 1e-5
    assert (other - model.distillation_head(states[-1][:, 1])).abs().max() < 1e-5  # type: ignore[misc]


def test_training_gives_both_heads_and_evaluation_their_mean() -> None:
    model = ViT(replace(SMALL, distilled=True))
    images = torch.randn(2, 1, 8, 8)
    pair = model(images)
    assert isinstance(pair, tuple) and pair[0].shape == pair[1].shape == (2, 4)
    assert (model.eval()(images) - (pair[0] + pair[1]) / 2).abs().max() < 1e-6
    assert ViT(SMALL)(images).shape == (2, 4)


def test_attention_weights_are_those_that_the_blocks_use() -> None:
    model = ViT(SMALL).eval()
    images = torch.randn(2, 1, 8, 8)
    weights, states = model.attention_weights(images), model.hidden_states(images)
    assert len(weights) == 3 and weights[0].shape == (2, 2, 17, 17)
    block = model.blocks[1]
    normed = block.attention_norm(states[1])
    value = block.attention.project(normed)[2]
    mixed = (weights[1] @ value).transpose(1, 2).flatten(2)
    assert (block.attention.output(mixed) - block.attention(normed)).abs().max() < 1e-5


def test_positions_of_the_same_grid_are_the_same_bits_and_a_constant_stays_one() -> None:
    positions = torch.randn(1, 18, 5)
    assert resize_positions(positions, (4, 4), 2) is positions
    constant = torch.full((1, 17, 3), 0.7)
    for grid in ((7, 7), (2, 3)):
        assert (resize_positions(constant, grid, 1) - 0.7).abs().max() < 1e-6
    larger = resize_positions(positions, (8, 6), 2)
    assert larger.shape == (1, 50, 5) and torch.equal(larger[:, :2], positions[:, :2])
    with pytest.raises(InputError, match="12 patches are no square"):
        resize_positions(torch.zeros(1, 13, 3), (4, 4), 1)
    assert resize_positions(torch.randn(1, 13, 3), (3, 3), 1, (3, 4)).shape == (1, 10, 3)


def test_larger_images_as_in_transformers_and_smaller_ones_as_in_timm() -> None:
    import transformers

    timm = import_timm()
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    reference = transformers.ViTModel(config, add_pooling_layer=False)
    positions = torch.randn(1, 17, 8)
    reference.embeddings.position_embeddings.data = positions
    expected = reference.embeddings.interpolate_pos_encoding(torch.zeros(1, 29, 8), 16, 28)
    assert (resize_positions(positions, (4, 7), 1) - expected).abs().max() < 1e-6
    smaller = timm.layers.resample_abs_pos_embed(positions, [3, 2])
    assert (resize_positions(positions, (3, 2), 1) - smaller).abs().max() < 1e-6


def test_images_of_another_size_are_read() -> None:
    model = ViT(SMALL).eval()
    assert model(torch.randn(1, 1, 12, 6)).shape == (1, 4)
    for shape in ((1, 1, 9, 8), (1, 3, 8, 8)):
        with pytest.raises(InputError, match="the model takes 1 channels and sides that are multiples of 2"):
            model(torch.randn(shape))


def test_going_on_at_a_higher_resolution() -> None:
    names = ("a", "b", "c", "d")
    model = ViT(replace(SMALL, class_names=names, distilled=True)).eval()
    larger = continued(model, names, image_size=12).eval()
    assert larger.config.image_size == 12 and torch.equal(larger.head.weight, model.head.weight)
    images = torch.randn(2, 1, 12, 12)
    assert (larger(images) - model(images)).abs().max() < 1e-5  # which interpolates as it goes
    other = continued(model, ("x", "y")).eval()
    assert other(torch.randn(2, 1, 8, 8)).abs().max() == 0 and other.config.class_names == ("x", "y")
    assert torch.equal(other.blocks[2].feed_forward.up.weight, model.blocks[2].feed_forward.up.weight)


def test_stochastic_depth_leaves_whole_examples_out_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = StochasticDepth(0.25), torch.ones(4000, 3)
    kept = layer(x)
    assert sorted(set(kept[:, 0].tolist())) == pytest.approx([0, 4 / 3]) and (kept == kept[:, :1]).all()
    assert float(kept.mean()) == pytest.approx(1, abs=0.03)
    assert layer.eval()(x) is x
    rates = [block.depth.rate for block in ViT(replace(SMALL, stochastic_depth=0.1)).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "must be a multiple of heads"),
        ({"patch_size": 3}, "must be a multiple of patch_size"),
        ({"class_names": ("one",)}, "1 class_names for 4 classes"),
    ],
)
def test_configurations_that_do_not_fit(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_weight_decay_spares_tokens_and_positions() -> None:
    from stemma.training.optimizer import adamw

    model = ViT(replace(SMALL, distilled=True))
    groups = adamw(model, learning_rate=0.1, weight_decay=0.5).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in decayed}
    embeddings = {"embeddings.class_token", "embeddings.distillation_token", "embeddings.position"}
    assert embeddings < names and all(name.endswith(".bias") or "norm" in name for name in names - embeddings)
