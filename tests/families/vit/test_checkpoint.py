"""ViT and DeiT against transformers and timm: published weights both ways, logits of both heads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from timm_package import import_timm
from torch import Tensor, nn

import stemma
from stemma.data.image_preprocessing import Preprocessing
from stemma.errors import InputError
from stemma.families.vit.checkpoint import from_published, to_published
from stemma.families.vit.google import load_npz
from stemma.families.vit.model import ViT, ViTConfig
from stemma.families.vit.timm import from_timm, save_timm, to_timm

SMALL = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 48, "num_labels": 5}
CONFIG = ViTConfig(image_size=16, patch_size=4, hidden=32, layers=2, heads=4, feed_forward=48, classes=5)


@torch.no_grad()
def shaken(model: nn.Module) -> Any:
    """Return the model in evaluation mode with random parameters, none of them 0 or 1."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def images(size: int = 16) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def theirs(distilled: bool, **options: Any) -> Any:
    if distilled:
        return shaken(transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**SMALL, **options)))
    return shaken(transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, **options)))


@torch.no_grad()
def assert_same_heads(ours: ViT, expected: tuple[Tensor, ...]) -> None:
    heads = [logits for logits in ours.heads(images()) if logits is not None]
    assert len(heads) == len(expected)
    for logits, reference in zip(heads, expected, strict=True):
        assert (logits - reference).abs().max() < 1e-5
    assert (ours(images()) - torch.stack(list(expected)).mean(0)).abs().max() < 1e-5


@torch.no_grad()
def heads_of(model: Any) -> tuple[Tensor, ...]:
    found = model(images())
    return (found.cls_logits, found.distillation_logits) if hasattr(found, "cls_logits") else (found.logits,)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-6])
def test_transformers_directories_load_and_load_there(distilled: bool, epsilon: float, tmp_path: Path) -> None:
    reference = theirs(distilled, layer_norm_eps=epsilon, hidden_act="gelu_new" if distilled else "gelu")
    reference.save_pretrained(tmp_path / "theirs")
    ours = stemma.load(tmp_path / "theirs")
    assert isinstance(ours, ViT) and ours.config.norm_epsilon == epsilon and ours.config.distilled == distilled
    assert_same_heads(ours, heads_of(reference))

    preprocessing = Preprocessing(16, 18, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    stemma.save(ours, None, tmp_path / "ours", preprocessing=preprocessing)
    assert not (tmp_path / "ours" / "generation_config.json").exists()
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "ours")
    if distilled:
        again = transformers.DeiTForImageClassificationWithTeacher.from_pretrained(tmp_path / "ours")
    assert_same_heads(ours, heads_of(again.eval()))
    assert Preprocessing.load(tmp_path / "ours") == preprocessing


def test_the_names_in_transformers_memory_give_the_same_model() -> None:
    reference = theirs(False)
    state = reference.state_dict()
    assert "vit.layers.0.attention.q_proj.weight" in state  # or this tests nothing
    assert_same_heads(from_published(reference.config.to_dict(), state).eval(), heads_of(reference))


