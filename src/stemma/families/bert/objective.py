"""Masked language modelling and next-sentence prediction (Devlin et al. 2018, section 3.1)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import SkipValidation
from torch import Tensor

from stemma.data.rows import place_in_rows
from stemma.errors import InputError
from stemma.families.bert import tokens as bert_tokens_module
from stemma.families.bert.model import BERT
from stemma.families.bert.passages import FullSentences, Passage, SentencePairs, held_out_passages
from stemma.families.bert.tokens import BERTTokens
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.masks import Mask

if TYPE_CHECKING:
    from stemma.data.tokenized_corpus import TokenizedSplit
    from stemma.data.tokenizers import Tokenizer

Example = dict[str, np.ndarray]
_MULTIPLE = 8  # lengths of rows are one: what the matrix products of GPUs like


def choose_masked(words: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return int64: the places to predict, in order: words drawn at random, without those that would exceed `count`.

    Args:
        words: int [length]: the number of each token's word, -1 for tokens that are never predicted. With a number for
            every token the result has exactly `count` places (or all).
    """
    candidates = np.flatnonzero(words >= 0)
    _, word, sizes = np.unique(words[candidates], return_inverse=True, return_counts=True)
    order = rng.permutation(len(sizes))
    if len(sizes) == len(candidates):
        return np.sort(candidates[order[:count]])
    chosen, room = np.zeros(len(sizes), bool), count
    for number in order:
        if sizes[number] <= room:
            chosen[number] = True
            room -= sizes[number]
        if not room:
            break
    return candidates[chosen[word]]


def corrupt(
    tokens: np.ndarray,
    places: np.ndarray,
    rng: np.random.Generator,
    *,
    mask: int,
    vocabulary: int,
    replaced: float = 0.8,
    randomized: float = 0.1,
) -> np.ndarray:
    """Return the tokens with each of `places` changed: to `mask`, to a random id, or not at all.

    Args:
        vocabulary: random ids are any of these, special tokens included.
        replaced, randomized: probabilities of [MASK] and of a random id.
    """
    corrupted = tokens.copy()
    fate = rng.random(len(places))
    anything = rng.integers(vocabulary, size=len(places))
    corrupted[places[fate < replaced]] = mask
    random = (fate >= replaced) & (fate < replaced + randomized)
    corrupted[places[random]] = anything[random]
    return corrupted


