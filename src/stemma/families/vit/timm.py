"""ViT's and DeiT's names in timm and in the authors' code of DeiT, and directories of timm's on the hub, both ways."""

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma.data.image_preprocessing import Preprocessing
from stemma.errors import InputError
from stemma.families.directory import StoredTensors, read_json, replace_checkpoint, write_json, write_weights
from stemma.families.vit.checkpoint import filled
from stemma.families.vit.model import ViT, ViTConfig
from stemma.families.weights import Stored, publish

HEAD_DIM, EPSILON = 64, 1e-6  # of all published ones
_BLOCK = {
    "norm1": ("attention_norm",),
    "attn.qkv": ("attention.query", "attention.key", "attention.value"),
    "attn.proj": ("attention.output",),
    "norm2": ("feed_forward_norm",),
    "mlp.fc1": ("feed_forward.up",),
    "mlp.fc2": ("feed_forward.down",),
}


def is_timm(directory: Path) -> bool:
    """Return whether a directory is one of timm's: its config.json has an "architecture" and no "model_type"."""
    path = directory / "config.json"
    if not path.is_file():
        return False
    config = read_json(path)
    return "model_type" not in config and isinstance(config.get("architecture"), str)


def load_timm(directory: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> ViT:
    """Load a directory as timm's `push_to_hf_hub` writes them.

    Raises:
        InputError: another architecture than ViT's or DeiT's, or tensors that do not fit.
    """
    config = read_json(directory / "config.json")
    arguments = config.get("model_args") or {}
    if not config["architecture"].startswith(("vit_", "deit_")):
        raise InputError(f"{directory}: architecture {config['architecture']}, expected one of ViT or DeiT")
    names = tuple((config.get("pretrained_cfg") or {}).get("label_names") or config.get("label_names") or ())
    return from_timm(
        StoredTensors(directory),
        heads=arguments.get("num_heads"),
        activation="gelu_tanh" if arguments.get("act_layer") == "gelu_tanh" else "gelu",
        class_names=names,
        dtype=dtype,
        device=device,
    )


def from_timm(
    tensors: Mapping[str, Tensor],
    *,
    heads: int | None = None,
    activation: Any = "gelu",
    class_names: tuple[str, ...] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ViT:
    """Return the model of a state dict of timm's `VisionTransformer`, or of the "model" in a file of DeiT's authors.

    Args:
        heads: which the tensors do not tell; default: of 64 channels each, as all published ones.
        class_names: where there are as many as classes.
    Raises:
        InputError: tensors that do not fit.
    """
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if name not in tensors:
            raise InputError(f"checkpoint: tensor '{name}' is missing, expected those of timm's VisionTransformer")
    hidden, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    distilled = "dist_token" in tensors
    count = tensors["pos_embed"].shape[1] - (2 if distilled else 1)
    if isqrt(count) ** 2 != count:
        raise InputError(f"checkpoint: pos_embed is of {count} patches, expected a square")
    classes = tensors["head.weight"].shape[0] if "head.weight" in tensors else len(class_names) or 1000
    config = ViTConfig(
        image_size=isqrt(count) * patch,
        patch_size=patch,
        channels=channels,
        classes=classes,
        class_names=class_names if len(class_names) == classes else (),
        layers=sum(name.startswith("blocks.") and name.endswith(".norm1.weight") for name in tensors),
        hidden=hidden,
        heads=heads or max(hidden // HEAD_DIM, 1),
        feed_forward=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        activation=activation,
        norm_epsilon=EPSILON,
        distilled=distilled,
    )
    return filled(config, table(config), tensors, dtype=dtype, device=device)


def to_timm(model: ViT) -> dict[str, Tensor]:
    """Return the state dict of timm's `VisionTransformer` (`VisionTransformerDistilled` of a DeiT).

    Raises:
        InputError: the model's norms have another epsilon than timm's.
    """
    if model.config.norm_epsilon != EPSILON:
        raise InputError(f"the model's norm_epsilon is {model.config.norm_epsilon}, and timm's {EPSILON}")
    return dict(publish(model, table(model.config)))


def save_timm(model: ViT, directory: str | Path, preprocessing: Preprocessing | None = None) -> None:
    """Write a directory that `timm.create_model("local-dir:DIRECTORY", pretrained=True)` loads.

    Raises:
        InputError: see `to_timm`; the directory cannot be created.
        OSError: it could not be written; what was there is untouched.
    """
    config, tensors = model.config, to_timm(model)
    arguments: dict[str, Any] = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "embed_dim": config.hidden,
        "depth": config.layers,
        "num_heads": config.heads,
        "mlp_ratio": (config.feed_forward or 4 * config.hidden) / config.hidden,
    }
    if config.activation != "gelu":
        arguments["act_layer"] = config.activation
    described: dict[str, Any] = {
        "num_classes": config.classes,
        "input_size": [config.channels, config.image_size, config.image_size],
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if config.distilled else "head",
    }
    if preprocessing is not None:
        described |= {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": preprocessing.resample,
            "crop_pct": preprocessing.size / (preprocessing.resized or preprocessing.size),
        }
    content = {
        "architecture": "deit_tiny_distilled_patch16_224" if config.distilled else "vit_tiny_patch16_224",
        "num_classes": config.classes,
        "num_features": config.hidden,
        "global_pool": "token",
        "label_names": list(config.class_names) or None,
        "model_args": arguments,
        "pretrained_cfg": described,
    }
    with replace_checkpoint(Path(directory)) as staging:
        write_json(staging / "config.json", {name: value for name, value in content.items() if value is not None})
        write_weights(tensors.items(), staging)


def table(config: ViTConfig) -> list[Stored]:
    """List the tensors of timm's checkpoint."""
    names: dict[str, tuple[str, ...]] = {
        "cls_token": ("embeddings.class_token",),
        "pos_embed": ("embeddings.position",),
    }
    maps: dict[str, tuple[str, ...]] = {"patch_embed.proj": ("embeddings.patch",)}
    for layer in range(config.layers):
        for theirs, ours in _BLOCK.items():
            maps[f"blocks.{layer}.{theirs}"] = tuple(f"blocks.{layer}.{name}" for name in ours)
    maps |= {"norm": ("final_norm",), "head": ("head",)}
    if config.distilled:
        names["dist_token"] = ("embeddings.distillation_token",)
        maps["head_dist"] = ("distillation_head",)
    for kind in ("weight", "bias"):
        names |= {f"{theirs}.{kind}": tuple(f"{name}.{kind}" for name in ours) for theirs, ours in maps.items()}
    return [Stored(theirs, ours) for theirs, ours in names.items()]
