"""Cloze tasks under four masks (Dong et al. 2019, sections 2.3 and 2.4), and the one that teaches to write.

A masked token is predicted where it stands, whatever the direction of reading: targets are not shifted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import SkipValidation
from torch import Tensor

from stemma.data.stretches import stretches
from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.bert.objective import corrupt
from stemma.families.bert.tokens import BERTTokens, prepare_tokenizer
from stemma.families.unilm.model import KINDS, SEGMENTS, Kind, mask_of, seen_by_all
from stemma.layers.cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    from stemma.data.tokenized_corpus import TokenizedSplit
    from stemma.data.tokenizers import Tokenizer

Example = dict[str, np.ndarray]
Span = tuple[int, int]

_MULTIPLE = 8  # the length of a batch is one
_LEAST = 8  # tokens of a held-out text
_FIRST_PART = (0.25, 0.75)  # of a text in two parts


def draw_spans(candidates: np.ndarray, count: int, rng: np.random.Generator, single: float = 0.8) -> list[Span]:
    """Choose `count` tokens: single ones, and for the rest pairs or triples of neighbours, equally often.

    Args:
        candidates: bool [length], where a token may be chosen. single: share of single tokens among the spans.
    Returns:
        spans in random order, the last one cut where the count is reached; fewer where there are no more candidates.
    """
    free = np.append(candidates, False)
    spans: list[Span] = []
    for start in rng.permutation(np.flatnonzero(candidates)).tolist():
        if count < 1:
            break
        if not free[start]:
            continue
        size = 1 if rng.random() < single else int(rng.integers(2, 4))
        stop = start + 1
        while stop - start < min(size, count) and free[stop]:
            stop += 1
        free[start:stop] = False
        spans.append((start, stop))
        count -= stop - start
    return spans


@dataclass(frozen=True)
class ClozeMixture:
    """UniLM's pretraining: each text is read in one of four ways, and 15 % of its tokens are predicted.

    The authors choose the way for a whole batch, and teach the next sentence beside the bidirectional way; here it is
    chosen for each text, and texts are not paired at random.

    Args:
        bidirectional, seq2seq, left_to_right, right_to_left: how often each is chosen, in any proportion.
        segment_ids: they tell the model which way it reads.
        masked: share of the tokens that is predicted. single: share of single tokens; others are pairs and triples.
        replaced, randomized: of the predicted tokens, the share that becomes [MASK] and the share that becomes a random
            token; the others stay.
        label_smoothing: in training, share of each target that is spread evenly over the vocabulary.
    Raises:
        InputError: a share below 0, or none above.
    """

    bert_tokens: SkipValidation[BERTTokens]
    bidirectional: float = 1 / 3
    seq2seq: float = 1 / 3
    left_to_right: float = 1 / 6
    right_to_left: float = 1 / 6
    segment_ids: bool = True
    masked: float = 0.15
    single: float = 0.8
    replaced: float = 0.8
    randomized: float = 0.1
    label_smoothing: float = 0.0

    likelihood: ClassVar[bool] = False

    def __post_init__(self) -> None:
        shares = [getattr(self, kind) for kind in KINDS]
        if min(shares) < 0 or sum(shares) <= 0:
            raise InputError(f"objective: {', '.join(KINDS)} are {shares}, expected shares of 0 or more")

    @staticmethod
    def prepare_tokenizer(tokenizer: "Tokenizer", options: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer with [CLS], [SEP], [MASK] and [PAD]."""
        return prepare_tokenizer(tokenizer)

    def example(self, tokens: np.ndarray, rng: np.random.Generator) -> Example:
        """Turn int64 [length + 1] tokens of a stream of documents into a masked text of at most `length` tokens.

        Returns:
            int64: `tokens` (masked), `segments` [length]; `places` and `targets` [masked]: where something is
            predicted, and what; `prefix_length` []: what all tokens see; bool `reverse` []: read from right to left.
        """
        shares = np.cumsum([getattr(self, kind) for kind in KINDS])
        kind = KINDS[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]
        ids, text = self.bert_tokens, tokens[1:] if tokens[0] == self.bert_tokens.separator else tokens
        text = np.where(text == ids.separator, ids.last, text)
        if kind in ("bidirectional", "seq2seq"):
            text = text[: len(tokens) - 4]
            cut = int(len(text) * rng.uniform(*_FIRST_PART))
            parts = [text[:cut], text[cut:]]
        else:
            parts = [text[: len(tokens) - 3], text[:0]]
        whole, source_length = join_parts(parts[0], parts[1], ids, two=len(parts[1]) > 0)
        candidates = (whole != ids.first) & (whole != ids.last)
        if kind == "seq2seq":
            candidates[-1] = True  # where to stop is learned too
        spans = draw_spans(candidates, max(1, round(self.masked * len(whole))), rng, self.single)
        places = np.sort(np.concatenate([np.arange(start, stop) for start, stop in spans] or [np.zeros(0, np.int64)]))
        return self._masked(whole, source_length, kind, places, rng)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Pad examples at their ends to one length.

        Returns:
            int64 `tokens`, `segments` [rows, width]; `prefix_lengths`, `lengths` [rows], bool `reverse` [rows];
            `places`, `targets` [masked], the places counted through all rows.
        """
        lengths = [len(example["tokens"]) for example in examples]
        width = -(-max(lengths) // _MULTIPLE) * _MULTIPLE
        tokens, segments = torch.zeros(2, len(examples), width, dtype=torch.int64)
        for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
            tokens[row, :length] = torch.from_numpy(example["tokens"])
            segments[row, :length] = torch.from_numpy(example["segments"])
        places = np.concatenate([row * width + example["places"] for row, example in enumerate(examples)])
        return {
            "tokens": tokens,
            "segments": segments,
            "prefix_lengths": torch.tensor([int(example["prefix_length"]) for example in examples]),
            "reverse": torch.tensor([bool(example["reverse"]) for example in examples]),
            "lengths": torch.tensor(lengths),
            "places": torch.from_numpy(places),
            "targets": torch.from_numpy(np.concatenate([example["targets"] for example in examples])),
        }

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many tokens of the batch are predicted."""
        return {"targets": len(batch["targets"])}

    def loss(
        self, model: BERT, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the mean negative log-likelihood of the masked tokens in nats, and sums to report.

        Args:
            batch: what `collate` returns.
            totals: what `counts` gives for the whole step; the loss is then this batch's share of the step's mean.
        """
        divisor = max((totals or self.counts(batch))["targets"], 1)
        tokens = batch["tokens"]
        mask = mask_of(batch["prefix_lengths"], batch["reverse"], batch["lengths"], tokens.shape[1])
        hidden = model.hidden(tokens, batch["segments"], mask).flatten(0, 1)
        loss = linear_cross_entropy(
            model.masked_head(hidden[batch["places"]]),
            model.masked_weight,
            batch["targets"],
            bias=model.masked_head.bias,
            divisor=divisor,
            label_smoothing=self.label_smoothing if model.training else 0.0,
        )
        return loss, {"nll": loss.detach() * divisor, "targets": len(batch["targets"])}

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of examples over a split, the same each time."""
        numbered = enumerate(stretches(split, length + 1, least=_LEAST))
        examples = (self.example(tokens, np.random.default_rng([0, number])) for number, tokens in numbered)
        while batch := list(islice(examples, batch_size)):
            yield self.collate(batch)

    def generation_example(
        self,
        source: np.ndarray,
        target: np.ndarray,
        rng: np.random.Generator,
        *,
        masked: float = 0.7,
        most_masked: int | None = None,
    ) -> Example:
        """Return the example by which a model is fine-tuned to write `target` for `source`, int64 ids without specials.

        Only tokens of the target are predicted, its closing [SEP] among the candidates (Dong et al. 2019, section 2.5).
        """
        whole, source_length = join_parts(source, target, self.bert_tokens, two=True)
        count = min(most_masked or len(whole), max(1, round(masked * len(target))))
        places = source_length + np.sort(rng.permutation(len(target) + 1)[:count])
        return self._masked(whole, source_length, "seq2seq", places, rng)

    def _masked(
        self, whole: np.ndarray, source_length: int, kind: Kind, places: np.ndarray, rng: np.random.Generator
    ) -> Example:
        first, second = SEGMENTS[kind] if self.segment_ids else (0, 0)
        corrupted = corrupt(
            whole,
            places,
            rng,
            mask=self.bert_tokens.mask,
            vocabulary=self.bert_tokens.vocabulary,
            replaced=self.replaced,
            randomized=self.randomized,
        )
        return {
            "tokens": corrupted,
            "segments": np.where(np.arange(len(whole)) < source_length, first, second),
            "places": places,
            "targets": whole[places],
            "prefix_length": np.array(seen_by_all(kind, len(whole), source_length)),
            "reverse": np.array(kind == "right_to_left"),
        }


def join_parts(source: np.ndarray, target: np.ndarray, ids: BERTTokens, two: bool) -> tuple[np.ndarray, int]:
    """Return `[CLS] source [SEP]` and, for `two` parts, `target [SEP]`, and the length of the first part with both."""
    first = np.concatenate([[ids.first], source, [ids.last]])
    return (np.concatenate([first, target, [ids.last]]) if two else first), len(first)
