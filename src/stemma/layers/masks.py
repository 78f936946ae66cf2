"""What may attend to what: one small description, lowered to what the device computes best.

GPT, BERT, T5, UniLM, prefix LM, GLM, sliding windows and packing differ in this description and in nothing else here.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from stemma.layers.segments import Segment, document_segments
from stemma.layers.tiled_attention import Stretch, Tile, stretches_of, tiles_of

# A kernel call for each document pays from about so many pairs of tokens a document on (all pairs of the packed rows,
# which one call with a dense mask computes, divided by the number of documents).
LEAST_PAIRS = 8192


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see: those that every part given here allows.

    A mask lives for one forward pass; what it was lowered to is kept in it and shared by all layers.

    Args:
        causal: a query sees no key after itself.
        reverse: bool [batch]; in these rows `causal` runs from right to left: a query sees no key before itself.
        prefix_lengths: int [batch]; the first so many keys are seen by all queries, `causal` notwithstanding.
        window: a query sees itself and the `window - 1` keys before it (and, if not causal, after it).
        document_ids: int [batch, keys]; a query sees the keys of its own document only.
        key_padding: bool [batch, keys], True where a key is real. A padding query sees itself, so that no row of the
            softmax is empty.
        query_positions: int [batch, queries] or [queries], index of each query among the keys; default: the last ones.
            -1: it is none of the keys (cross-attention).
    """

    causal: bool = False
    reverse: Tensor | None = None
    prefix_lengths: Tensor | None = None
    window: int | None = None
    document_ids: Tensor | None = None
    key_padding: Tensor | None = None
    query_positions: Tensor | None = None
    _lowered: dict[object, "LoweredMask"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def lower(
        self,
        query: Tensor,
        key: Tensor,
        window: int | None = None,
        *,
        dropout: float = 0.0,
        plain: bool = False,
        tiled: bool = False,
    ) -> "LoweredMask":
        """Return this mask, narrowed to a layer's own `window`, in the form that is cheapest on the device.

        Args:
            query: [batch, heads, queries, head_dim]. key: [batch, heads, keys, head_dim].
            dropout: of the attention weights; only the dense form can have it.
            plain: return nothing but the causal flag or the dense form. tiled: tiles are welcome too.
        """
        windows = [size for size in (self.window, window) if size is not None]
        narrowest = min(windows) if windows else None
        if narrowest is not None and narrowest >= key.shape[-2]:
            narrowest = None
        plain = plain or dropout > 0
        cache_key = (narrowest, query.shape[-2], key.shape[-2], plain, tiled)
        if cache_key not in self._lowered:
            tiles = self._tiles(query, key, narrowest) if tiled and not plain else None
            self._lowered[cache_key] = tiles or self._lower(query, key, narrowest, plain)
        return self._lowered[cache_key]

    def _lower(self, query: Tensor, key: Tensor, window: int | None, plain: bool) -> "LoweredMask":
        queries, keys, device = query.shape[-2], key.shape[-2], query.device
        square = queries == keys and self.query_positions is None
        others = (self.reverse, self.prefix_lengths, window, self.key_padding)
        if square and all(part is None for part in others):
            if self.document_ids is None:
                return LoweredMask(is_causal=self.causal)
            if device.type == "cpu" and not plain and not torch.compiler.is_compiling():
                segments = document_segments(self.document_ids)
                if self.document_ids.numel() * keys >= LEAST_PAIRS * len(segments):
                    return LoweredMask(segments=segments, is_causal=self.causal)
        if square and device.type == "cuda" and not plain:
            return LoweredMask(block=self._block(query.shape[0], queries, window, device))
        return LoweredMask(dense=self._dense(query.shape[0], queries, keys, window, device))

    def _tiles(self, query: Tensor, key: Tensor, window: int | None) -> "LoweredMask | None":
        """Return the tiles of causal attention on a CPU where they are fewer pairs of tokens than a dense mask."""
        batch, queries, keys = query.shape[0], query.shape[-2], key.shape[-2]
        others = (self.reverse, self.prefix_lengths, self.key_padding)
        if query.device.type != "cpu" or not self.causal or any(part is not None for part in others):
            return None
        if (window is None and queries == keys) or queries == 1 or torch.compiler.is_compiling():
            return None
        stretches = self._stretches(batch, queries, keys)
        if stretches is None:
            return None
        tiles = tiles_of(stretches, window)
        return LoweredMask(tiles=tiles) if batch * queries * keys >= LEAST_PAIRS * len(tiles) else None

    def _stretches(self, batch: int, queries: int, keys: int) -> list[Stretch] | None:
        """Return the documents (or the rows) with their queries, if these are the last ones of each; else None."""
        if self.document_ids is None:
            last = torch.arange(keys - queries, keys, device="cpu")
            if self.query_positions is not None and not torch.equal(self.query_positions, last):
                return None
            return [Stretch(slice(0, batch), slice(0, keys), slice(0, queries))]
        segments = document_segments(self.document_ids)
        if self.query_positions is None:
            return stretches_of(segments) if queries == keys else None
        if batch != 1 or self.query_positions.dim() != 1:
            return None
        stops = torch.tensor([stop for _, _, stop in segments])
        ends = torch.searchsorted(self.query_positions, stops).tolist()
        stretches: list[Stretch] = []
        places: list[Tensor] = []
        begin = 0
        for (_, start, stop), end in zip(segments, ends, strict=True):
            stretches.append(Stretch(slice(0, 1), slice(start, stop), slice(begin, end)))
            places.append(torch.arange(stop - (end - begin), stop))
            begin = end
        return stretches if torch.equal(self.query_positions, torch.cat(places)) else None

    def _dense(self, batch: int, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
        positions = self.query_positions
        if positions is None:
            positions = torch.arange(keys - queries, keys, device=device)
        positions = positions.expand(batch, queries).unsqueeze(-1)  # [batch, queries, 1]
        row = torch.arange(batch, device=device).view(-1, 1, 1)
        allowed = self._allowed(row, positions, torch.arange(keys, device=device), window)
        return allowed.expand(batch, queries, keys).unsqueeze(1)

    def _block(self, batch: int, length: int, window: int | None, device: torch.device) -> BlockMask:
        def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return self._allowed(row, query, key, window)

        return create_block_mask(rule, batch, None, length, length, device=device)

    def _allowed(self, row: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
        """Return bool, broadcast over the index tensors: may query `query` of batch row `row` see key `key`?"""
        allowed = key == key
        if self.causal:
            allowed = key <= query
            if self.reverse is not None:
                allowed = torch.where(self.reverse[row], key >= query, allowed)
        if self.prefix_lengths is not None:
            allowed = allowed | (key < self.prefix_lengths[row])
        if window is not None:
            allowed = allowed & (query - key < window)
            if not self.causal or self.reverse is not None:
                allowed = allowed & (key - query < window)
        if self.document_ids is not None:
            allowed = allowed & (self.document_ids[row, query] == self.document_ids[row, key])
        if self.key_padding is not None:
            allowed = (allowed & self.key_padding[row, key]) | (query == key)
        return allowed


@dataclass(frozen=True)
class LoweredMask:
    """One of: nothing, the kernel's causal flag, a dense bool [batch, 1, queries, keys], FlexAttention's block mask
    (CUDA), where each document stands in the rows (CPU; the causal flag then holds inside each), or tiles (CPU)."""

    is_causal: bool = False
    dense: Tensor | None = None
    block: BlockMask | None = None
    segments: list[Segment] | None = None
    tiles: list[Tile] | None = None
