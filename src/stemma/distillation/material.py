"""What a student reads while it is taught: demonstrations, or whole texts in pieces.

An item has `tokens`, int64 [length], and, unless they are masked, `prompt`, how many of them are not learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stemma.alignment.conversations import Renderer
from stemma.alignment.dialogues import Dialogue, fingerprint_of, read_dialogues, read_parts
from stemma.alignment.reading import CausalReading, Reading
from stemma.alignment.sft import key_of_dialogue, samples_of
from stemma.data.corpora import CorpusSource
from stemma.data.shards import prepare
from stemma.data.tokenized_corpus import TokenizedCorpus, TokenizedSplit
from stemma.data.tokenizers import Tokenizer
from stemma.distillation.recipe import TransferRecipe
from stemma.errors import InputError
from stemma.families.bert.tokens import frame_and_mask
from stemma.files import cache_directory
from stemma.training.objective import Display

Item = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """Items to learn from, with their lengths, and held-out ones; a hash of the former; what they are, in a line."""

    learned: Sequence[Item]
    lengths: Sequence[int]
    held_out: Sequence[Item]
    fingerprint: str
    summary: str


class Pieces(Sequence[Item]):
    """The documents of a corpus, each cut into pieces of at most `longest` tokens, of which the first is a prompt.

    Args:
        frame: ids of [CLS] and [SEP], between which a BERT reads a piece; then no separator of documents is in it, and
            there is no prompt.
    """

    def __init__(self, split: TokenizedSplit, longest: int, frame: tuple[int, int] | None = None) -> None:
        self.split, self.frame = split, frame
        skipped, room, least = (0, longest, 2) if frame is None else (1, longest - len(frame), 1)
        bounds = [
            (start, min(start + room, stop))
            for begin, stop in map(split.bounds, range(split.documents))
            for start in range(begin + skipped, stop, room)
        ]
        self._bounds = [(start, stop) for start, stop in bounds if stop - start >= least]
        self.lengths = [stop - start + longest - room for start, stop in self._bounds]

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index: Any) -> Any:
        start, stop = self._bounds[index]
        tokens = np.asarray(self.split.tokens[start:stop], np.int64)
        if self.frame is None:
            return {"tokens": tokens, "prompt": 1}
        first, last = self.frame
        return {"tokens": np.array([first, *tokens, last])}

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))


def read_passages(data: TransferRecipe, tokenizer: Tokenizer, longest: int, shown: Display) -> Material:
    """Read the whole texts that a masked language model learns from.

    Raises:
        InputError: no such data, nothing in it to learn, prompts and responses, or a tokenizer without [CLS].
    """
    if data.text is None:
        raise InputError("data.text: a BERT learns from whole texts; expected the column they are in (--text)")
    first, last, _ = frame_and_mask(tokenizer)
    corpus = _corpus(data, tokenizer, shown)
    learned, held_out = (Pieces(split, longest, (first, last)) for split in (corpus.train, corpus.held_out))
    return _material(data, corpus, learned, held_out, longest)


def read_material(
    data: TransferRecipe, tokenizer: Tokenizer, reading: Reading, renderer: Renderer, shown: Display
) -> Material:
    """Read what a recipe names.

    Raises:
        InputError: no such data, nothing in it to learn, or whole texts for a model that reads a prompt by itself.
    """
    if data.text is not None:
        return _texts(data, tokenizer, reading, shown)
    parts = read_parts(data.train, data.dev, lambda path: read_dialogues(path, data), key_of_dialogue)
    learned, held_out = (_items(part, renderer, reading) for part in parts)
    words = sum(len(item["tokens"]) - item["prompt"] for item in learned)
    texts = f"{len(learned):,} responses to learn from, {len(held_out):,} held out; {words:,} tokens are learned"
    lengths = [len(item["tokens"]) for item in learned]
    return Material(learned, lengths, held_out, fingerprint_of(parts[0]), f"data       {data.train}: {texts}")


def _items(dialogues: Sequence[Dialogue], renderer: Renderer, reading: Reading) -> list[Item]:
    items = []
    for dialogue in dialogues:
        for sample in samples_of(dialogue, renderer):
            prompt = list(sample.prompt)
            if not prompt and isinstance(reading, CausalReading):
                prompt = [reading.first]
            room = reading.longest - len(prompt)
            if room > 0:
                items.append({"tokens": np.array([*prompt, *sample.response[:room]], np.int64), "prompt": len(prompt)})
    if not items:
        raise InputError(f"no response begins within the first {reading.longest} tokens (data.longest)")
    return items


def _texts(data: TransferRecipe, tokenizer: Tokenizer, reading: Reading, shown: Display) -> Material:
    if not isinstance(reading, CausalReading):
        raise InputError("data.text: whole texts teach GPT, Mistral and Mixtral; expected prompts and responses")
    corpus = _corpus(data, tokenizer, shown)
    learned, held_out = (Pieces(split, reading.longest) for split in (corpus.train, corpus.held_out))
    return _material(data, corpus, learned, held_out, reading.longest)


def _corpus(data: TransferRecipe, tokenizer: Tokenizer, shown: Display) -> TokenizedCorpus:
    source = CorpusSource(data.train, data.text or "text", data.documents, data.dev)
    with shown.preparing() as report:
        return prepare(source, tokenizer, cache_directory(), report)


def _material(
    data: TransferRecipe, corpus: TokenizedCorpus, learned: Any, held_out: Sequence[Item], longest: int
) -> Material:
    if not learned or not held_out:
        raise InputError(f"{data.train}: too little text to learn from and to hold out of (data.dev)")
    line = f"data       {data.train}: {corpus.summary}; {len(learned):,} pieces of {longest:,} tokens at most"
    return Material(learned, learned.lengths, held_out, corpus.train.fingerprint, line)
