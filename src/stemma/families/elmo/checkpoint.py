"""An ELMo as a checkpoint directory: config.json and safetensors under our own names.

The published layout, options.json and an HDF5 file, is beside it (see published.py); transformers has no ELMo.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.families.weights import Stored, build_empty, fill, own_config, publish

OWN_TYPE = "stemma-elmo"
MODEL_TYPES = (OWN_TYPE,)


def to_published(model: ELMo) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors, one at a time."""
    config = {"model_type": OWN_TYPE, "architectures": ["ELMo"], **asdict(model.config)}
    return config, publish(model, _table(model))


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ELMo:
    """Build the model that config.json describes and fill it from `tensors`.

    Raises:
        InputError: an unknown key of the configuration, or tensors that do not fit.
    """
    config = own_config(published, ELMoConfig)
    model = build_empty(lambda: ELMo(config))
    fill(model, _table(model), tensors, dtype=dtype, device=device)
    return model


def _table(model: ELMo) -> list[Stored]:
    return [Stored(name, (name,)) for name, _ in model.named_parameters()]
