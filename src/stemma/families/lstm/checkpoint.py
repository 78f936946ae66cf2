"""An LSTM on disk: config.json, and weights under the names of `torch.nn.LSTM`.

No other library has a format for such models. Where all layers are equally wide, `torch.nn.LSTM(embedding, hidden,
layers)` takes the tensors that begin with `lstm.` as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.families.weights import Stored, build_empty, fill, own_config, publish, require_counts

OWN_TYPE = "stemma-lstm"
MODEL_TYPES = (OWN_TYPE,)


def to_published(model: LSTM) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of the model, and its tensors under their published names, one at a time."""
    content = {"model_type": OWN_TYPE, "architectures": ["LSTM"], **asdict(model.config)}
    return content, publish(model, table(model.config))


def from_published(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LSTM:
    """Build the model that config.json describes and fill it from `tensors`.

    Raises:
        InputError: a configuration key that is unknown or senseless, or tensors that do not fit.
    """
    require_counts(published, ("vocabulary", "embedding", "hidden", "layers"))
    config = own_config(published, LSTMConfig)
    model = build_empty(lambda: LSTM(config))
    fill(model, table(config), tensors, dtype=dtype, device=device)
    return model


def table(config: LSTMConfig) -> list[Stored]:
    """Return the published name of every parameter."""
    rows = [Stored("embedding.weight", ("token_embedding.weight",))]
    for layer in range(config.layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            rows.append(Stored(f"lstm.{name}_l{layer}", (f"blocks.{layer}.{name}",)))
    return rows if config.tie_output else [*rows, Stored("head.weight", ("output.weight",))]
