"""Guesses at what comes next, which a large model confirms or corrects in one pass (Leviathan et al. 2023).

The model draws each token itself, with the draw that the token has in any case; a guess that equals it was read
already. Texts are so the very ones that would be written without guesses, whatever the seed. The likelier rule of the
paper (accept with probability min(1, p / q)) keeps the distribution only; where a guess is a single token, as here, it
accepts as often.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch

from stemma import families
from stemma.data.tokenizers import load_tokenizer
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.families.dispatch import with_article
from stemma.families.gpt.model import GPT
from stemma.families.mistral.model import Mistral
from stemma.inference.paged_cache import PagedCache, Pages
from stemma.inference.ragged import FEW, Piece, RaggedStep

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer
    from stemma.inference.requests import RunningText


class Drafter(Protocol):
    """Guesses tokens."""

    def propose(self, texts: Sequence["RunningText"], most: Sequence[int]) -> list[list[int]]:
        """Return for each text up to most[i] tokens that may come next."""
        ...


class NGramLookup:
    """Guesses that a text repeats itself: what followed when its last tokens came before (Saxena 2023).

    Args:
        longest: so many last tokens are looked for, then ever fewer.
    """

    def __init__(self, longest: int = 3) -> None:
        self.longest = longest
        # For each text what each of its beginnings ends in, up to where it was read: {last tokens: what follows where}.
        self._seen: WeakKeyDictionary[RunningText, tuple[int, dict[tuple[int, ...], int]]] = WeakKeyDictionary()

    def propose(self, texts: Sequence["RunningText"], most: Sequence[int]) -> list[list[int]]:
        """See `Drafter`."""
        return [self._one(text, count) for text, count in zip(texts, most, strict=True)]

    def _one(self, text: "RunningText", most: int) -> list[int]:
        tokens = text.tokens
        read, seen = self._seen.get(text, (1, {}))
        for end in range(read, len(tokens)):  # what ends before `end` is followed by tokens[end]
            for size in range(1, min(self.longest, end) + 1):
                seen[tuple(tokens[end - size : end])] = end
        self._seen[text] = (len(tokens), seen)
        for size in range(min(self.longest, len(tokens)), 0, -1):
            found = seen.get(tuple(tokens[-size:]))
            if found is not None:
                return tokens[found : found + most]
        return []


class DraftModel:
    """Guesses by a smaller model of the same tokenizer: its likeliest tokens.

    Args:
        model: a decoder-only language model in eval mode. memory: bytes for its keys and values. guesses: tokens.
    """

    def __init__(self, model: Any, *, memory: int = 2**28, guesses: int = 4) -> None:
        self.model, self.guesses = model, min(guesses, FEW - 1)
        self.cache = PagedCache.for_model(model, memory)
        self._pages: dict[RunningText, Pages] = {}

    @torch.inference_mode()
    def propose(self, texts: Sequence["RunningText"], most: Sequence[int]) -> list[list[int]]:
        """See `Drafter`. A text for which there is no memory gets no guesses."""
        self._forget([*texts])
        found: list[list[int]] = [[] for _ in texts]
        context = self.model.config.context
        rows = []
        for row, text in enumerate(texts):
            if len(text.tokens) + self.guesses <= context and most[row] > 0:
                pages = self._pages.get(text) or self.cache.open(text.tokens)
                self._pages[text] = pages
                unread = text.tokens[pages.length :]  # none: it has not gone on but was preempted meanwhile
                if not unread or max(unread) >= self.model.config.vocabulary:
                    continue
                if self.cache.reserve(pages, len(text.tokens) - pages.length + self.guesses):
                    rows.append(row)
        if not rows:
            return found
        pieces = [Piece(self._pages[texts[row]], texts[row].tokens[self._pages[texts[row]].length :]) for row in rows]
        order = sorted(range(len(rows)), key=lambda number: len(pieces[number].tokens) > FEW)
        rows, pieces = [rows[number] for number in order], [pieces[number] for number in order]
        tokens = self._read(pieces)
        for row, piece in zip(rows, pieces, strict=True):
            self.cache.written(piece.pages, texts[row].tokens, len(texts[row].tokens))
        for number in range(self.guesses):
            for row, token in zip(rows, tokens, strict=True):
                found[row].append(token)
            if number + 1 < self.guesses:
                pieces = [Piece(piece.pages, [token]) for piece, token in zip(pieces, tokens, strict=True)]
                tokens = self._read(pieces)
                for piece in pieces:
                    piece.pages.length += 1
        for row, piece in zip(rows, pieces, strict=True):
            piece.pages.length = len(texts[row].tokens)  # the guesses are written over
        return [guesses[:count] for guesses, count in zip(found, most, strict=True)]

    def _read(self, pieces: Sequence[Piece]) -> list[int]:
        step = RaggedStep(self.cache, pieces)
        hidden = self.model.hidden(step.tokens, cache=step)[0]
        return [int(token) for token in self.model.logits(hidden[step.last]).argmax(-1)]

    def _forget(self, texts: Sequence["RunningText"]) -> None:
        """Give back the blocks of texts that have ended."""
        for text in [text for text in self._pages if text.finish_reason or text.pages is None]:
            self.cache.close(self._pages.pop(text))


def drafter_named(name: str, tokenizer: "Tokenizer", *, dtype: Any = None, device: Any = None) -> Drafter:
    """Return what guesses for a model with this tokenizer.

    Args:
        name: "ngram" (see `NGramLookup`), or a checkpoint directory or hub id (see `DraftModel`).
    Raises:
        InputError: no such checkpoint, or one with another tokenizer.
    """
    if name == "ngram":
        return NGramLookup()
    directory = resolve(name)
    if load_tokenizer(directory).fingerprint != tokenizer.fingerprint:
        raise InputError(f"{name}: its tokenizer is another one than the model's, so it cannot guess for it")
    model = families.load(directory, dtype=dtype, device=device)
    if not isinstance(model, GPT | Mistral):
        raise InputError(f"{name}: {with_article(model)}, expected a GPT or Mistral to guess what comes next")
    return DraftModel(model)
