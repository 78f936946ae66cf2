"""How the families read what an engine gives them: from left to right, round a blank, or about a source."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.dispatch import by_family
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.families.mistral.model import Mistral
from stemma.families.t5.model import T5, RelativeBias
from stemma.families.transformer.model import Transformer
from stemma.inference.paged_attention import paged_attention
from stemma.inference.paged_cache import PagedCache, Pages
from stemma.inference.ragged import Piece, RaggedStep
from stemma.inference.text_stream import end_of_text
from stemma.layers.cross_attention import CrossAttention

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer
    from stemma.inference.requests import RunningText

# Tokens of a source, and of a text about it: relative positions have no end, memory has.
LONGEST = 2048


class Reader(Protocol):
    """What an engine must know of a family.

    Attributes:
        cache: for the texts. shares_prefixes: whether texts that begin alike have the same keys and values there.
        scores_prompts: whether each token of a prompt has a probability given those before it.
        ends: ids that end a text.
    """

    cache: PagedCache
    shares_prefixes: bool
    scores_prompts: bool
    ends: frozenset[int]

    def begin(self, prompt: Sequence[int]) -> tuple[list[int], int]:
        """Return what a text begins with, and how many tokens of it are read at once, in both directions.

        Raises:
            InputError: the prompt is too long for the model.
        """
        ...

    def draws_by(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the tokens that decide, with the seed, the draws of a text: those that `generate` takes."""
        ...

    def most_new(self, begun: int) -> int:
        """Return how many tokens can follow, of which the last is not read, what a text begins with."""
        ...

    def open(self, text: "RunningText") -> bool:
        """Get what a text needs beside its pages; return False if there is no memory for it."""
        ...

    def close(self, text: "RunningText") -> None:
        """Give it back."""
        ...

    def hidden(self, texts: Sequence["RunningText"], pieces: Sequence[Piece]) -> tuple[Tensor, RaggedStep]:
        """Read pieces, the short ones first; return float [total, hidden]."""
        ...


class CausalReader:
    """GPT, Mistral, Mixtral: a text goes on with its prompt."""

    shares_prefixes = scores_prompts = True

    def __init__(self, model: Any, tokenizer: "Tokenizer", memory: int) -> None:
        self.model, end = model, end_of_text(tokenizer)
        self.ends = frozenset() if end is None else frozenset([end])
        self.cache = PagedCache.for_model(model, memory)
        self.context: int = model.config.context

    def begin(self, prompt: Sequence[int]) -> tuple[list[int], int]:
        """See `Reader`."""
        if len(prompt) > self.context:
            raise InputError(f"the prompt has {len(prompt)} tokens, the model's context is {self.context}")
        return list(prompt), 0

    def draws_by(self, prompt: Sequence[int]) -> Sequence[int]:
        """See `Reader`."""
        return prompt

    def most_new(self, begun: int) -> int:
        """See `Reader`."""
        return self.context - begun + 1

    def open(self, text: "RunningText") -> bool:
        """See `Reader`."""
        return True

    def close(self, text: "RunningText") -> None:
        """See `Reader`."""

    def hidden(self, texts: Sequence["RunningText"], pieces: Sequence[Piece]) -> tuple[Tensor, RaggedStep]:
        """See `Reader`."""
        step = RaggedStep(self.cache, pieces)
        return self.model.hidden(step.tokens, cache=step)[0], step


class BlankReader(CausalReader):
    """GLM: a text is what stands in a final [gMASK]; what is before it is read in both directions."""

    shares_prefixes = scores_prompts = False

    def __init__(self, model: GLM, tokenizer: "Tokenizer", memory: int) -> None:
        self.model, self.ids = model, GLMTokens.of(tokenizer)
        ends = [self.ids.piece_end] + [self.ids.end] * (self.ids.document_mask != self.ids.mask)
        self.ends = frozenset(ends)  # see `infilling`
        config = model.config
        self.context, self.piece = config.position_rows, config.context - 1
        self.cache = PagedCache.for_model(model, memory, context=self.context + self.piece + 1)

    def begin(self, prompt: Sequence[int]) -> tuple[list[int], int]:
        """See `Reader`."""
        context = self._context(prompt)
        if len(context) > self.context:
            raise InputError(
                f"the prompt has {len(context)} tokens with those round it, the model {self.context} positions"
            )
        return [*context, self.ids.piece_start], len(context)

    def draws_by(self, prompt: Sequence[int]) -> Sequence[int]:
        """See `Reader`."""
        return self._context(prompt)

    def most_new(self, begun: int) -> int:
        """See `Reader`."""
        return self.piece

    def hidden(self, texts: Sequence["RunningText"], pieces: Sequence[Piece]) -> tuple[Tensor, RaggedStep]:
        """See `Reader`."""
        step = RaggedStep(self.cache, pieces)
        counts = [len(piece.tokens) for piece in pieces]
        contexts = torch.from_numpy(np.repeat([text.whole for text in texts], counts)).to(step.places.device)
        blanks = contexts - 1 if self.ids.document_mask != self.ids.mask else contexts - 2  # an end follows it
        inside = step.places >= contexts
        first = torch.where(inside, blanks, step.places)
        second = torch.where(inside, step.places - contexts + 1, 0)
        positions = torch.stack([first, second]).unsqueeze(0)
        return self.model.hidden(step.tokens, positions, cache=step)[0], step

    def _context(self, prompt: Sequence[int]) -> list[int]:
        ids = self.ids
        return [ids.beginning, *prompt, ids.document_mask, *([ids.end] if ids.document_mask == ids.mask else [])]


