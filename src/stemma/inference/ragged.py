"""One forward pass over what many texts contribute: the next token of some, a piece of the prompt of others."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stemma.inference.paged_attention import paged_attention
from stemma.inference.paged_cache import PagedCache, Pages
from stemma.layers.attention import KeyValueCache, attention
from stemma.layers.masks import Mask

FEW = 8  # tokens, from which on a piece pays for its past to be gathered


@dataclass
class Piece:
    """What one text contributes: its next tokens, for which `PagedCache.reserve` got blocks.

    Args:
        drafts: how many of them, at the end, are guesses. causal: False: they see each other in both directions.
    """

    pages: Pages
    tokens: Sequence[int]
    drafts: int = 0
    causal: bool = True
    _mask: Mask | None = field(default=None, repr=False)

    @property
    def mask(self) -> Mask:
        """What its tokens see of what is before them and of each other."""
        if self._mask is None:
            self._mask = Mask(causal=self.causal)
        return self._mask

    @property
    def is_short(self) -> bool:
        """Whether each of its tokens is better served alone."""
        return len(self.tokens) <= FEW and self.causal

    @property
    def start(self) -> int:
        """Tokens before it."""
        return self.pages.length


class RaggedStep(KeyValueCache):
    """The cache of one forward pass over tokens [1, total], the pieces one behind the other, without padding.

    Short pieces must come first: they are one kernel call a layer, a query a token.

    Args:
        all_short: serve each token alone however long its piece is, as a bias by distance needs; all are causal.
    """

    def __init__(self, cache: PagedCache, pieces: Sequence[Piece], *, all_short: bool = False) -> None:
        self.cache, self.pieces = cache, pieces
        device = cache.groups[0].keys.device
        counts = np.array([len(piece.tokens) for piece in pieces])
        starts = np.array([piece.start for piece in pieces])
        self.short = len(pieces) if all_short else sum(piece.is_short for piece in pieces)
        self.singles = int(counts[: self.short].sum())  # queries of these
        self.ends = counts.cumsum()
        text = np.repeat(np.arange(len(pieces)), counts)
        positions = np.arange(counts.sum()) - (self.ends - counts)[text] + starts[text]
        self._positions = torch.from_numpy(positions).to(device)
        offset = torch.from_numpy(positions % cache.block).to(device)
        self._where: list[tuple[Tensor, Tensor]] = []
        self._single: list[tuple[Tensor, Tensor, Tensor]] = []
        lengths = torch.from_numpy((positions[: self.singles] + 1).astype(np.int32)).to(device)
        for number, group in enumerate(cache.groups):
            most = max(piece.pages.counts[number] for piece in pieces)
            tables = np.zeros((len(pieces), most), np.int32)
            for table, piece in zip(tables, pieces, strict=True):
                count = piece.pages.counts[number]
                table[:count] = piece.pages.tables[number][:count]
            blocks = tables[text, positions // cache.block].astype(np.int64)
            self._where.append((torch.from_numpy(blocks).to(device), offset))
            first = torch.zeros_like(lengths) if group.window is None else (lengths - group.window).clamp_min(0)
            rows = torch.from_numpy(tables[text[: self.singles]]).to(device)
            self._single.append((rows, lengths, first))

    @property
    def tokens(self) -> Tensor:
        """int64 [1, total]."""
        every = [token for piece in self.pieces for token in piece.tokens]
        return torch.tensor([every], device=self._positions.device)

    @property
    def places(self) -> Tensor:
        """int64 [total]: where in its text each token stands."""
        return self._positions

    @property
    def last(self) -> Tensor:
        """int64 [pieces]: where the last token of each stands."""
        return torch.from_numpy(self.ends - 1).to(self._positions.device)

    def positions(self, length: int) -> Tensor:
        """Return int64 [total]."""
        return self._positions

    def advance(self, length: int) -> None:
        """Nothing to count: `PagedCache.written` does."""

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
        """Write keys and values [1, key heads, total, head_dim]; return what each query, of the same shape, sees.

        Args:
            bias: float [heads, distances], of the scores, by the distance of key from query (short pieces only).
        """
        if bias is not None and self.short < len(self.pieces):
            raise ValueError("a bias by distance is for short pieces")
        number, index = self.cache.place[layer]
        group = self.cache.groups[number]
        keys, values = group.keys[index], group.values[index]
        block, offset = self._where[number]
        for buffer, new in ((keys, key), (values, value)):
            buffer[block, :, offset] = new[0].transpose(0, 1).to(buffer.dtype)
        rows = query[0].transpose(0, 1)  # [total, heads, head_dim]
        mixed = torch.empty(rows.shape, dtype=query.dtype, device=query.device)
        if self.singles:
            mixed[: self.singles] = paged_attention(
                rows[: self.singles].to(keys.dtype), keys, values, *self._single[number], scale=scale, bias=bias
            )
        for piece, end in zip(self.pieces[self.short :], self.ends[self.short :].tolist(), strict=True):
            part = slice(end - len(piece.tokens), end)
            own = key[:, :, part], value[:, :, part]
            if piece.start:
                own = tuple(  # type: ignore[assignment]
                    torch.cat([self._past(buffer, piece, number), new.to(buffer.dtype)], 2)
                    for buffer, new in zip((keys, values), own, strict=True)
                )
            part_query = query[:, :, part].to(own[0].dtype)
            mixed[part] = attention(part_query, *own, piece.mask, window=group.window, scale=scale)[0].transpose(0, 1)
        return mixed.transpose(0, 1).unsqueeze(0)

    def _past(self, buffer: Tensor, piece: Piece, number: int) -> Tensor:
        """Return what is before a piece and can be seen from it, [1, heads, tokens, head_dim]."""
        first = piece.pages.first[number]
        last = -(-piece.start // self.cache.block)
        table = torch.from_numpy(piece.pages.tables[number][first:last].astype(np.int64)).to(buffer.device)
        past = buffer[table].transpose(0, 1).flatten(1, 2)
        return past[:, : piece.start - first * self.cache.block].unsqueeze(0)
