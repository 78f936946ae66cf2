"""Attention on a CPU, cut into tiles of queries with just the keys that a window and a document leave them.

The flash kernel knows neither windows nor documents: a dense mask makes it compute every pair of tokens of a row and
throw most of them away. Called once a tile it computes the pairs that count: packed documents are 1.5 to 5 times faster
in rows of 512 and more tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stemma.layers.segments import Segment

# Queries of a tile: a tile looks at window + queries - 1 keys, of which each query needs `window`.
LEAST_QUERIES, MOST_QUERIES = 64, 256


class Tile(NamedTuple):
    """Some queries and the keys that any of them sees.

    Args:
        rows, queries, keys: of the tensors [rows, heads, length, head_dim].
        ahead: how many of the keys come before the first query's own.
        window: a query sees so many keys, its own included; None: no key of the tile is too old.
        causal: False: a query sees all keys of the tile.
    """

    rows: slice
    queries: slice
    keys: slice
    ahead: int = 0
    window: int | None = None
    causal: bool = True


class Stretch(NamedTuple):
    """Keys that follow one another in a text, the last of which are the queries' own.

    Args:
        rows: of the batch. keys: where they stand. queries: where the queries stand among all queries.
    """

    rows: slice
    keys: slice
    queries: slice


def stretches_of(segments: Sequence[Segment]) -> list[Stretch]:
    """Return the stretches of whole documents: every key has its query."""
    return [Stretch(slice(row, row + 1), slice(start, stop), slice(start, stop)) for row, start, stop in segments]


def document_tiles(segments: Sequence[Segment], causal: bool) -> list[Tile]:
    """Return a tile for each document."""
    return [Tile(rows, here, here, causal=causal) for rows, here, _ in stretches_of(segments)]


def tiles_of(stretches: Sequence[Stretch], window: int | None) -> list[Tile]:
    """Cut causal attention within each stretch into tiles, each of work proportional to the window."""
    tiles = []
    most = MOST_QUERIES if window is None else max(LEAST_QUERIES, min(MOST_QUERIES, window // 4))
    for rows, keys, queries in stretches:
        before = (keys.stop - keys.start) - (queries.stop - queries.start)  # keys that come before all queries
        start = queries.start
        while start < queries.stop:
            place = before + start - queries.start  # of the first query among the keys of the stretch
            size = most
            if place == 0:  # the flash kernel's causal flag needs no mask, and skips what lies ahead
                size = queries.stop - queries.start if window is None else max(window, most)
            stop = min(start + size, queries.stop)
            oldest = 0 if window is None else max(0, place - window + 1)
            end = place + stop - start
            cut = window if window is not None and end - oldest > window else None
            here = slice(keys.start + oldest, keys.start + end)
            tiles.append(Tile(rows, slice(start, stop), here, place - oldest, cut))
            start = stop
    return tiles


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile], scale: float | None) -> Tensor:
    """Return attention of each tile's queries to its keys; every query must be in one tile. First derivatives only.

    Args:
        query: float [batch, heads, queries, head_dim]. key, value: float [batch, key heads, keys, head_dim]; where
            heads are more than key heads, consecutive ones share a key head.
    """
    return _TiledAttention.apply(query, key, value, tiles, scale)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: list[Tile], scale: float | None) -> Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        normalizers = []
        masks = _TileMasks(query)
        for tile in tiles:
            queries, keys = _parts(tile)
            mask = masks.of(tile)
            output[queries], normalizer = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[queries], key[keys], value[keys], 0.0, mask is None and tile.causal, attn_mask=mask, scale=scale
            )
            normalizers.append(normalizer)
        ctx.save_for_backward(query, key, value, output, *normalizers)
        ctx.tiles, ctx.scale = tiles, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, *normalizers = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        masks = _TileMasks(query)
        for tile, normalizer in zip(ctx.tiles, normalizers, strict=True):
            queries, keys = _parts(tile)
            mask = masks.of(tile)
            pieces = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[queries],
                query[queries],
                key[keys],
                value[keys],
                output[queries],
                normalizer,
                0.0,
                mask is None and tile.causal,
                attn_mask=mask,
                scale=ctx.scale,
            )
            grad_query[queries] = pieces[0]
            grad_key[keys] += pieces[1]
            grad_value[keys] += pieces[2]
        return grad_query, grad_key, grad_value, None, None


class _TileMasks:
    """What the flash kernel adds to the scores of a tile; the last one is kept, as inner tiles are all alike."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._kind: tuple[int, int, int | None] | None = None
        self._mask: Tensor | None = None

    def of(self, tile: Tile) -> Tensor | None:
        """Return float [queries, keys], or None where all is seen or the kernel's causal flag says it."""
        queries, keys = tile.queries.stop - tile.queries.start, tile.keys.stop - tile.keys.start
        if tile.ahead == 0 and tile.window is None:
            return None
        kind = (queries, tile.ahead, tile.window)
        if kind != self._kind:
            allowed = self._like.new_ones(queries, keys, dtype=torch.bool).tril_(tile.ahead)
            if tile.window is not None:
                allowed = allowed.triu_(tile.ahead - tile.window + 1)
            mask = self._like.new_zeros(queries, keys).masked_fill_(~allowed, -torch.inf)
            self._kind, self._mask = kind, mask
        return self._mask


def _parts(tile: Tile) -> tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]:
    return (tile.rows, slice(None), tile.queries), (tile.rows, slice(None), tile.keys)
