"""A tag for each word: an output layer on the state of one of its pieces.

The first piece in models that see both sides; in a GPT the last, where it has seen the whole word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer, pieces_in_text
from stemma.errors import InputError
from stemma.finetuning import reading
from stemma.finetuning.head_objective import HeadObjective
from stemma.finetuning.in_batches import in_batches
from stemma.finetuning.windows import windows

_OVERLAP = 4  # neighbouring windows share up to a fourth of what they hold


@dataclass(frozen=True)
class Tagging(HeadObjective):
    """The mean cross-entropy of the words' tags, each word counted once.

    Args:
        piece: which piece of a word is read.
    """

    piece: Literal["first", "last"] = "first"

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """Return `tokens`, `read` (the places of words), `labels` (their tags) and `number` (the sentence) of each
        window; a sentence that fits is one window."""
        room = self.room
        examples = []
        labels: Any = data.labels
        for number, (words, tags) in enumerate(zip(word_pieces(data.texts, tokenizer), labels, strict=True)):
            pieces = [word[:room] for word in words]
            sizes = [len(word) for word in pieces]
            starts = np.cumsum([0, *sizes])
            places = starts[:-1] if self.piece == "first" else starts[1:] - 1
            for start, stop, first, last in windows(sizes, room, room // _OVERLAP, causal=self.piece == "last"):
                framed = self.reader.frame([piece for word in pieces[start:stop] for piece in word])
                read = places[first:last] - starts[start] + len(self.reader.before)
                examples.append(
                    {**framed, "read": read, "labels": np.array(tags[first:last], np.int64), "number": number}
                )
        return examples

    @property
    def room(self) -> int:
        """Most tokens of words in a window."""
        if self.reader.longest is None:
            return 1 << 30
        return self.reader.longest - len(self.reader.before) - len(self.reader.after)

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return what `reading.collate` does; `labels`, int64 [reads]; `reads`, int64 [batch]: how many of each row."""
        return {
            **reading.collate(examples),
            "labels": torch.from_numpy(np.concatenate([example["labels"] for example in examples])),
            "reads": torch.tensor([len(example["labels"]) for example in examples]),
        }

    def nll(self, logits: Tensor, batch: Mapping[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Return the summed cross-entropy of the words, float32 []."""
        return F.cross_entropy(logits.float(), batch["labels"], reduction="sum", label_smoothing=label_smoothing)

    def predict(self, model: Any, examples: Sequence[dict[str, Any]]) -> list[list[int]]:
        """Return the likeliest tag of each word of each sentence, as an index."""

        def tags(batch: Mapping[str, Tensor]) -> list[list[int]]:
            return [row.tolist() for row in model(batch).argmax(-1).split(batch["reads"].tolist())]

        sentences: list[list[int]] = [[] for _ in range(examples[-1]["number"] + 1)]
        for example, found in zip(examples, in_batches(model, self, examples, tags), strict=True):
            sentences[example["number"]] += found
        return sentences

    def metrics(self, predicted: Sequence[Sequence[int]], data: LabelledData) -> dict[str, float]:
        """Return the metrics of `evaluation.tagging`; of entities F1 comes first, and decides."""
        from stemma.evaluation.tagging import score_tags

        names, labels = data.label_names, data.labels
        sides: Any = predicted, labels
        scores = score_tags(*([[names[tag] for tag in tags] for tags in side] for side in sides))
        return {"f1": scores["f1"], **scores} if "f1" in scores else scores


def word_pieces(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[list[list[int]]]:
    """Return the token ids of each word as it stands in its sentence: with the blank before it, except the first.

    A word that the tokenizer leaves nothing of (control characters) is its unknown token.

    Raises:
        InputError: such a word, and no unknown token.
    """
    starting = iter(tokenizer.encode_batch([words[0] for words in sentences if words]))
    rest = iter(pieces_in_text(tokenizer, [word for words in sentences for word in words[1:]]))
    pieces = [[next(starting), *(next(rest) for _ in words[1:])] if words else [] for words in sentences]
    for words, encoded in zip(sentences, pieces, strict=True):
        for word, ids in zip(words, encoded, strict=True):
            if not ids:
                if tokenizer.unknown is None:
                    raise InputError(f"word {word!r}: the tokenizer leaves nothing of it, and has no unknown token")
                ids.append(tokenizer.unknown)
    return pieces
