"""Rows of different lengths one step after the other, without padding: what recurrent layers compute on."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedRows:
    """Where each step of each row stands.

    Args:
        order: int64 [batch]: the rows by falling length. sizes: how many rows have a first step, a second, ...
        places: int64 [total]: where in the padded rows, flattened [batch * length], the packed ones stand: the first
            step of each row in that order, then the second, ...
    """

    order: Tensor
    sizes: tuple[int, ...]
    places: Tensor

    @classmethod
    def of(cls, lengths: Tensor, length: int) -> "PackedRows":
        """Return the packing of rows padded to `length`; `lengths`: int64 [batch], each at least 1."""
        order = torch.argsort(lengths, descending=True, stable=True)
        real = torch.arange(length, device=lengths.device).unsqueeze(1) < lengths[order]  # [length, batch]
        steps, rows = real.nonzero(as_tuple=True)
        sizes = tuple(size for size in real.sum(1).tolist() if size)
        return cls(order, sizes, order[rows] * length + steps)

    def pack(self, padded: Tensor) -> Tensor:
        """Map float [directions, batch, length, width] to [directions, total, width]."""
        return padded.flatten(1, 2)[:, self.places]

    def pad(self, packed: Tensor, like: Tensor) -> Tensor:
        """Undo `pack`, with zeros as padding; `like` has the number of rows and steps."""
        directions, batch, length, _ = like.shape
        flat = packed.new_zeros(directions, batch * length, packed.shape[-1])
        return flat.index_copy(1, self.places, packed).unflatten(1, (batch, length))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first packed place of each step."""
        return tuple(accumulate((0, *self.sizes[:-1])))

    @cached_property
    def previous(self) -> Tensor:
        """int64 [total]: the place of each row's step before, where its state before the first one stands in front."""
        batch = len(self.order)
        before = (0, *(batch + start for start in self.starts))
        parts = [torch.arange(start, start + size) for start, size in zip(before, self.sizes, strict=False)]
        return torch.cat(parts).to(self.places.device)

    @cached_property
    def last(self) -> Tensor:
        """int64 [batch]: the last packed place of each row, the rows as they were before packing."""
        last = torch.empty(len(self.order), dtype=torch.long, device=self.places.device)
        for start, size in zip(self.starts, self.sizes, strict=True):
            last[self.order[:size]] = torch.arange(start, start + size, device=last.device)
        return last
