"""The states of any family's reading of whole texts, the last or all of them, padding outside of what they see."""

from typing import Any

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families.dispatch import with_article
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.families.mistral.model import Mistral
from stemma.families.t5.model import T5
from stemma.families.transformer.model import Transformer
from stemma.layers.masks import Mask

READ_FROM_LEFT_TO_RIGHT = (GPT, Mistral, LSTM)


def states_of(
    model: Any, tokens: Tensor, lengths: Tensor, segments: Tensor | None = None, places: Tensor | None = None
) -> Tensor:
    """Return float [batch, length, hidden]: of a T5 or Transformer the encoder's states, of others the last layer's.

    Args:
        tokens: int64 [batch, length], padded at the end with any ids. lengths: int64 [batch]: tokens that are real.
        segments: int64 [batch, length], of a BERT.
        places: int64 [places], counted through all rows: return the states of these only, float [places, hidden]; in
            BERT and GLM the others are then not computed.
    """
    if isinstance(model, READ_FROM_LEFT_TO_RIGHT):
        return _at(model.hidden(tokens), places)  # causality hides the padding
    width = tokens.shape[1]
    full = bool((lengths == width).all())
    mask = None if full else Mask(key_padding=torch.arange(width, device=tokens.device) < lengths.unsqueeze(1))
    if isinstance(model, T5 | Transformer):
        return _at(model.encode(tokens, mask), places)
    options = {} if segments is None else {"segments": segments}
    return model.hidden(tokens, mask=mask, places=places, **options)


def _at(states: Tensor, places: Tensor | None) -> Tensor:
    return states if places is None else states.flatten(0, 1)[places]


def blocks_of(model: Any) -> nn.ModuleList:
    """Return the layers that `layers_of` tells of: of a T5 or Transformer the encoder's."""
    blocks: nn.ModuleList = (model.encoder if isinstance(model, T5 | Transformer) else model).blocks
    return blocks


def layers_of(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return float [1 + layers, batch, length, hidden]: the embeddings and the states of every layer.

    The last are those of `states_of`: behind the model's final norm, where it has one. Arguments as there.

    Raises:
        InputError: a model whose layers are not all as wide.
    """
    blocks = blocks_of(model)
    layers: list[Tensor] = []

    def embedded(block: nn.Module, arguments: tuple[Any, ...]) -> None:
        layers.append(arguments[0])

    def left(block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        layers.append(output[0] if isinstance(output, tuple) else output)

    hooks = [blocks[0].register_forward_pre_hook(embedded)]
    hooks += [block.register_forward_hook(left) for block in blocks]
    try:
        last = states_of(model, tokens, lengths)
    finally:
        for hook in hooks:
            hook.remove()
    layers[-1] = last
    if len({layer.shape[-1] for layer in layers}) > 1:
        widths = ", ".join(str(layer.shape[-1]) for layer in layers)
        raise InputError(f"{with_article(model)} whose layers are {widths} wide: expected layers of one width")
    return torch.stack(layers)
