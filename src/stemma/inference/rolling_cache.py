"""The rolling buffer cache (Jiang et al. 2023, "Mistral 7B", section 2): a layer that sees W tokens keeps W keys.

The key of position i lies in slot i mod W of its layer and row, so that the next one that is written replaces just the
one that has left the window. Keys are kept as they were rotated, and attention does not care in which order it meets
them: a step reads the buffer as it lies. Only a piece of a prompt, whose tokens see different parts of the buffer,
needs the order back (see `Pieces`). A layer without window has a slot for every position, by the same rule.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stemma.layers.attention import BufferedCache
from stemma.layers.masks import Mask


class RollingCache(BufferedCache):
    """Keys and values of `rows` texts, each of a length of its own (see `layers.attention.KeyValueCache`).

    Use: forward passes with `pieces(rows, lengths)` for the prompts, in pieces of any size, then one forward pass with
    the cache itself for each further token of all rows. Memory: 2 * rows * heads * head_dim * the sum over the layers
    of min(window, capacity) numbers, however long the texts become.

    Args:
        heads, head_dim: of the keys. rows: most rows at a time.
        capacity: longest text if a layer has no window, or a longer one; else texts have no limit.
        windows: how many tokens each layer sees back, its own included; None: all.
    """

    def __init__(
        self,
        *,
        heads: int,
        head_dim: int,
        rows: int,
        capacity: int,
        windows: Sequence[int | None],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.windows, self.capacity = list(windows), capacity
        self.sizes = [self._size(window) for window in self.windows]
        self.limit = capacity if any(window is None or window > capacity for window in windows) else None
        # Zeros, because what a mask hides is still multiplied: a stray NaN in an empty slot would spread.
        self.keys = [torch.zeros(rows, heads, size, head_dim, dtype=dtype, device=device) for size in self.sizes]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self._slots = torch.arange(max(self.sizes), device=device)
        self._none = torch.tensor(-1, device=device)
        self.begin(rows)

    @classmethod
    def for_model(cls, model: Any, rows: int, capacity: int) -> "RollingCache":
        """Return a cache that fits a model with `config.layers`, `.key_value_heads`, `.head_size` and `.window(layer)`.

        For a bfloat16 model on a CPU it is float32, as `DenseCache` is.
        """
        config, weight = model.config, model.output_weight
        widen = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        return cls(
            heads=config.key_value_heads,
            head_dim=config.head_size,
            rows=rows,
            capacity=capacity,
            windows=[config.window(layer) for layer in range(config.layers)],
            dtype=torch.float32 if widen else weight.dtype,
            device=weight.device,
        )

    def begin(self, rows: int) -> None:
        """Forget everything; `rows` rows are in use, and empty."""
        self.shared = 0  # slots of a layer without window before this one are the same for all rows of a prompt
        self._set_lengths([0] * rows)

    @property
    def rows(self) -> int:
        """Number of rows in use."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in [*self.keys, *self.values])

    def starts_and_ends(self) -> tuple[list[int], list[int]]:
        """Return for each row the slot of its first token, and that of its next one if it had a slot for each."""
        return [0] * self.rows, self.lengths

    def pieces(self, rows: Sequence[int], lengths: Sequence[int]) -> "Pieces":
        """Return a view of the cache that takes the next lengths[i] tokens of row rows[i], packed one after another."""
        return Pieces(self, rows, lengths)

    def positions(self, length: int) -> Tensor:
        """Return int64 [1] (rows of equal length) or [rows, 1]: the positions of the next tokens."""
        if length != 1:
            raise ValueError(f"{length} tokens a row at once: a rolling cache reads several by `pieces`")
        return self._next if self._next.dim() == 2 else self._next.view(1)

    def mask(self, length: int, window: int | None = None) -> Mask | None:
        """Return which slots the next tokens see; None: all that `update` returns."""
        size = self._size(window)
        if size not in self._masks:
            filled = [min(count + 1, size) for count in self.lengths]
            mask = None
            if len(set(filled)) > 1:
                seen = self._slots[: max(filled)] < (self._next + 1).clamp_max(size)  # [rows, slots]
                mask = Mask(key_padding=seen, query_positions=self._none)
            self._masks[size] = mask
        return self._masks[size]

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write [rows, heads, 1, head_dim]; return views [rows, heads, slots, head_dim] of all that has been filled."""
        size = self.sizes[layer]
        filled = min(self._longest + 1, size)
        found = []
        for buffer, new in ((self.keys[layer], key), (self.values[layer], value)):
            used = buffer[: self.rows]
            if self._next.dim() == 1:
                used.narrow(2, self._longest % size, 1).copy_(new)
            else:
                used.scatter_(2, self._index(size, new.shape), new.to(buffer.dtype))
            found.append(used.narrow(2, 0, filled))
        return found[0], found[1]

    def advance(self, length: int) -> None:
        """Count the next token of each row as read."""
        self._set_lengths([count + length for count in self.lengths])

    def spread(self, copies: Sequence[int]) -> None:
        """Copy the first row of each group of `copies` rows to the others."""
        lengths, source = list(self.lengths), 0
        for count in copies:
            for buffer in (*self.keys, *self.values):
                used = slice(0, min(lengths[source], buffer.shape[2]))
                buffer[source + 1 : source + count, :, used] = buffer[source : source + 1, :, used]
            lengths[source : source + count] = [lengths[source]] * count
            source += count
        self.shared = min(lengths)
        self._set_lengths(lengths)

    def keep(self, order: Sequence[int]) -> None:
        """Make row order[i] row i and drop the rows not named; only rows that change place are copied.

        Args:
            order: distinct row numbers with order[i] >= i, as when holes are filled from the end.
        """
        for target, source in enumerate(order):
            if source < target:
                raise ValueError(f"row {source} cannot move up to {target}: it would already be overwritten")
            if source != target:
                for buffer in (*self.keys, *self.values):
                    used = slice(0, min(self.lengths[source], buffer.shape[2]))
                    buffer[target, :, used] = buffer[source, :, used]
        self._set_lengths([self.lengths[source] for source in order])

    def reorder(self, parents: Tensor) -> None:
        """Make row parents[i] row i, where both continue the same prompt: what they share is not copied.

        Args:
            parents: int64 [rows].
        """
        for buffer in (*self.keys, *self.values):
            stop = min(self._longest, buffer.shape[2])
            start = self.shared if self._longest <= buffer.shape[2] else 0
            generated = buffer[: self.rows, :, start:stop]
            generated.copy_(generated.index_select(0, parents))
        self._set_lengths([self.lengths[parent] for parent in parents.tolist()])

    def _size(self, window: int | None) -> int:
        return self.capacity if window is None else min(window, self.capacity)

    def _index(self, size: int, shape: torch.Size) -> Tensor:
        """The slots of the next tokens of rows of unequal length, int64 [rows, heads, 1, head_dim]."""
        if size not in self._indices:
            self._indices[size] = self._next.remainder(size).view(-1, 1, 1, 1)
        return self._indices[size].expand(shape)

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths, self._longest = lengths, max(lengths, default=0)
        if self.limit is not None and self._longest > self.limit:
            raise ValueError(f"a text of {self._longest} tokens in a cache for {self.limit}")
        device = self._slots.device
        ragged = len(set(lengths)) > 1
        # int64 [rows, 1], or [1] where all are alike: the positions of the next tokens.
        next_positions = [[count] for count in lengths] if ragged else [self._longest]
        self._next = torch.tensor(next_positions, device=device)
        self._masks: dict[int, Mask | None] = {}
        self._indices: dict[int, Tensor] = {}


class Pieces(BufferedCache):
    """The next tokens of some rows of a `RollingCache`, read in one forward pass as tokens [1, total] without padding.

    A piece is longer than a window, as long or shorter: its tokens attend to what the cache held of their row before,
    put into order, and to the piece itself. Only then is the piece written, of which a window keeps the last tokens.
    """

    def __init__(self, cache: RollingCache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        self.cache, self.rows, self.lengths = cache, list(rows), list(lengths)
        device = cache.keys[0].device
        self._counts = torch.tensor(self.lengths, device=device)
        self._before = torch.tensor([cache.lengths[row] for row in rows], device=device)
        self._text = torch.arange(len(self.rows), device=device).repeat_interleave(self._counts)
        self._order = torch.arange(len(self._text), device=device)
        first = self._counts.cumsum(0) - self._counts
        self._positions = self._order + (self._before - first)[self._text]
        self._masks: dict[int | None, Mask] = {}

    @property
    def last(self) -> Tensor:
        """int64 [rows]: where the last token of each piece stands in the packed text."""
        return self._counts.cumsum(0) - 1

    def positions(self, length: int) -> Tensor:
        """Return int64 [total]."""
        return self._positions

    def mask(self, length: int, window: int | None = None) -> Mask:
        """Return: causal, within the row, within the layer's window."""
        if window not in self._masks:
            cached = self._before if window is None else self._before.clamp_max(window - 1)
            keys = cached + self._counts  # of each row
            query_first, key_first = self._counts.cumsum(0) - self._counts, keys.cumsum(0) - keys
            places = self._order + (key_first + cached - query_first)[self._text]
            several = len(self.rows) > 1
            ids = torch.arange(len(self.rows), device=keys.device).repeat_interleave(keys) if several else None
            self._masks[window] = Mask(
                causal=True,
                window=window,
                document_ids=None if ids is None else ids.unsqueeze(0),
                query_positions=places,
            )
        return self._masks[window]

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write [1, heads, total, head_dim]; return [1, heads, keys, head_dim] of each row's cached and new tokens."""
        cache, window = self.cache, self.cache.windows[layer]
        found = []
        for buffer, new in ((cache.keys[layer], key), (cache.values[layer], value)):
            pieces = new[0].split(self.lengths, dim=1)
            parts = []
            for row, piece in zip(self.rows, pieces, strict=True):
                before = cache.lengths[row]
                cached = before if window is None else min(before, window - 1)
                parts += [*_in_order(buffer[row], before - cached, cached), piece.to(buffer.dtype)]
            empty = len(parts) == len(pieces)
            found.append(new if empty else torch.cat(parts, dim=1).unsqueeze(0))
            for row, piece in zip(self.rows, pieces, strict=True):
                _write(buffer[row], cache.lengths[row], piece)
        return found[0], found[1]

    def advance(self, length: int) -> None:
        """Count the pieces as read."""
        lengths = list(self.cache.lengths)
        for row, count in zip(self.rows, self.lengths, strict=True):
            lengths[row] += count
        self.cache._set_lengths(lengths)


def _in_order(buffer: Tensor, start: int, count: int) -> list[Tensor]:
    """Return views of [heads, slots, head_dim] that hold positions start ... start + count - 1: none, one or two."""
    size = buffer.shape[1]
    first = start % size
    before_the_end = min(count, size - first)
    views = [buffer[:, first : first + before_the_end], buffer[:, : count - before_the_end]]
    return [view for view in views if view.shape[1]]


def _write(buffer: Tensor, start: int, new: Tensor) -> None:
    """Write [heads, length, head_dim] of positions start, start + 1, ... to their slots; the last ones stay."""
    count = min(new.shape[1], buffer.shape[1])
    views = _in_order(buffer, start + new.shape[1] - count, count)
    for view, part in zip(views, new[:, -count:].split([view.shape[1] for view in views], dim=1), strict=True):
        view.copy_(part)