class SourceReader:
    """T5, Transformer: a text is about its prompt, which an encoder reads once."""

    shares_prefixes = scores_prompts = False

    def __init__(self, model: T5 | Transformer, tokenizer: "Tokenizer", memory: int) -> None:
        self.model, self.separator = model, tokenizer.separator
        self.ends = frozenset([self.separator])
        config, weight = model.config, model.output_weight
        layers = config.layers if config.decoder_layers is None else config.decoder_layers
        widen = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        shape: Any = {
            "windows": [None] * layers,
            "heads": config.heads,
            "head_dim": config.head_dim,
            "memory": memory // 2,
            "dtype": torch.float32 if widen else weight.dtype,
            "device": weight.device,
        }
        self.cache, self.sources = PagedCache(**shape, context=LONGEST), PagedCache(**shape, context=LONGEST)
        self._pages: dict[RunningText, Pages] = {}

    def begin(self, prompt: Sequence[int]) -> tuple[list[int], int]:
        """See `Reader`."""
        if len(prompt) >= LONGEST:
            raise InputError(f"the prompt has {len(prompt)} tokens, expected fewer than {LONGEST}")
        return [self.model.config.start], 0

    def draws_by(self, prompt: Sequence[int]) -> Sequence[int]:
        """See `Reader`."""
        return self._source(prompt)

    def most_new(self, begun: int) -> int:
        """See `Reader`."""
        return LONGEST

    def open(self, text: "RunningText") -> bool:
        """See `Reader`."""
        if text in self._pages:
            return True
        twin = next((other for other in self._pages if other.number == text.number), None)
        if twin is not None:  # another sample: the same source
            self._pages[text] = self.sources.fork(self._pages[twin])
            return True
        tokens = self._source(text.request.tokens)
        pages = self.sources.open()
        if not self.sources.reserve(pages, len(tokens)):
            return False
        encoded = self.model.encode(torch.tensor([tokens], device=self.model.output_weight.device))
        group, block = self.sources.groups[0], self.sources.block
        places = torch.arange(len(tokens))
        blocks = torch.from_numpy(pages.tables[0].astype(np.int64))[places // block].to(encoded.device)
        offset = (places % block).to(encoded.device)
        for layer, made in enumerate(self.model.source_keys_and_values(encoded)):
            for buffer, new in zip((group.keys[layer], group.values[layer]), made, strict=True):
                buffer[blocks, :, offset] = new[0].transpose(0, 1).to(buffer.dtype)
        self.sources.written(pages, tokens, len(tokens))
        self._pages[text] = pages
        return True

    def close(self, text: "RunningText") -> None:
        """See `Reader`."""
        if text in self._pages:
            self.sources.close(self._pages.pop(text))

    def hidden(self, texts: Sequence["RunningText"], pieces: Sequence[Piece]) -> tuple[Tensor, RaggedStep]:
        """See `Reader`."""
        step = SourceStep(self.cache, self.sources, pieces, [self._pages[text] for text in texts])
        return self.model.decode(step.tokens, step)[0], step

    def _source(self, prompt: Sequence[int]) -> list[int]:
        return list(prompt) if prompt[-1] == self.separator else [*prompt, self.separator]


class SourceStep(RaggedStep):
    """A step in which every text has a source (see `layers.cross_attention.SourceCache`)."""

    def __init__(self, cache: PagedCache, sources: PagedCache, pieces: Sequence[Piece], pages: Sequence[Pages]) -> None:
        super().__init__(cache, pieces, all_short=True)  # a text that was preempted is read again in long pieces
        counts = [len(piece.tokens) for piece in pieces]
        tables = np.zeros((len(pages), max(one.counts[0] for one in pages)), np.int32)
        for table, one in zip(tables, pages, strict=True):
            table[: one.counts[0]] = one.tables[0][: one.counts[0]]
        device = self.places.device
        self._tables = torch.from_numpy(np.repeat(tables, counts, axis=0)).to(device)
        lengths = np.repeat(np.array([one.length for one in pages], np.int32), counts)
        self._lengths = torch.from_numpy(lengths).to(device)
        self._group = sources.groups[0]
        self._longest = int(self.places.max()) + 1

    def bias(self, of: RelativeBias, length: int) -> Tensor:
        """Return float [heads, distances]."""
        return of.by_distance(self._longest).float()

    def cross_attend(self, layer: int, attention: CrossAttention, x: Tensor) -> Tensor:
        """Return what cross-attention makes of float [1, total, hidden]."""
        keys, values = self._group.keys[layer], self._group.values[layer]

        def attend(query: Tensor, scale: float | None) -> Tensor:
            rows = query[0].transpose(0, 1).to(keys.dtype)
            first = torch.zeros_like(self._lengths)
            mixed = paged_attention(rows, keys, values, self._tables, self._lengths, first, scale)
            return mixed.transpose(0, 1).unsqueeze(0)

        return attention.forward_cached(x, attend)


def reader_of(model: Any, tokenizer: "Tokenizer", memory: int) -> Reader:
    """Return the reader of a model's family.

    Raises:
        InputError: a model that writes no text, or a recurrent one.
    """
    return by_family(model, _READERS, "is not served by the engine")(model, tokenizer, memory)


_READERS: dict[type, Callable[[Any, "Tokenizer", int], Reader]] = {
    GPT: CausalReader, Mistral: CausalReader, GLM: BlankReader, T5: SourceReader, Transformer: SourceReader
}  # fmt: skip