@dataclass(frozen=True)
class MaskedLanguageModel:
    """BERT's objective: the mean loss of the masked tokens plus the mean loss of next-sentence prediction.

    Masks are drawn anew whenever a text is seen (RoBERTa's dynamic masking; the authors of BERT made ten copies).

    Args:
        examples: "pairs" with next-sentence prediction, or "full_sentences" without (see `passages`).
        separate_documents: of "full_sentences": documents in one row do not see each other. RoBERTa: False.
        masked: share of a text's tokens, special ones counted, that is predicted; rounded half to even, at least one.
        most_masked: at most so many in a text (`max_predictions_per_seq`); null: no limit.
        replaced, randomized: of the predicted tokens, the share that becomes [MASK] and the share that becomes a random
            token; the others stay.
        whole_words: a word is predicted with all its pieces or not at all.
        short: share of the documents that are cut into pairs of a random, shorter length.
    """

    bert_tokens: SkipValidation[BERTTokens]
    examples: Literal["pairs", "full_sentences"] = "pairs"
    separate_documents: bool = False
    masked: float = 0.15
    most_masked: int | None = None
    replaced: float = 0.8
    randomized: float = 0.1
    whole_words: bool = False
    short: float = 0.1

    likelihood: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("masked", "replaced", "randomized", "short"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"objective.{name}: {getattr(self, name)} is no share, expected 0 to 1")
        if self.replaced + self.randomized > 1:
            raise InputError(
                f"objective: replaced ({self.replaced}) and randomized ({self.randomized}) exceed 1 together"
            )

    @staticmethod
    def prepare_tokenizer(tokenizer: "Tokenizer", options: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer with [CLS], [SEP], [MASK] and [PAD]."""
        return bert_tokens_module.prepare_tokenizer(tokenizer)

    def sequences(self, split: "TokenizedSplit", length: int, seed: int, batch: int) -> SentencePairs | FullSentences:
        """Return the training texts of at most `length` tokens by their number."""
        if self.examples == "pairs":
            return SentencePairs(split, length, seed, self.bert_tokens, self.short)
        return FullSentences(split, length, seed, self.bert_tokens, self.separate_documents)

    def example(self, tokens: Passage, rng: np.random.Generator) -> Example:
        """Mask a passage.

        Returns:
            int64: `tokens` (masked), `segments` and `documents` (number of the text) [length]; `places` and `targets`
            [masked]: where something is predicted, and what; `is_random` [0 or 1].
        """
        passage, ids = tokens, self.bert_tokens
        special = (passage.tokens == ids.first) | (passage.tokens == ids.last)
        words = np.arange(len(special))
        if self.whole_words:
            # A word does not go on across [SEP].
            starts = ids.word_starts(passage.tokens)
            starts[1:] |= special[:-1]
            words = np.cumsum(starts)
        count = max(1, round(self.masked * len(special)))
        count = count if self.most_masked is None else min(count, self.most_masked)
        places = choose_masked(np.where(special, -1, words), count, rng)
        corrupted = corrupt(
            passage.tokens,
            places,
            rng,
            mask=ids.mask,
            vocabulary=ids.vocabulary,
            replaced=self.replaced,
            randomized=self.randomized,
        )
        documents = np.zeros(len(special), np.int64)
        documents[list(passage.starts[1:])] = 1
        return {
            "tokens": corrupted,
            "segments": passage.segments,
            "documents": documents.cumsum(),
            "places": places,
            "targets": passage.tokens[places],
            "is_random": np.array([] if passage.is_random is None else [passage.is_random], np.int64),
        }

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Put examples into rows, several into one where they fit; nothing is computed for padding but a row's end.

        Returns:
            int64: `tokens`, `segments` [rows, width]; `document_ids` [rows, width], left out where each row is one text
            of full width; `places`, `targets` [masked], the places counted through all rows; `firsts`, `is_random`
            [pairs]: where the [CLS] of each pair is, and whether its second text is random.
        """
        lengths = [len(example["tokens"]) for example in examples]
        width = -(-max(lengths) // _MULTIPLE) * _MULTIPLE
        placed = place_in_rows(lengths, width)
        rows = 1 + max(row for row, _ in placed)
        tokens, segments = np.zeros((2, rows, width), np.int64)
        document_ids = np.full((rows, width), -1)  # of the padding
        places, firsts, documents = [], [], 0
        for example, length, (row, start) in zip(examples, lengths, placed, strict=True):
            columns = slice(start, start + length)
            tokens[row, columns], segments[row, columns] = example["tokens"], example["segments"]
            document_ids[row, columns] = documents + example["documents"]
            documents += 1 + int(example["documents"][-1])
            places.append(row * width + start + example["places"])
            firsts += [row * width + start] * len(example["is_random"])
        batch = {
            "tokens": tokens,
            "segments": segments,
            "document_ids": document_ids,
            "places": np.concatenate(places),
            "targets": np.concatenate([example["targets"] for example in examples]),
            "firsts": np.array(firsts, np.int64),
            "is_random": np.concatenate([example["is_random"] for example in examples]),
        }
        if documents == rows and (document_ids >= 0).all():
            del batch["document_ids"]
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many masked tokens and how many pairs the batch has: each part of the loss has its own mean."""
        counts = {"targets": len(batch["targets"])}
        return counts if self.examples == "full_sentences" else {**counts, "pairs": len(batch["is_random"])}

    def loss(
        self, model: BERT, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the mean loss of the masked tokens plus that of the pairs, in nats, and sums to report.

        Args:
            batch: what `collate` makes.
            totals: what `counts` gives for the whole step, over its micro-batches and workers; the loss is then this
                batch's share of the step's. Default: the batch is the step.
        """
        totals = totals or self.counts(batch)
        divisor, pairs = max(totals["targets"], 1), max(totals.get("pairs", 0), 1)
        mask = Mask(document_ids=batch["document_ids"]) if "document_ids" in batch else None
        read = torch.cat([batch["places"], batch["firsts"]])
        states = model.hidden(batch["tokens"], batch["segments"], mask, read)
        masked, firsts = states.tensor_split([len(batch["places"])])
        loss = linear_cross_entropy(
            model.masked_head(masked),
            model.masked_weight,
            batch["targets"],
            bias=model.masked_head.bias,
            divisor=divisor,
        )
        sums: dict[str, Tensor | float] = {"nll": loss.detach() * divisor, "targets": len(batch["targets"])}
        if self.examples == "full_sentences" or not len(batch["is_random"]):
            return loss, sums
        logits = model.next_sentence(model.pool(firsts)).float()
        pair_loss = F.cross_entropy(logits, batch["is_random"], reduction="sum")
        sums["next_sentence_loss/pairs"] = pair_loss.detach()
        sums["next_sentence_accuracy/pairs"] = (logits.argmax(1) == batch["is_random"]).sum()
        sums["pairs"] = len(batch["is_random"])
        return loss + pair_loss / pairs, sums

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches over all of the split's documents, always with the same masks; pairs are never random."""
        waiting: list[Example] = []
        tokens = 0
        for index, passages in enumerate(held_out_passages(split, length, self.bert_tokens, self.examples == "pairs")):
            for number, passage in enumerate(passages):
                example = self.example(passage, np.random.default_rng([0, index, number]))
                if tokens + len(example["tokens"]) > batch_size * length:
                    yield self.collate(waiting)
                    waiting, tokens = [], 0
                waiting.append(example)
                tokens += len(example["tokens"])
        if waiting:
            yield self.collate(waiting)
