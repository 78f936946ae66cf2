"""Models that no other library has a format for, on disk: config.json and tensors by our own names, both ways."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stemma.families.weights import Stored, build_empty, fill, own_config, publish

Model = TypeVar("Model", bound=nn.Module)


def to_own(model: nn.Module, model_type: str) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """Return what config.json says of a model, and its tensors, one at a time."""
    config: Any = model.config
    own = asdict(config)
    own.pop("vocabulary_multiple", None)  # in memory only
    return {"model_type": model_type, "architectures": [type(model).__name__], **own}, publish(model, _table(model))


def from_own(
    published: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    config: type,
    build: Callable[[Any], Model],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Model:
    """Build the model that config.json describes and fill it from `tensors`.

    Raises:
        InputError: an unknown key of the configuration, or tensors that do not fit.
    """
    described: Any = own_config(published, config)
    model = build_empty(lambda: build(described))
    fill(model, _table(model), tensors, dtype=dtype, device=device)
    return model


def _table(model: nn.Module) -> list[Stored]:
    config: Any = model.config
    padded = {"token_embedding.weight", "output.weight"} if hasattr(config, "vocabulary_multiple") else set()
    return [
        Stored(name, (name,), rows=config.vocabulary if name in padded else None)
        for name, _ in model.named_parameters()
    ]
