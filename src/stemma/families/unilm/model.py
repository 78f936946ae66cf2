"""UniLM: one BERT under several masks (Dong et al. 2019, "Unified Language Model Pre-training for Natural Language
Understanding and Generation", section 2).

The network is BERT, with a segment id for each way of reading; what differs is what a token may see:

    bidirectional   everything                                                      segments 0 and 1
    left to right   itself and what is before it                                    segment 2
    right to left   itself and what is after it                                     segment 3
    seq2seq         the source; in the target also itself and what is before it     segments 4 and 5
"""

from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.model import PRESETS as BERT_PRESETS
from stemma.layers.attention import KeyValueCache
from stemma.layers.masks import Mask

Kind = Literal["bidirectional", "left_to_right", "right_to_left", "seq2seq"]
KINDS: tuple[Kind, ...] = ("bidirectional", "left_to_right", "right_to_left", "seq2seq")
# Of a text, or of its first and its second part.
SEGMENTS: dict[Kind, tuple[int, int]] = {
    "bidirectional": (0, 1),
    "left_to_right": (2, 2),
    "right_to_left": (3, 3),
    "seq2seq": (4, 5),
}

PRESETS: dict[str, BERTConfig] = {name: replace(preset, segments=6) for name, preset in BERT_PRESETS.items()}


def seen_by_all(kind: Kind, length: int, source_length: int) -> int:
    """Return how many of a text's first tokens every token sees; beyond them the causal mask rules, which in the kind
    right to left runs backwards.

    Args:
        length: of the whole text. source_length: of its first part, with its special tokens.
    """
    return {"bidirectional": length, "seq2seq": source_length}.get(kind, 0)


def mask_of(prefix_lengths: Tensor, reverse: Tensor, lengths: Tensor, width: int) -> Mask:
    """Return the mask of a batch whose rows may be of different kinds.

    Args:
        prefix_lengths: int64 [rows]: `seen_by_all`. reverse: bool [rows]: from right to left.
        lengths: int64 [rows]: tokens that are no padding. width: of the rows.
    """
    # Behind a text in reading direction there is nothing to hide from it; padding before it there is.
    padded = bool((lengths[reverse] < width).any())
    columns = prefix_lengths.new_tensor(range(width))
    return Mask(
        causal=True,
        reverse=reverse if bool(reverse.any()) else None,
        prefix_lengths=prefix_lengths,
        key_padding=columns < lengths.unsqueeze(1) if padded else None,
    )


def read(
    model: BERT, tokens: Tensor, positions: Tensor, segments: Tensor, cache: KeyValueCache, advance: int | None = None
) -> Tensor:
    """Return the last layer's states, float [batch, length, hidden], of tokens behind those in a cache; no dropout.

    Args:
        tokens, positions, segments: int64 [batch, length]. cache: gives the mask.
        advance: how many of the tokens stay in the cache; default: all.
    """
    x = model.embeddings(tokens, positions, segments)
    blocks: Any = model.blocks
    for block in blocks:
        x = block.attention_norm(x + block.attention(x, None, cache))
        x = block.feed_forward_norm(x + block.feed_forward(x))
    cache.advance(tokens.shape[1] if advance is None else advance)
    return x