def test_a_bare_encoder_gets_an_output_layer_of_zeros(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = shaken(transformers.ViTModel(transformers.ViTConfig(**SMALL)))
    bare.save_pretrained(tmp_path)
    ours = stemma.load(tmp_path)
    assert "newly initialised" in caplog.text and ours.head.weight.abs().sum() == 0
    with torch.no_grad():
        assert (ours.hidden_states(images())[-1] - bare(images()).last_hidden_state).abs().max() < 1e-5


def test_names_of_classes_survive(tmp_path: Path) -> None:
    names = ("cat", "dog", "eel", "fox", "gnu")
    stemma.save(ViT(ViTConfig(**{**vars(CONFIG), "class_names": names})), None, tmp_path)
    assert stemma.load(tmp_path).config.class_names == names
    assert transformers.AutoConfig.from_pretrained(tmp_path).id2label == dict(enumerate(names))


@pytest.mark.parametrize("distilled", [False, True])
def test_timm_state_dicts_both_ways(distilled: bool, tmp_path: Path) -> None:
    timm = import_timm()
    name = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_224"
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    reference = shaken(timm.create_model(name, num_classes=5, **sizes))
    with torch.no_grad():
        features = reference.forward_features(images())
        expected = [reference.head(features[:, 0])]
        if distilled:
            expected.append(reference.head_dist(features[:, 1]))
        assert (reference(images()) - torch.stack(expected).mean(0)).abs().max() < 1e-6
    ours = from_timm(reference.state_dict(), heads=4).eval()
    assert_same_heads(ours, tuple(expected))
    for key, tensor in to_timm(ours).items():
        assert torch.equal(tensor, reference.state_dict()[key]), key

    preprocessing = Preprocessing(16, 18, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    save_timm(ours, tmp_path, preprocessing)
    with torch.no_grad():
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert (again(images()) - ours(images())).abs().max() < 1e-5
    back = stemma.load(tmp_path)
    assert back.config == ours.config
    assert_same_heads(back, tuple(expected))
    loaded = Preprocessing.load(tmp_path)
    assert (loaded.size, loaded.resized, loaded.mean) == (16, 18, preprocessing.mean)


def test_the_authors_archive_gives_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    """Kernels as Flax has them, [in, out] with the heads apart, written here from a model of ours."""
    ours = shaken(ViT(ViTConfig(**{**vars(CONFIG), "activation": "gelu_tanh"})))
    arrays = {"cls": ours.embeddings.class_token, "Transformer/posembed_input/pos_embedding": ours.embeddings.position}
    arrays["embedding/kernel"] = ours.embeddings.patch.weight.permute(2, 3, 1, 0)
    arrays["embedding/bias"] = ours.embeddings.patch.bias
    norms = {"Transformer/encoder_norm": ours.final_norm}
    dense = {"head": ours.head}
    for layer, block in enumerate(ours.blocks):
        place = f"Transformer/encoderblock_{layer}"
        norms |= {f"{place}/LayerNorm_0": block.attention_norm, f"{place}/LayerNorm_2": block.feed_forward_norm}
        dense |= {f"{place}/MlpBlock_3/Dense_0": block.feed_forward.up}
        dense |= {f"{place}/MlpBlock_3/Dense_1": block.feed_forward.down}
        attention = f"{place}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            layer_map = getattr(block.attention, part)
            arrays[f"{attention}/{part}/kernel"] = layer_map.weight.t().reshape(32, 4, 8)
            arrays[f"{attention}/{part}/bias"] = layer_map.bias.reshape(4, 8)
        arrays[f"{attention}/out/kernel"] = block.attention.output.weight.t().reshape(4, 8, 32)
        arrays[f"{attention}/out/bias"] = block.attention.output.bias
    for place, norm in norms.items():
        arrays |= {f"{place}/scale": norm.weight, f"{place}/bias": norm.bias}
    for place, layer_map in dense.items():
        arrays |= {f"{place}/kernel": layer_map.weight.t(), f"{place}/bias": layer_map.bias}
    path = tmp_path / "weights.npz"
    np.savez(path, **{name: array.detach().numpy() for name, array in arrays.items()})
    loaded = stemma.load(path)
    assert loaded.config == ours.config
    with torch.no_grad():
        assert torch.equal(loaded(images()), ours(images()))

    np.savez(path, **{name: array.detach().numpy() for name, array in arrays.items()}, **{"pre_logits/bias": [0.0]})
    with pytest.raises(InputError, match="pre_logits"):
        load_npz(path)
    np.savez(path, other=[0.0])
    with pytest.raises(InputError, match="not a ViT"):
        load_npz(path)
    with pytest.raises(InputError, match="not a NumPy archive"):
        load_npz(tmp_path / "none.npz")


def test_what_would_be_computed_differently_is_refused(tmp_path: Path) -> None:
    config, tensors = to_published(ViT(CONFIG))
    held = dict(tensors)
    for change, message in (
        ({"qkv_bias": False}, "qkv_bias is false"),
        ({"hidden_act": "swish"}, "hidden_act 'swish' is not supported"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.*missing"),
    ):
        with pytest.raises(InputError, match=message):
            from_published({**config, **change}, held)
    with pytest.raises(InputError, match="not part of the model"):
        from_published(config, {**held, "vit.extra": torch.zeros(1)})
    reference = shaken(transformers.DeiTForImageClassification(transformers.DeiTConfig(**SMALL)))
    reference.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="one output layer"):
        stemma.load(tmp_path)


def test_what_is_no_vit_of_timm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'cls_token' is missing"):
        from_timm({})
    state = to_timm(ViT(CONFIG))
    with pytest.raises(InputError, match="15 patches, expected a square"):
        from_timm({**state, "pos_embed": state["pos_embed"][:, 1:]})
    with pytest.raises(InputError, match="norm_epsilon is 1e-12"):
        to_timm(ViT(ViTConfig(**{**vars(CONFIG), "norm_epsilon": 1e-12})))
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(InputError, match="architecture resnet50, expected one of ViT or DeiT"):
        stemma.load(tmp_path)


def test_a_model_of_images_takes_no_tokenizer(tmp_path: Path) -> None:
    from stemma.data.tokenizers import train_tokenizer

    with pytest.raises(InputError, match="reads images and has no tokenizer"):
        stemma.save(ViT(CONFIG), train_tokenizer(["a b c"] * 9, "bpe", vocabulary=260), tmp_path)
