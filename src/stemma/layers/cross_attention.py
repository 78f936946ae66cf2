"""Attention of a decoder to what an encoder has read (Vaswani et al. 2017, section 3.2.3)."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from stemma.layers.attention import KeyValueCache, attention
from stemma.layers.linear import Linear
from stemma.layers.masks import Mask


class CrossAttention(nn.Module):
    """Multi-head attention whose queries come from a decoder, keys and values from an encoder.

    Args:
        hidden: width; heads: number of heads; bias: whether the four maps have one.
        dropout: of the attention weights. head_dim: width of a head, default hidden / heads.
        scale: of the scores, default 1 / sqrt(head_dim).
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        head_dim: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.scale = heads, dropout, scale
        inner = hidden if head_dim is None else heads * head_dim
        self.query = Linear(hidden, inner, bias=bias)
        self.key = Linear(hidden, inner, bias=bias)
        self.value = Linear(hidden, inner, bias=bias)
        self.output = Linear(inner, hidden, bias=bias)

    def project(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return key and value, float [batch, heads, source, head_dim] each, of states [batch, source, hidden]."""
        return self._split(self.key(encoded)), self._split(self.value(encoded))

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Mask | None = None) -> Tensor:
        """Map float [batch, length, hidden] to the same shape.

        Args:
            key, value: what `project` gave. Where they have fewer rows than `x`, every one of theirs serves equally
                many rows of `x`, one behind the other: several continuations of one source.
            mask: of the keys, see `source_mask`; its rows are those of the keys.
        """
        rows, length = x.shape[:2]
        query = self._split(self.query(x))
        shared = rows // len(key)
        if shared > 1:  # the copies become further queries of the same source
            query = query.unflatten(0, (len(key), shared)).transpose(1, 2).flatten(2, 3)
        dropout = self.dropout if self.training else 0.0
        query = query.to(key.dtype)  # a cache may be kept in a higher precision than the model's
        mixed = attention(query, key, value, mask, dropout=dropout, scale=self.scale)
        if shared > 1:
            mixed = mixed.unflatten(2, (shared, length)).transpose(1, 2).flatten(0, 1)
        return self.output(mixed.transpose(1, 2).flatten(2).to(x.dtype))

    def forward_cached(self, x: Tensor, attend: Callable[[Tensor, float | None], Tensor]) -> Tensor:
        """Map float [batch, length, hidden] to the same shape by sources that lie elsewhere.

        Args:
            attend: maps queries, float [batch, heads, length, head_dim], and the scale of their scores (None: the
                default) to what they see.
        """
        mixed = attend(self._split(self.query(x)), self.scale)
        return self.output(mixed.transpose(1, 2).flatten(2).to(x.dtype))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, length, head_dim]


class SourceCache(KeyValueCache, Protocol):
    """A cache of a decoder's own keys and values that also holds those of the sources, computed once."""

    def cross_attend(self, layer: int, attention: CrossAttention, x: Tensor) -> Tensor:
        """Return what a layer's cross-attention, as `CrossAttention` does it, makes of [batch, length, hidden]."""
        ...


def source_mask(key_padding: Tensor | None) -> Mask | None:
    """Return what a decoder may see of its sources, given bool [batch, source], True where a source token is real."""
    if key_padding is None:
        return None
    # No query is itself one of the keys, so no place in the source is its own.
    return Mask(key_padding=key_padding, query_positions=torch.full((1,), -1, device=key_padding.device))
