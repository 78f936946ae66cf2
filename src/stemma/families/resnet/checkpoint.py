"""A ResNet on disk, by its own names: transformers' `resnet` has other layers."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stemma.families.own_format import from_own, to_own
from stemma.families.resnet.model import ResNet, ResNetConfig

OWN_TYPE = "stemma-resnet"
MODEL_TYPES = (OWN_TYPE,)


def to_published(model: ResNet) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors, one at a time."""
    return to_own(model, OWN_TYPE)


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
    return from_own(published, tensors, ResNetConfig, ResNet, dtype=dtype, device=device)
