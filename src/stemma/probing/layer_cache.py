"""All layers of all tokens of a text, computed once by a frozen model and kept in a memory-mapped file."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.data.collation import batches_by_length, padded
from stemma.data.content_hashes import digest
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.elmo.model import ELMo
from stemma.families.weight_hash import hash_of_weights
from stemma.files import write_whole
from stemma.inference.embeddings import frame_of
from stemma.inference.states import layers_of
from stemma.inference.word_states import WordStates, word_vectors
from stemma.probing.retokenise import Pieces, retokenise

_BATCH_TOKENS = 1024  # more do not stay in the caches of a processor
_BYTES = 2  # of a bfloat16: float16 does not hold the largest states of some models


@dataclass(frozen=True)
class Layers:
    """What a model makes of sentences.

    Args:
        states: bfloat16 [tokens, 1 + layers, hidden], of all sentences one behind the other, without special tokens.
        starts: int64 [sentences + 1], where each begins. first, last: of each sentence, int [words], its words' tokens
            from its start on, half-open; empty of words that are not read.
        cut: words behind the end of the context. lost: words of which the tokenizer leaves nothing.
    """

    states: Tensor
    starts: np.ndarray
    first: list[np.ndarray]
    last: list[np.ndarray]
    cut: int
    lost: int


def layers_of_sentences(
    model: Any,
    tokenizer: Tokenizer | None,
    sentences: Sequence[Sequence[str]],
    cache: Path,
    *,
    say: Callable[[str], None] = lambda message: None,
    report: Callable[[int], None] = lambda done: None,
) -> Layers:
    """Compute all layers of sentences, or find them in the cache.

    Args:
        model: in eval mode. tokenizer: None of an ELMo, which reads the words themselves.
        cache: folder of the files. say: told how large a new file is, before it is made.
        report: called with the number of sentences just done.
    Raises:
        InputError: the model is in training mode or of no family with layers to read, or the disk is too small.
    """
    if model.training:
        raise InputError("the model is in training mode, where dropout is random: call model.eval() first")
    if isinstance(model, ELMo):
        before: list[int] = []
        after: list[int] = []
        pieces = [Pieces([0] * len(words), np.arange(len(words)), np.arange(1, len(words) + 1)) for words in sentences]
    else:
        assert tokenizer is not None
        before, after = frame_of(model, tokenizer)
        pieces = retokenise(sentences, tokenizer)
    lost = sum(int((one.first == one.last).sum()) for one in pieces)
    context = getattr(model.config, "context", None)
    room = (1 << 60) if context is None else context - len(before) - len(after)
    rows = [one.tokens[:room] for one in pieces]
    starts = np.cumsum([0, *map(len, rows)])
    first = [np.minimum(one.first, room) for one in pieces]
    last = [np.where(one.last <= room, one.last, start) for one, start in zip(pieces, first, strict=True)]
    cut = sum(int((ends == begins).sum()) for begins, ends in zip(first, last, strict=True)) - lost
    shape = int(starts[-1]), 1 + model.config.layers, model.config.hidden
    named = f"{type(model).__name__} {model.config}"
    tokens = "words" if tokenizer is None else tokenizer.fingerprint
    name = digest([named, hash_of_weights(model), tokens, *map(" ".join, sentences)])
    path = cache / "layers" / f"{name}.npy"
    if path.is_file():
        report(len(sentences))
    else:
        size = int(np.prod(shape)) * _BYTES
        say(f"layers: {shape[0]:,} tokens x {shape[1]} x {shape[2]:,}, {size / 1e6:,.0f} MB in {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise InputError(f"{path.parent}: {free / 1e6:,.0f} MB are free, {size / 1e6:,.0f} MB are needed")
        if isinstance(model, ELMo):
            computed = _of_words(model, sentences, report)
        else:
            computed = _of_tokens(model, [[*before, *row, *after] for row in rows], len(before), len(after), report)
        with write_whole(path) as temporary:
            file = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.int16, shape=shape)
            for number, states in computed:
                file[starts[number] : starts[number + 1]] = states.to(torch.bfloat16).view(torch.int16).numpy()
            file.flush()
            del file
    states = torch.from_numpy(np.load(path, mmap_mode="c")).view(torch.bfloat16)
    return Layers(states, starts, first, last, cut, lost)


@torch.inference_mode()
def _of_tokens(
    model: Any, rows: list[list[int]], before: int, after: int, report: Callable[[int], None]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each sentence with float [tokens, 1 + layers, hidden]."""
    device = next(model.parameters()).device
    filled = [number for number, row in enumerate(rows) if row]
    for batch in batches_by_length([len(rows[number]) for number in filled], _BATCH_TOKENS):
        numbers = [filled[index] for index in batch]
        lengths = torch.tensor([len(rows[number]) for number in numbers], device=device)
        tokens = padded([rows[number] for number in numbers]).to(device)
        layers = layers_of(model, tokens, lengths).permute(1, 2, 0, 3).cpu()
        for number, states in zip(numbers, layers, strict=True):
            yield number, states[before : len(rows[number]) - after]
        report(len(numbers))


def _of_words(
    model: ELMo, sentences: Sequence[Sequence[str]], report: Callable[[int], None]
) -> Iterator[tuple[int, Tensor]]:
    for number, layers in enumerate(word_vectors(WordStates(model), sentences, report=report)):
        yield number, torch.from_numpy(layers).transpose(0, 1)
