"""The key-value cache: one buffer a layer, allocated once, written in place.

Rows are aligned at their ends: the next token of every row goes to the same slot, and shorter rows leave their first
slots empty. A decode step then writes one slice for all rows, reads one view, and needs a mask only while rows differ
in length; a banded layer reads the last slots of that view.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stemma.layers.attention import BufferedCache
from stemma.layers.masks import Mask


class DenseCache(BufferedCache):
    """Keys and values of `rows` texts of at most `capacity` tokens (see `layers.attention.KeyValueCache`).

    Use: `begin` with the lengths of the prompts, a forward pass with `prompts(rows)` for each piece of them, then one
    forward pass with the cache itself for each token. Memory: 2 * layers * rows * heads * capacity * head_dim numbers.

    Args:
        layers, heads, head_dim: the model's; heads: of the keys. rows: most rows at a time. capacity: slots of a row.
        windows: how many tokens each layer sees back, its own included; None (of a layer, or altogether): all.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        rows: int,
        capacity: int,
        windows: Sequence[int | None] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (layers, rows, heads, capacity, head_dim)
        # Zeros, because what a mask hides is still multiplied: a stray NaN in an empty slot would spread.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.windows = list(windows) if windows is not None else [None] * layers
        self._slots = torch.arange(capacity, device=device)
        self.begin([0] * rows)

    @classmethod
    def for_model(cls, model: Any, rows: int, capacity: int) -> "DenseCache":
        """Return a cache that fits a model with `config.layers`, `.heads`, `.hidden` and `.window(layer)`.

        For a bfloat16 model on a CPU it is float32: one query at a time, PyTorch's bfloat16 attention there takes six
        times as long, for half the memory.
        """
        config, weight = model.config, model.output_weight
        widen = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        return cls(
            layers=config.layers,
            heads=config.heads,
            head_dim=config.hidden // config.heads,
            rows=rows,
            capacity=capacity,
            windows=[config.window(layer) for layer in range(config.layers)],
            dtype=torch.float32 if widen else weight.dtype,
            device=weight.device,
        )

    def begin(self, lengths: Sequence[int]) -> None:
        """Forget everything; row i is to hold a prompt of lengths[i] tokens."""
        self.end = max(lengths)
        self.shared = self.end  # what lies before this slot is the same for all rows of a prompt
        self._set_starts([self.end - length for length in lengths])

    @property
    def rows(self) -> int:
        """Number of rows in use."""
        return len(self.starts)

    def starts_and_ends(self) -> tuple[list[int], list[int]]:
        """Return for each row the slot of its first token, and that of its next one."""
        return self.starts, [self.end] * self.rows

    def prompts(self, rows: Sequence[int]) -> "PackedPrompts":
        """Return a view of the cache that takes the prompts of some rows packed one behind the other."""
        return PackedPrompts(self, rows)

    def positions(self, length: int) -> Tensor:
        """Return int64 [length] (rows of equal length) or [rows, length]: the positions of the next tokens."""
        if self._start_column is None:
            return self._slots.narrow(0, self.end - self.starts[0], length)
        return self._slots.narrow(0, self.end, length) - self._start_column

    def mask(self, length: int, window: int | None = None) -> Mask | None:
        """Return what the next tokens may see of the keys that `update` returns; None: all of them."""
        if (length, window) not in self._masks:
            self._masks[length, window] = self._mask(length, window)
        return self._masks[length, window]

    def _mask(self, length: int, window: int | None) -> Mask | None:
        first, stop = self._first(length, window), self.end + length
        padding = None
        if self._start_column is not None and first < max(self.starts):
            padding = self._slots[first:stop] >= self._start_column  # [rows, keys]
        if length == 1:
            return None if padding is None else Mask(key_padding=padding)
        queries = None if window is None and padding is None else self._slots[stop - first - length : stop - first]
        return Mask(causal=True, window=window, key_padding=padding, query_positions=queries)

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write [rows, heads, length, head_dim]; return views [rows, heads, keys, head_dim] of all that can be seen."""
        length = key.shape[2]
        keys, values = self._row_keys[layer], self._row_values[layer]
        keys.narrow(2, self.end, length).copy_(key)
        values.narrow(2, self.end, length).copy_(value)
        first = self._first(length, self.windows[layer])
        count = self.end + length - first
        return keys.narrow(2, first, count), values.narrow(2, first, count)

    def advance(self, length: int) -> None:
        """Count the next `length` tokens as read."""
        self.end += length
        self._masks.clear()

    def spread(self, copies: Sequence[int]) -> None:
        """Copy the prompt of each group of `copies` rows from its first row to the others."""
        source = 0
        for count in copies:
            used = slice(self.starts[source], self.end)
            for buffer in (self.keys, self.values):
                buffer[:, source + 1 : source + count, :, used] = buffer[:, source : source + 1, :, used]
            source += count

    def keep(self, order: Sequence[int]) -> None:
        """Make row order[i] row i and drop the rows not named; only rows that change place are copied.

        Args:
            order: distinct row numbers with order[i] >= i, as when holes are filled from the end.
        """
        for target, source in enumerate(order):
            if source < target:
                raise ValueError(f"row {source} cannot move up to {target}: it would already be overwritten")
            if source != target:
                used = slice(self.starts[source], self.end)
                for buffer in (self.keys, self.values):
                    buffer[:, target, :, used] = buffer[:, source, :, used]
        # Slots before a moved row's start keep old numbers: finite, and hidden by the mask.
        self._set_starts([self.starts[source] for source in order])

    def reorder(self, parents: Tensor) -> None:
        """Make row parents[i] row i, where both continue the same prompt: the prompt itself is not copied.

        Args:
            parents: int64 [rows].
        """
        for buffer in (self.keys, self.values):
            generated = buffer[:, : self.rows, :, self.shared : self.end]
            generated.copy_(generated.index_select(1, parents))

    def _first(self, length: int, window: int | None) -> int:
        """The first slot that any of the next `length` tokens can see."""
        return self._begin if window is None else max(self._begin, self.end + length - (window + length - 1))

    def _set_starts(self, starts: list[int]) -> None:
        self.starts, self._begin = starts, min(starts, default=0)
        ragged = len(set(starts)) > 1
        self._start_column = torch.tensor(starts, device=self._slots.device).unsqueeze(1) if ragged else None
        self._row_keys = [layer[: len(starts)] for layer in self.keys]
        self._row_values = [layer[: len(starts)] for layer in self.values]
        self._masks: dict[tuple[int, int | None], Mask | None] = {}


class PackedPrompts(BufferedCache):
    """The prompts of some rows of a `DenseCache`, read in one forward pass as tokens [1, total] without padding."""

    def __init__(self, cache: DenseCache, rows: Sequence[int]) -> None:
        self.cache = cache
        self.lengths = [cache.end - cache.starts[row] for row in rows]
        device = cache.keys.device
        lengths = torch.tensor(self.lengths, device=device)
        row = torch.tensor(rows, device=device).repeat_interleave(lengths)
        text = torch.arange(len(rows), device=device).repeat_interleave(lengths)
        self._order = torch.arange(len(text), device=device)
        self._positions = self._order - (lengths.cumsum(0) - lengths)[text]
        self._where = (row, self._positions + torch.tensor(cache.starts, device=device)[row])
        self._document_ids = text.unsqueeze(0) if len(rows) > 1 else None
        self._masks: dict[int | None, Mask] = {}

    @property
    def last(self) -> Tensor:
        """int64 [rows]: where the last token of each prompt stands in the packed text."""
        return torch.tensor(self.lengths, device=self._order.device).cumsum(0) - 1

    def positions(self, length: int) -> Tensor:
        """Return int64 [total]."""
        return self._positions

    def mask(self, length: int, window: int | None = None) -> Mask:
        """Return: causal, within the prompt, within the layer's window."""
        if window not in self._masks:
            # Naming the queries' places keeps CUDA from compiling a block mask anew for every length of prompt.
            plain = window is None and self._document_ids is None
            queries = None if plain or self._order.device.type == "cpu" else self._order
            mask = Mask(causal=True, window=window, document_ids=self._document_ids, query_positions=queries)
            self._masks[window] = mask
        return self._masks[window]

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write [1, heads, total, head_dim] to the rows' slots; return key and value."""
        row, slot = self._where
        for buffer, new in ((self.cache.keys, key), (self.cache.values, value)):
            buffer[layer][row, :, slot] = new[0].transpose(0, 1).to(buffer.dtype)
        return key, value

    def advance(self, length: int) -> None:
        """Nothing to count: `DenseCache.begin` already did."""
