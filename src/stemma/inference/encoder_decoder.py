"""Decoding with an encoder-decoder: each source is read once, and its keys and values are kept for all its targets."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from stemma.data.collation import batches_by_length, padded
from stemma.families.t5.model import RelativeBias
from stemma.inference.cache import DenseCache
from stemma.inference.decoder import PIECE_TOKENS, Decoder
from stemma.layers.cross_attention import CrossAttention, source_mask
from stemma.layers.masks import Mask


def reads_source(model: Any) -> bool:
    """Return whether a model is an encoder-decoder: it writes a text about its prompt, it does not go on with it."""
    return hasattr(model, "source_keys_and_values")


def most_new(model: Any, source: int, wanted: int) -> int:
    """Return how many of `wanted` tokens an encoder-decoder writes at most about a source of so many."""
    return min(wanted, model.most_new(source)) if hasattr(model, "most_new") else wanted


class SourceDecoder(Decoder):
    """The targets in hand: `copies[i]` rows for source i, one behind the other; used as a `Decoder`.

    Args:
        model: with `encode(source, mask)`, `source_keys_and_values(encoded)`, `decode(tokens, cache)`, `logits(hidden)`
            and `config.start`. prompts: the sources' token ids. copies, new_tokens: see `Decoder`.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], *, copies: Sequence[int] | None = None, new_tokens: int
    ) -> None:
        self.model, self.prompts = model, prompts
        self.copies = list(copies) if copies is not None else [1] * len(prompts)
        self.device = model.output_weight.device
        self.cache: SourceCache = SourceCache(model, [len(prompt) for prompt in prompts], self.copies, new_tokens)

    @torch.inference_mode()
    def read_prompts(self) -> Tensor:
        """Read each source once; return float32 [rows, vocabulary], the logits of the first tokens."""
        for numbers in batches_by_length([len(prompt) for prompt in self.prompts], PIECE_TOKENS):
            source = padded([self.prompts[number] for number in numbers]).to(self.device)
            padding = _padding([len(self.prompts[number]) for number in numbers], source.shape[1], self.device)
            encoded = self.model.encode(source, None if padding is None else Mask(key_padding=padding))
            self.cache.write_sources(numbers, self.model.source_keys_and_values(encoded))
        self.cache.hold_sources()
        return self.step(torch.full((sum(self.copies),), self.model.config.start, device=self.device))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Read the next token of each row, int64 [rows]; return float32 [rows, vocabulary], the logits of the next."""
        hidden = self.model.decode(tokens.unsqueeze(1), self.cache)
        return self.model.logits(hidden.squeeze(1)).float()


class SourceCache(DenseCache):
    """A decoder's keys and values, and beside them those of the sources (see `layers.cross_attention.SourceCache`).

    The sources are kept once each while all of them have equally many rows, one behind the other, as in a beam search.

    Args:
        lengths: of the sources, in tokens. copies: rows of each. capacity: most tokens that the decoder reads a row.
    """

    def __init__(self, model: Any, lengths: Sequence[int], copies: Sequence[int], capacity: int) -> None:
        config, weight = model.config, model.output_weight
        layers = config.layers if config.decoder_layers is None else config.decoder_layers
        shape = {"layers": layers, "heads": config.heads, "head_dim": config.head_dim}
        widen = weight.device.type == "cpu" and weight.dtype == torch.bfloat16  # as in `DenseCache.for_model`
        dtype = torch.float32 if widen else weight.dtype
        super().__init__(**shape, rows=sum(copies), capacity=capacity, dtype=dtype, device=weight.device)
        sources = (layers, len(lengths), config.heads, max(lengths), config.head_dim)
        self._source_keys = torch.zeros(sources, dtype=dtype, device=weight.device)
        self._source_values = torch.zeros_like(self._source_keys)
        self._source_lengths = list(lengths)
        self._held = list(range(len(lengths)))  # which source each row of these is
        self._row_sources = [number for number, count in enumerate(copies) for _ in range(count)]

    def write_sources(self, numbers: Sequence[int], layers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take each layer's key and value, [sources, heads, source, head_dim], of the sources `numbers`."""
        for layer, (key, value) in enumerate(layers):
            self._source_keys[layer, numbers, :, : key.shape[2]] = key.to(self._source_keys.dtype)
            self._source_values[layer, numbers, :, : value.shape[2]] = value.to(self._source_values.dtype)

    def hold_sources(self) -> None:
        """Keep what the rows need: one copy for each group of equally many rows of one source, else one for each row.

        Called when all sources are written, and whenever rows have gone.
        """
        groups = [(number, len(list(rows))) for number, rows in groupby(self._row_sources)]
        even = len({size for _, size in groups}) == 1
        wanted = [number for number, _ in groups] if even else list(self._row_sources)
        if wanted != self._held:
            places = [self._held.index(number) for number in wanted]
            self._source_keys, self._source_values = (
                _rearranged(buffer, places) for buffer in (self._source_keys, self._source_values)
            )
            self._held = wanted
        lengths = [self._source_lengths[number] for number in wanted]
        self.source_mask = source_mask(_padding(lengths, self._source_keys.shape[3], self._source_keys.device))

    def source(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return key and value of a layer's cross-attention, [sources or rows, heads, source, head_dim]."""
        return self._source_keys[layer], self._source_values[layer]

    def bias(self, of: RelativeBias, length: int) -> Tensor:
        """Return float [1, heads, length, tokens]."""
        return of(length, self.end + length)

    def cross_attend(self, layer: int, attention: CrossAttention, x: Tensor) -> Tensor:
        """Return what cross-attention makes of float [rows, length, hidden]."""
        return attention(x, *self.source(layer), self.source_mask)

    def keep(self, order: Sequence[int]) -> None:
        """Make row order[i] row i and drop the rows not named (see `DenseCache.keep`)."""
        super().keep(order)
        self._row_sources = [self._row_sources[row] for row in order]
        self.hold_sources()


def _rearranged(buffer: Tensor, places: list[int]) -> Tensor:
    """Return [layers, rows, ...] with row places[i] as row i; in place where no row moves to a higher one."""
    if any(place < target for target, place in enumerate(places)):
        return buffer.index_select(1, torch.tensor(places, device=buffer.device))
    for target, place in enumerate(places):
        if place != target:
            buffer[:, target] = buffer[:, place]
    return buffer[:, : len(places)]


def _padding(lengths: Sequence[int], longest: int, device: torch.device) -> Tensor | None:
    """Return bool [rows, longest], True where a row of these lengths has a token; None: everywhere."""
    if min(lengths) == longest:
        return None
    return torch.arange(longest, device=device) < torch.tensor(lengths, device=device).unsqueeze(1)
