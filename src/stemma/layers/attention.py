"""Scaled dot-product attention and the multi-head module round it (Vaswani et al. 2017, section 3.2)."""

from abc import ABC, abstractmethod
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.layers.biased_attention import biased_attention
from stemma.layers.linear import Linear
from stemma.layers.masks import Mask
from stemma.layers.tiled_attention import document_tiles, tiled_attention


class KeyValueCache(Protocol):
    """Keys and values of the tokens that a model has read, written in place."""

    def positions(self, length: int) -> Tensor:
        """Return int64 [batch, length] or [length]: the positions that the next `length` tokens will have."""
        ...

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None = None,
        scale: float | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Write keys and values of the next tokens, and return what their queries see (shapes as in `attention`)."""
        ...

    def advance(self, length: int) -> None:
        """Count the next `length` tokens as read, after the last layer."""
        ...


class BufferedCache(ABC):
    """A cache with one buffer a layer, which is attended to as a whole."""

    @abstractmethod
    def mask(self, length: int, window: int | None = None) -> Mask | None:
        """Return what the next `length` tokens may see of the cached and their own keys (None: all of them)."""

    @abstractmethod
    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write [batch, heads, length, head_dim] of the next tokens; return views of all [batch, heads, total, ...]."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None = None,
        scale: float | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Write keys and values of the next tokens, and return what their queries see."""
        mask = self.mask(query.shape[2], window)
        key, value = self.update(layer, key, value)
        query = query.to(key.dtype)  # a cache may be kept in a higher precision than the model's
        return attention(query, key, value, mask, scale=scale, bias=bias)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None = None,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return softmax(query key^T * scale + bias) value over the keys that `mask` allows.

    Args:
        query: float [batch, heads, queries, head_dim]. key, value: float [batch, key heads, keys, head_dim]; if there
            are more heads than key heads, consecutive ones share a key head (Ainslie et al. 2023, "GQA", section 2.2).
        mask: what may be seen (None: everything). window: the layer's own sliding window, on top of the mask's.
        dropout: probability of dropping an attention weight. scale: default 1 / sqrt(head_dim).
        bias: float [1, heads, queries, keys], added to the scores of all rows (relative positions of T5); None: 0.
    Returns:
        float [batch, heads, queries, head_dim].
    """
    if bias is not None:
        return biased_attention(query, key, value, bias, mask, window=window, dropout=dropout, scale=scale)
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.shape[2] == 1:
        return _one_query(query, key, value, mask, window, dropout, scale)
    if mask is None and window is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scale, enable_gqa=grouped)
    lowered = (mask or Mask()).lower(query, key, window, dropout=dropout, tiled=True)
    if lowered.block is not None:
        return _flex_attention()(query, key, value, block_mask=lowered.block, scale=scale, enable_gqa=grouped)
    if lowered.tiles is not None:
        return tiled_attention(query, key, value, lowered.tiles, scale)
    if lowered.segments is not None:
        return tiled_attention(query, key, value, document_tiles(lowered.segments, lowered.is_causal), scale)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=lowered.dense,
        dropout_p=dropout,
        is_causal=lowered.is_causal,
        scale=scale,
        enable_gqa=grouped,
    )


def _one_query(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None,
    window: int | None,
    dropout: float,
    scale: float | None,
) -> Tensor:
    """Attention of a single token: the heads that share keys become the queries of one head, so keys are read once."""
    dense = None if mask is None and window is None else (mask or Mask()).lower(query, key, window, plain=True).dense
    groups = query.squeeze(2).unflatten(1, (key.shape[1], -1))  # [batch, key heads, group, head_dim]
    mixed = F.scaled_dot_product_attention(groups, key, value, attn_mask=dense, dropout_p=dropout, scale=scale)
    return mixed.flatten(1, 2).unsqueeze(2)


@cache
def _flex_attention() -> Any:
    """FlexAttention is fast only when compiled; once, on first use."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


class MultiHeadAttention(nn.Module):
    """Self-attention with separate query, key, value and output maps.

    Args:
        hidden: width; heads: number of heads; layer: index in the stack, for the cache.
        bias: whether the four maps have one. dropout: of the attention weights. window: sliding window, None for all.
        head_dim: width of a head, default hidden / heads. scale: of the scores, default 1 / sqrt(head_dim).
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        *,
        layer: int,
        bias: bool = True,
        dropout: float = 0.0,
        window: int | None = None,
        head_dim: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.layer, self.dropout, self.window, self.scale = heads, layer, dropout, window, scale
        inner = hidden if head_dim is None else heads * head_dim
        self.query = Linear(hidden, inner, bias=bias)
        self.key = Linear(hidden, inner, bias=bias)
        self.value = Linear(hidden, inner, bias=bias)
        self.output = Linear(inner, hidden, bias=bias)

    def forward(
        self,
        x: Tensor,
        mask: Mask | None = None,
        cache: KeyValueCache | None = None,
        bias: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Map float [batch, length, hidden] to the same shape; `bias` of the scores: see `attention`.

        Args:
            places: int64 [places], counted through all rows: the result is that of these, float [places, hidden].
        """
        query, key, value = self.project(x)
        if cache is not None:
            mixed = cache.attend(self.layer, query, key, value, window=self.window, scale=self.scale, bias=bias)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = attention(query, key, value, mask, window=self.window, dropout=dropout, scale=self.scale, bias=bias)
        mixed = mixed.transpose(1, 2).flatten(2).to(x.dtype)
        return self.output(mixed if places is None else mixed.flatten(0, 1)[places])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, float [batch, heads, length, head_dim] each, of [batch, length, hidden]."""
        return self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, length, head_dim]
