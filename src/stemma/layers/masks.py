"""What may attend to what: one small description, lowered to what the device computes best.

GPT, BERT, T5, UniLM, prefix LM, GLM, sliding windows and packing differ in this description and in nothing else here.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see: those that every part given here allows.

    A mask lives for one forward pass; what it was lowered to is kept in it and shared by all layers.

    Args:
        causal: a query sees no key after itself.
        prefix_lengths: int [batch]; the first so many keys are seen by all queries, `causal` notwithstanding.
        window: a query sees itself and the `window - 1` keys before it (and, if not causal, after it).
        document_ids: int [batch, keys]; a query sees the keys of its own document only.
        key_padding: bool [batch, keys], True where a key is real. A padding query sees itself, so that no row of the
            softmax is empty.
        query_positions: int [batch, queries] or [queries], index of each query among the keys; default: the last ones.
    """

    causal: bool = False
    prefix_lengths: Tensor | None = None
    window: int | None = None
    document_ids: Tensor | None = None
    key_padding: Tensor | None = None
    query_positions: Tensor | None = None
    _lowered: dict[object, "LoweredMask"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def lower(self, query: Tensor, key: Tensor, window: int | None = None, *, block: bool = False) -> "LoweredMask":
        """Return this mask, narrowed to a layer's own `window`, in a form that a kernel takes.

        Args:
            query: [batch, heads, queries, head_dim]. key: [batch, heads, keys, head_dim].
            block: prefer a block mask to a dense one (for FlexAttention).
        """
        windows = [size for size in (self.window, window) if size is not None]
        narrowest = min(windows) if windows else None
        if narrowest is not None and narrowest >= key.shape[-2]:
            narrowest = None
        cache_key = (narrowest, query.shape[-2], key.shape[-2], block)
        if cache_key not in self._lowered:
            self._lowered[cache_key] = self._lower(query, key, narrowest, block)
        return self._lowered[cache_key]

    def _lower(self, query: Tensor, key: Tensor, window: int | None, block: bool) -> "LoweredMask":
        queries, keys, device = query.shape[-2], key.shape[-2], query.device
        details = (self.prefix_lengths, window, self.document_ids, self.key_padding, self.query_positions)
        if all(detail is None for detail in details):
            if not self.causal:
                return LoweredMask()
            if queries == keys:
                return LoweredMask(is_causal=True)
        if block and queries == keys and self.query_positions is None:
            return LoweredMask(block=self._block(query.shape[0], queries, window, device))
        positions = self.query_positions
        if positions is None:
            positions = torch.arange(keys - queries, keys, device=device)
        row = torch.arange(query.shape[0], device=device).view(-1, 1, 1)
        positions = positions.expand(query.shape[0], queries).unsqueeze(-1)  # [batch, queries, 1]
        allowed = self._allowed(row, positions, torch.arange(keys, device=device), window)
        return LoweredMask(dense=allowed.expand(query.shape[0], queries, keys).unsqueeze(1))

    def _block(self, batch: int, length: int, window: int | None, device: torch.device) -> BlockMask:
        def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return self._allowed(row, query, key, window)

        return create_block_mask(rule, batch, None, length, length, device=device)

    def _allowed(self, row: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
        """Return bool, broadcast over the index tensors: may query `query` of batch row `row` see key `key`?"""
        allowed = key == key
        if self.causal:
            allowed = key <= query
        if self.prefix_lengths is not None:
            allowed = allowed | (key < self.prefix_lengths[row])
        if window is not None:
            allowed = allowed & (query - key < window)
            if not self.causal:
                allowed = allowed & (key - query < window)
        if self.document_ids is not None:
            allowed = allowed & (self.document_ids[row, query] == self.document_ids[row, key])
        if self.key_padding is not None:
            allowed = (allowed & self.key_padding[row, key]) | (query == key)
        return allowed


@dataclass(frozen=True)
class LoweredMask:
    """One of: nothing, the kernel's causal flag, a dense bool [batch, 1, queries, keys], a block mask."""

    is_causal: bool = False
    dense: Tensor | None = None
    block: BlockMask | None = None
