"""More tokens for a model that is already trained."""

from dataclasses import replace
from typing import Any

import torch


@torch.no_grad()
def with_vocabulary(model: Any, vocabulary: int) -> Any:
    """Return the model with `vocabulary` token ids, the further ones newly initialised; itself if it has as many.

    Args:
        vocabulary: at least the model's own.
    """
    before = model.config.vocabulary
    if vocabulary == before:
        return model
    grown = type(model)(replace(model.config, vocabulary=vocabulary))
    grown.to(next(model.parameters()))
    own = dict(model.named_parameters())
    for name, parameter in grown.named_parameters():
        rows = slice(None) if own[name].shape == parameter.shape else slice(before)
        parameter[rows] = own[name][rows]
    return grown.train(model.training)
