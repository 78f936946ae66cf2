"""The last states of any family's reading of whole texts, padding outside of what they see."""

from typing import Any

import torch
from torch import Tensor

from stemma.families.gpt.model import GPT
from stemma.families.t5.model import T5
from stemma.layers.masks import Mask


def states_of(model: Any, tokens: Tensor, lengths: Tensor, segments: Tensor | None = None) -> Tensor:
    """Return float [batch, length, hidden]: of a T5 the encoder's states, of others the last layer's.

    Args:
        tokens: int64 [batch, length], padded at the end with any ids. lengths: int64 [batch]: tokens that are real.
        segments: int64 [batch, length], of a BERT.
    """
    if isinstance(model, GPT):
        return model.hidden(tokens)  # causality hides the padding
    width = tokens.shape[1]
    full = bool((lengths == width).all())
    mask = None if full else Mask(key_padding=torch.arange(width, device=tokens.device) < lengths.unsqueeze(1))
    if isinstance(model, T5):
        return model.encode(tokens, mask)
    return model.hidden(tokens, mask=mask) if segments is None else model.hidden(tokens, segments, mask)
