"""A key-value cache in blocks, for texts that come and go (Kwon et al. 2023, "PagedAttention", section 4).

A text holds the numbers of its blocks, and texts that begin alike share theirs. Layers with the same sliding window
form a group with blocks of its own; what has left the window is given back, so that a windowed layer holds its window
and no more, however long the text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from mmap import ACCESS_COPY, mmap
from typing import Any

import numpy as np
import torch

from stemma.inference.blocks import BlockPool, Content, contents

BLOCK = 16  # tokens
MOST_TEXTS = 256  # of full length: a small model needs no more


@dataclass
class Group:
    """Layers that see equally far back.

    Args:
        window: tokens that they see, their own included; None: all. layers: their numbers in the stack.
        keys, values: float [layers, blocks, heads, block, head_dim].
    """

    window: int | None
    layers: list[int]
    pool: BlockPool
    keys: torch.Tensor
    values: torch.Tensor


@dataclass
class Pages:
    """Where a text stands in the cache.

    Args:
        tables: for each group, int32, the block of each `block` tokens in turn; what left the window is a stale number.
        first: for each group, how many blocks at the beginning were given back. counts: how many there are, those
            included. length: tokens whose keys and values are written. named: full blocks whose content is known.
    """

    tables: list[np.ndarray]
    first: list[int]
    counts: list[int]
    length: int = 0
    named: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.chain: list[bytes] = []


class PagedCache:
    """Keys and values of any number of texts in a fixed amount of memory.

    Args:
        windows: of each layer. heads, head_dim: of the keys. memory: bytes at most, shared out so that each group can
            hold texts of as many tokens; of that no more is taken than `MOST_TEXTS` texts need. context: longest text.
            block: tokens of a block.
    """

    def __init__(
        self,
        *,
        windows: Sequence[int | None],
        heads: int,
        head_dim: int,
        memory: int,
        context: int,
        block: int = BLOCK,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.block = block
        kinds = list(dict.fromkeys(windows))
        block_bytes = 2 * heads * block * head_dim * dtype.itemsize
        members = [[layer for layer, window in enumerate(windows) if window == kind] for kind in kinds]
        most = [_most_blocks(kind, context, block) for kind in kinds]  # of one text
        # As many texts of full length as fit, each with what it needs of every group; parts of one more are of use too.
        text = sum(len(layers) * blocks for layers, blocks in zip(members, most, strict=True)) * block_bytes
        share = max(min(memory / text, MOST_TEXTS), 1.0)
        self.groups = []
        for kind, layers, blocks in zip(kinds, members, most, strict=True):
            count = max(int(share * blocks), blocks + 1)
            shape = (len(layers), count, heads, block, head_dim)
            # Zeros, because what a mask hides is still multiplied: a stray NaN in an empty slot would spread.
            keys, values = (_zeros(shape, dtype, torch.device(device)) for _ in range(2))
            self.groups.append(Group(kind, layers, BlockPool(count), keys, values))
        self.place = {
            layer: (number, index)
            for number, group in enumerate(self.groups)
            for index, layer in enumerate(group.layers)
        }

    @classmethod
    def for_model(cls, model: Any, memory: int, *, context: int | None = None, block: int = BLOCK) -> "PagedCache":
        """Return a cache that fits a model with `config.layers`, `.heads`, `.hidden` and `.window(layer)`.

        Float32 for a bfloat16 model on a CPU, whose attention is faster so.
        """
        config, weight = model.config, model.output_weight
        widen = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        return cls(
            windows=[config.window(layer) for layer in range(config.layers)],
            heads=getattr(config, "key_value_heads", config.heads),
            head_dim=getattr(config, "head_size", config.hidden // config.heads),
            memory=memory,
            context=context or config.context,
            block=block,
            dtype=torch.float32 if widen else weight.dtype,
            device=weight.device,
        )

    @property
    def used(self) -> float:
        """Share of the blocks that texts refer to, of the group that is fullest."""
        return max(1 - group.pool.free / group.pool.blocks for group in self.groups)

    def open(self, tokens: Sequence[int] = (), chain: list[Content] | None = None) -> Pages:
        """Return the pages of a new text; as much of its beginning as is known already is in them.

        Its last token is never: somebody wants to know what follows it.

        Args:
            chain: what an earlier call found the text's full blocks to hold, from the first on; it is made complete.
        """
        pages = Pages([np.empty(0, np.int32) for _ in self.groups], [0] * len(self.groups), [0] * len(self.groups))
        chain = [] if chain is None else chain
        begin = len(chain) * self.block
        chain += contents(tokens[begin : max(len(tokens) - 1, 0)], self.block, chain[-1] if chain else b"")
        known = self._known(chain)
        pages.chain, pages.named, pages.length = chain[:known], known, known * self.block
        for number, group in enumerate(self.groups):
            first = self._first(group.window, pages.length)
            blocks = [group.pool.find(content) for content in chain[first:known]]
            for found in blocks:
                assert found is not None
                group.pool.share(found)
            self._extend(pages, number, [0] * first + [found or 0 for found in blocks])
            pages.first[number] = first
        return pages

    def reserve(self, pages: Pages, tokens: int) -> bool:
        """Get blocks for the next tokens of a text; return False, and change nothing, if there are too few."""
        blocks = -(-(pages.length + tokens) // self.block)
        wanted = [blocks - count for count in pages.counts]
        copies = [self._shared_end(pages, number) for number in range(len(self.groups))]
        if any(
            group.pool.free < max(count, 0) + copy
            for group, count, copy in zip(self.groups, wanted, copies, strict=True)
        ):
            return False
        for number, group in enumerate(self.groups):
            if copies[number]:
                self._own_end(pages, number)
            self._extend(pages, number, [group.pool.take() for _ in range(wanted[number])])
        return True

    def written(self, pages: Pages, tokens: Sequence[int], length: int) -> None:
        """Count the first `length` tokens of a text as written, give back what no later token sees, and let other texts
        find the full blocks."""
        pages.length = length
        full = pages.length // self.block
        if full > pages.named:
            begin = pages.named * self.block
            parent = pages.chain[-1] if pages.chain else b""
            pages.chain += contents(tokens[begin : full * self.block], self.block, parent)
            for number, group in enumerate(self.groups):
                for index in range(max(pages.named, pages.first[number]), full):
                    group.pool.name(int(pages.tables[number][index]), pages.chain[index])
            pages.named = full
        for number, group in enumerate(self.groups):
            first = self._first(group.window, pages.length)
            for index in range(pages.first[number], first):
                group.pool.release(int(pages.tables[number][index]))
            pages.first[number] = max(first, pages.first[number])

    def fork(self, pages: Pages) -> Pages:
        """Return pages of a text that begins as this one does; the last block is copied when one of them goes on."""
        twin = Pages([table.copy() for table in pages.tables], list(pages.first), list(pages.counts), pages.length)
        twin.chain, twin.named = list(pages.chain), pages.named
        for number, group in enumerate(self.groups):
            for block in pages.tables[number][pages.first[number] : pages.counts[number]]:
                group.pool.share(int(block))
        return twin

    def close(self, pages: Pages) -> None:
        """Give all blocks back, the last first: the beginnings of texts are what others may want."""
        for number, group in enumerate(self.groups):
            for block in reversed(pages.tables[number][pages.first[number] : pages.counts[number]]):
                group.pool.release(int(block))
            pages.first[number] = pages.counts[number] = 0
        pages.length = 0

    def _known(self, chain: Sequence[bytes]) -> int:
        """Return how many blocks at the beginning of a text need not be computed: all that is seen later is there."""
        runs = [0] * len(self.groups)  # known blocks in a row up to here
        best = 0
        for index, content in enumerate(chain):
            runs = [
                run + 1 if group.pool.find(content) is not None else 0
                for run, group in zip(runs, self.groups, strict=True)
            ]
            end = index + 1
            needed = [end - self._first(group.window, end * self.block) for group in self.groups]
            if all(run >= need for run, need in zip(runs, needed, strict=True)):
                best = end
        return best

    def _first(self, window: int | None, length: int) -> int:
        """Return how many blocks at the beginning none but the first `length` tokens see."""
        return 0 if window is None else max(length - window + 1, 0) // self.block

    def _shared_end(self, pages: Pages, number: int) -> bool:
        """Return whether the next token goes into a block that others refer to."""
        inside = pages.length % self.block
        table = pages.tables[number]
        return bool(inside) and self.groups[number].pool.is_shared(int(table[pages.length // self.block]))

    def _own_end(self, pages: Pages, number: int) -> None:
        group, index = self.groups[number], pages.length // self.block
        shared, own = int(pages.tables[number][index]), group.pool.take()
        for buffer in (group.keys, group.values):
            buffer[:, own] = buffer[:, shared]
        group.pool.release(shared)
        pages.tables[number][index] = own

    def _extend(self, pages: Pages, number: int, blocks: Sequence[int]) -> None:
        if not blocks:
            return
        count, table = pages.counts[number], pages.tables[number]
        if count + len(blocks) > len(table):
            grown = np.zeros(max(2 * len(table), count + len(blocks), 8), np.int32)
            grown[:count] = table[:count]
            pages.tables[number] = table = grown
        table[count : count + len(blocks)] = blocks
        pages.counts[number] += len(blocks)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return `torch.zeros`; on a CPU it takes memory page by page, as it is written to, and gives it back with the
    tensor, whatever the allocator does: a training that writes texts may keep what is freed."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap(-1, math.prod(shape) * dtype.itemsize, access=ACCESS_COPY)
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(shape)


def _most_blocks(window: int | None, context: int, block: int) -> int:
    """Return how many blocks one text holds at most, while a chunk as long as its window is written."""
    tokens = context if window is None else min(2 * window, context)
    return -(-tokens // block) + 1
