"""Which blocks of a paged cache are free, which are shared, and which hold a text that may come again."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

Content = bytes  # a digest of all tokens up to the end of a block


def contents(tokens: Sequence[int], block: int, parent: Content = b"") -> list[Content]:
    """Return what each full block of a text holds: equal for two texts as long as they begin alike.

    Args:
        block: tokens of a block. parent: what the block before the first holds.
    """
    array = np.asarray(tokens[: len(tokens) // block * block], dtype=np.int64).reshape(-1, block)
    found = []
    for row in array:
        parent = hashlib.blake2b(parent + row.tobytes(), digest_size=16).digest()
        found.append(parent)
    return found


class BlockPool:
    """The blocks of a group of layers, by number.

    A block is free or referred to by one or more texts. A free one keeps what it holds until it is taken, the one that
    was released longest ago first, so that a later text that begins alike finds it.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._references = [0] * blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._by_content: dict[Content, int] = {}
        self._content: dict[int, Content] = {}

    @property
    def free(self) -> int:
        """Number of blocks that can be taken."""
        return len(self._free)

    def take(self) -> int:
        """Return a free block, now referred to once. Raises KeyError if there is none."""
        block, _ = self._free.popitem(last=False)
        content = self._content.pop(block, None)
        if content is not None:
            del self._by_content[content]
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Refer to a block once more."""
        if not self._references[block]:
            del self._free[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """Refer to a block once less; it is free when nobody does."""
        self._references[block] -= 1
        if self._references[block]:
            return
        self._free[block] = None
        if block not in self._content:
            self._free.move_to_end(block, last=False)  # it holds nothing that could be found: the first to be taken

    def is_shared(self, block: int) -> bool:
        """Return whether more than one text refers to a block."""
        return self._references[block] > 1

    def find(self, content: Content) -> int | None:
        """Return the block that holds a text, None if none does."""
        return self._by_content.get(content)

    def name(self, block: int, content: Content) -> None:
        """Say what a full block holds; another block that holds the same stays the one to be found."""
        if content not in self._by_content and block not in self._content:
            self._by_content[content], self._content[block] = block, content
