"""Autoregressive blank infilling: from a stretch of documents to a loss (Du et al. 2022, sections 2.1 and 2.2)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import SkipValidation
from torch import Tensor

from stemma.data.stretches import stretches
from stemma.errors import InputError
from stemma.families.glm import tokens as special_tokens
from stemma.families.glm.examples import (
    IGNORED,
    LAST_POSITION,
    Example,
    collate,
    continuation_example,
    infilling_example,
)
from stemma.families.glm.model import GLM
from stemma.families.glm.spans import Span, documents_of, place_spans, sentence_spans, short_spans
from stemma.families.glm.tokens import GLMTokens
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.masks import Mask

if TYPE_CHECKING:
    from stemma.data.tokenized_corpus import TokenizedSplit
    from stemma.data.tokenizers import Tokenizer

SENTINELS = 100  # numbered blanks for the ablation that tells them apart

_SHORTEST = 32  # tokens of a shortened sample


@dataclass(frozen=True)
class BlankInfilling:
    """The objective of GLM.

    What the authors draw once for a batch (the kind of example, the length of a document-level span, whether samples
    are shortened) is drawn here for each sample.

    Args:
        glm_tokens: the tokenizer's special tokens.
        token, sentence, document: how often samples lose short spans, sentences, or one long span (section 2.2), in any
            proportion.
        ratio: share of a sample that token and sentence level take out of it. mean_span: of the Poisson distribution.
        least_document: the long span's least share of the sample: 0.5, or 0.25 in GLM-2B and GLM-10B.
        task_masks: [sMASK] and [gMASK] stand for sentences and long spans (2B, 10B), not [MASK].
        shuffle: the blanks are filled in random order. sentinel: blanks have numbered tokens, and what stands in them
            has no first position. block_positions: there is a second one. (False, True, False are the ablations.)
        hidden_inputs: share of short spans' tokens that are hidden from those after them. single_span: how often a
            sample loses one short span only. short: how often a sample is cut to a random length. (10B: 0.1; 0.05 and
            0.5 in the second stage, 0.02 in the first.)
    Raises:
        InputError: a share out of its range, or ablations that exclude each other.
    """

    glm_tokens: SkipValidation[GLMTokens]
    token: float = 1.0
    sentence: float = 0.0
    document: float = 0.0
    ratio: float = 0.15
    mean_span: float = 3.0
    least_document: float = 0.5
    task_masks: bool = False
    shuffle: bool = True
    sentinel: bool = False
    block_positions: bool = True
    hidden_inputs: float = 0.0
    single_span: float = 0.0
    short: float = 0.0

    likelihood: ClassVar[bool] = False

    def __post_init__(self) -> None:
        shares = (self.token, self.sentence, self.document)
        if min(shares) < 0 or sum(shares) <= 0:
            raise InputError(f"objective: token, sentence and document are {shares}, expected shares of 0 or more")
        if not 0 < self.ratio <= 0.5:
            raise InputError(f"objective.ratio: {self.ratio}, expected more than 0 and at most 0.5")
        if self.mean_span <= 0 or not 0 < self.least_document <= 1:
            raise InputError("objective: expected mean_span above 0 and least_document between 0 and 1")
        if self.sentinel and not self.block_positions:
            raise InputError("objective: sentinel needs block_positions, without which no position would be left")

    @staticmethod
    def prepare_tokenizer(tokenizer: "Tokenizer", options: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer with GLM's special tokens."""
        return special_tokens.prepare_tokenizer(tokenizer, SENTINELS if options.get("sentinel") else 0)

    def example(self, tokens: np.ndarray, rng: np.random.Generator) -> Example:
        """Turn int64 [length + 1] tokens of a stream of documents into an example (see examples.py)."""
        sample = sample_of(tokens, self.glm_tokens)
        if rng.random() < self.short:
            sample = self._shortened(sample, rng)
        if rng.random() < self.single_span:
            return self._short_spans(sample, rng, total=1)
        shares = np.cumsum([self.token, self.sentence, self.document])
        kind = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        if kind == 1:
            return self._sentences(sample, rng)
        return self._document(sample, rng) if kind == 2 else self._short_spans(sample, rng)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return a batch of examples of whatever lengths (see `examples.collate`)."""
        return collate(examples, self.glm_tokens.end)

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many targets the batch has: what a loss over several batches must be divided by."""
        return {"targets": int((batch["targets"] != IGNORED).sum())}

    def loss(
        self, model: GLM, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean negative log-likelihood of Part B in nats, and sums to report.

        Args:
            batch: what `collate` returns.
            totals: what `counts` gives for the whole step; the loss is then this batch's share of the step's mean.
        """
        divisor = max((totals or self.counts(batch))["targets"], 1)
        return part_b_loss(model, batch, divisor)

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of examples over a split, the same each time."""
        numbered = enumerate(stretches(split, length + 1, least=_SHORTEST))
        examples = (self.example(tokens, np.random.default_rng([0, number])) for number, tokens in numbered)
        while batch := list(islice(examples, batch_size)):
            yield self.collate(batch)

    def _short_spans(self, sample: np.ndarray, rng: np.random.Generator, total: int | None = None) -> Example:
        documents = documents_of(sample, self.glm_tokens.beginning, self.glm_tokens.end)
        total = int(self.ratio * len(sample)) if total is None else total
        spans = short_spans(documents, total, rng, ratio=self.ratio, mean=self.mean_span)
        example = self._blanks(sample, spans, self.glm_tokens.mask, rng)
        if self.hidden_inputs:
            written = np.arange(len(example["tokens"])) >= example["context_length"]
            inner = written & ~np.isin(example["tokens"], (self.glm_tokens.piece_start, *self.glm_tokens.piece_starts))
            hidden = inner & (rng.random(len(inner)) < self.hidden_inputs)
            example["tokens"] = np.where(hidden, self.glm_tokens.hidden_input, example["tokens"])
        return example

    def _sentences(self, sample: np.ndarray, rng: np.random.Generator) -> Example:
        ids = self.glm_tokens
        spans = sentence_spans(sample, self._ends_sentence(sample), ids.beginning, ids.end, rng, self.ratio)
        return self._blanks(sample, spans, ids.sentence_mask if self.task_masks else ids.mask, rng)

    def _document(self, sample: np.ndarray, rng: np.random.Generator) -> Example:
        ids = self.glm_tokens
        mask = ids.document_mask if self.task_masks else ids.mask
        if len(sample) < 3:
            return self._blanks(sample, [], mask, rng)
        length = int(rng.integers(max(int(self.least_document * len(sample)), 1), len(sample) - 1))
        ends = np.flatnonzero(sample == ids.end)
        several = len(ends) > 0 and ends[0] != len(sample) - 1
        if several or rng.random() < 0.5:
            return continuation_example(
                sample,
                len(sample) - length,
                mask,
                ids.piece_start,
                block_positions=self.block_positions,
                silent=ids.beginning,
            )
        offset, room = max(documents_of(sample, ids.beginning, ids.end), key=lambda document: document[1])
        return self._blanks(sample, place_spans([min(length, room)], room, offset, rng), mask, rng)

    def _blanks(self, sample: np.ndarray, spans: list[Span], mask: int, rng: np.random.Generator) -> Example:
        spans = [spans[index] for index in rng.permutation(len(spans))] if self.shuffle else sorted(spans)
        ids = self.glm_tokens
        masks, starts = [mask] * len(spans), [ids.piece_start] * len(spans)
        if self.sentinel:
            if len(spans) > len(ids.masks) + 1:
                raise InputError(f"objective.sentinel: {len(spans)} blanks, the tokenizer numbers {len(ids.masks)}")
            starts = [ids.piece_start, *ids.piece_starts][: len(spans)]
            masks = [ids.mask, *ids.masks][: len(spans)] if mask == ids.mask else masks
        return infilling_example(
            sample,
            spans,
            masks,
            starts,
            ids.piece_end,
            block_positions=self.block_positions,
            written_at=LAST_POSITION if self.sentinel else None,
        )

    def _ends_sentence(self, sample: np.ndarray) -> np.ndarray:
        return np.isin(sample, np.fromiter(self.glm_tokens.sentence_ends, np.int64))

    def _shortened(self, sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cut a sample to a random length, at ends of sentences where there are any near."""
        wanted = int(rng.integers(_SHORTEST, max(len(sample) - 1, _SHORTEST + 1)))
        text = sample[1:]
        if wanted >= len(text):
            return sample
        ended = self._ends_sentence(text) | (text == self.glm_tokens.end)  # after this token a sentence begins
        start = int(rng.integers(len(text) - wanted))
        while start > 0 and (text[start] == self.glm_tokens.end or not ended[start - 1]):
            start -= 1
        stop = start + wanted
        while stop > start and not ended[stop - 1]:
            stop -= 1
        if stop - start < wanted // 2:
            stop = start + wanted
        return np.concatenate([sample[:1], text[start:stop]])


def target_states(model: GLM, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the states that predict a target, float [targets, hidden], and these, int64 [targets]; of the last layer
    no others are computed."""
    mask, targets = Mask(causal=True, prefix_lengths=batch["context_lengths"]), batch["targets"].flatten()
    places = (targets != IGNORED).nonzero().squeeze(1)
    return model.hidden(batch["tokens"], batch["positions"], mask, places=places), targets[places]


def part_b_loss(model: GLM, batch: Mapping[str, Tensor], divisor: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the summed negative log-likelihood of a batch's targets / divisor, and the sums to report.

    Logits exist only where there is a target.
    """
    positions, targets = batch["positions"], batch["targets"]
    positions = positions.where(positions != LAST_POSITION, model.config.context)
    mask = Mask(causal=True, prefix_lengths=batch["context_lengths"])
    hidden = model.hidden(batch["tokens"], positions, mask)
    learned = targets != IGNORED
    loss = linear_cross_entropy(hidden[learned], model.output_weight, targets[learned], divisor=divisor)
    return loss, {"nll": loss.detach() * divisor, "targets": learned.sum()}


def sample_of(stretch: np.ndarray, tokens: GLMTokens) -> np.ndarray:
    """Turn int64 [length + 1] tokens of `separator document separator document ...` into int64 [length] or fewer:
    `[CLS] document end [CLS] document ...`; what no longer fits is left out."""
    length = len(stretch) - 1
    if stretch[0] == tokens.separator:
        stretch = stretch[1:]
    borders = stretch == tokens.separator
    sample = np.repeat(stretch, 1 + borders)
    first = np.flatnonzero(borders) + np.arange(borders.sum())
    sample[first], sample[first + 1] = tokens.end, tokens.beginning
    sample = np.concatenate([[tokens.beginning], sample])[:length]
    return sample[:-1] if len(sample) > 1 and sample[-1] == tokens.beginning else sample
