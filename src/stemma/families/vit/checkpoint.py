"""ViT's and DeiT's published names <-> ours: Hugging Face `vit` and `deit` in the files' names and in those that
transformers has had in memory since its version 5."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.vit.model import ViT, ViTConfig
from stemma.families.weights import Stored, build_empty, fill, publish, require_counts

logger = logging.getLogger(__name__)

MODEL_TYPES = ("vit", "deit")

_ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_SIZES = {
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "channels",
}
_REST = {"layer_norm_eps": "norm_epsilon", "hidden_dropout_prob": "dropout", "initializer_range": "initial_std"}
# transformers' own, which a config.json may leave out.
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "hidden_act": "gelu",
}
# Ours of a block, and theirs: in files, and in memory.
_FILES = {
    "attention_norm": "layernorm_before",
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
    "feed_forward_norm": "layernorm_after",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
}
_MEMORY = {
    "attention_norm": "layernorm_before",
    "attention.query": "attention.q_proj",
    "attention.key": "attention.k_proj",
    "attention.value": "attention.v_proj",
    "attention.output": "attention.o_proj",
    "feed_forward_norm": "layernorm_after",
    "feed_forward.up": "mlp.fc1",
    "feed_forward.down": "mlp.fc2",
}


def to_published(model: ViT) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time.

    What only decides training (stochastic depth) has no name there and is not kept.
    """
    config = model.config
    activations = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    names = config.class_names or tuple(f"LABEL_{number}" for number in range(config.classes))
    published = {
        "model_type": "deit" if config.distilled else "vit",
        "architectures": ["DeiTForImageClassificationWithTeacher" if config.distilled else "ViTForImageClassification"],
        **{theirs: getattr(config, ours) for theirs, ours in {**_SIZES, **_REST}.items()},
        "intermediate_size": config.feed_forward or 4 * config.hidden,
        "hidden_act": activations[config.activation],
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    return published, publish(model, table(config))


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ViT:
    """Build the model that config.json describes and fill it from `tensors`.

    A bare encoder gets an output layer of zeros, which a log line says.

    Raises:
        InputError: a configuration that we would compute differently, or tensors that do not fit.
    """
    config = _config(published, tensors)
    rows, ignored = stored_rows(config, tensors)
    return filled(config, rows, tensors, ignored=ignored, dtype=dtype, device=device)


def filled(
    config: ViTConfig,
    rows: list[Stored],
    tensors: Mapping[str, Tensor],
    *,
    ignored: set[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ViT:
    """Return a model with the parameters of `tensors`; where these have no output layer, it is one of zeros."""
    model = build_empty(lambda: ViT(config))
    there = [row for row in rows if row.name in tensors or not row.parameters[0].startswith("head.")]
    if len(there) == len(rows):
        fill(model, rows, tensors, ignored=ignored or (), dtype=dtype, device=device)
        return model
    logger.warning("newly initialised, the checkpoint has none: the output layer")
    like = tensors[rows[0].name]
    zeros = {row.name: like.new_zeros(model.get_parameter(row.parameters[0]).shape) for row in rows if row not in there}
    fill(model, rows, {**tensors, **zeros}, ignored=ignored or (), dtype=dtype, device=device)
    return model


def stored_rows(config: ViTConfig, tensors: Mapping[str, Tensor]) -> tuple[list[Stored], set[str]]:
    """Return the table of the names that these tensors have, and the names that are no part of the model."""
    begins = f"{'deit' if config.distilled else 'vit'}."
    prefix = begins if any(name.startswith(begins) for name in tensors) else ""
    in_memory = f"{prefix}layers.0.attention.q_proj.weight" in tensors
    rows = table(config, prefix, _MEMORY if in_memory else _FILES, "layers" if in_memory else "encoder.layer")
    return rows, {name for name in tensors if name.removeprefix(begins).startswith("pooler.")}


def _config(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ViTConfig:
    published = {**_DEFAULTS, **published}
    require_counts(published, _SIZES)
    if not published.get("qkv_bias", True):
        raise InputError("config.json: qkv_bias is false, expected true")
    activation = published["hidden_act"]
    if activation not in _ACTIVATIONS:
        expected = ", ".join(_ACTIVATIONS)
        raise InputError(f"config.json: hidden_act {activation!r} is not supported, expected one of {expected}")
    distilled = any(name.endswith("embeddings.distillation_token") for name in tensors)
    if distilled and "classifier.weight" in tensors:
        raise InputError(
            "config.json: a DeiT with one output layer, which ignores the distillation token; expected "
            "DeiTForImageClassificationWithTeacher's two"
        )
    names = published.get("id2label") or {str(number): f"LABEL_{number}" for number in range(_classes(published))}
    ordered = tuple(str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0])))
    named = ordered != tuple(f"LABEL_{number}" for number in range(len(ordered)))
    return ViTConfig(
        **{ours: published[theirs] for theirs, ours in {**_SIZES, **_REST}.items()},
        activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
        classes=len(ordered),
        class_names=ordered if named else (),
        distilled=distilled,
    )


def _classes(published: Mapping[str, Any]) -> int:
    return int(published.get("num_labels", 2))


def table(
    config: ViTConfig,
    prefix: str | None = None,
    parts: Mapping[str, str] = _FILES,
    layers: str = "encoder.layer",
) -> list[Stored]:
    """List the tensors of a checkpoint with both output layers, or with the one of a plain ViT."""
    prefix = prefix if prefix is not None else "deit." if config.distilled else "vit."
    names = {
        f"{prefix}embeddings.cls_token": "embeddings.class_token",
        f"{prefix}embeddings.position_embeddings": "embeddings.position",
    }
    maps = {f"{prefix}embeddings.patch_embeddings.projection": "embeddings.patch"}
    for layer in range(config.layers):
        maps |= {f"{prefix}{layers}.{layer}.{theirs}": f"blocks.{layer}.{ours}" for ours, theirs in parts.items()}
    maps[f"{prefix}layernorm"] = "final_norm"
    if config.distilled:
        names[f"{prefix}embeddings.distillation_token"] = "embeddings.distillation_token"
        maps |= {"cls_classifier": "head", "distillation_classifier": "distillation_head"}
    else:
        maps["classifier"] = "head"
    for theirs, ours in maps.items():
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    return [Stored(theirs, (ours,)) for theirs, ours in names.items()]
