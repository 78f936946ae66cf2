"""An ELMo as a checkpoint directory: config.json and safetensors under our own names.

The published layout, options.json and an HDF5 file, is beside it (see published.py); transformers has no ELMo.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stemma.families.elmo.model import ELMo, ELMoConfig
from stemma.families.own_format import from_own, to_own

OWN_TYPE = "stemma-elmo"
MODEL_TYPES = (OWN_TYPE,)


def to_published(model: ELMo) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors, one at a time."""
    return to_own(model, OWN_TYPE)


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
    return from_own(published, tensors, ELMoConfig, ELMo, dtype=dtype, device=device)
