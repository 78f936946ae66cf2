"""A ResNet on disk, by its own names: transformers' `resnet` has other layers."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from stemma.families.resnet.model import ResNet, ResNetConfig
from stemma.families.weights import Stored, build_empty, fill, own_config, publish

OWN_TYPE = "stemma-resnet"
MODEL_TYPES = (OWN_TYPE,)


def to_published(model: ResNet) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors, one at a time."""
    content = {"model_type": OWN_TYPE, "architectures": ["ResNet"], **asdict(model.config)}
    return content, publish(model, _table(model))


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ResNet:
    """Build the model that config.json describes and fill it from `tensors`.

    Raises:
        InputError: an unknown key, or tensors that do not fit.
    """
    config = own_config(published, ResNetConfig)
    model = build_empty(lambda: ResNet(config))
    fill(model, _table(model), tensors, dtype=dtype, device=device)
    return model


def _table(model: ResNet) -> list[Stored]:
    return [Stored(name, (name,)) for name, _ in model.named_parameters()]
