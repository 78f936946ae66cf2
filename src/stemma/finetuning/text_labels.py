"""Classification as text to text: the model writes the label (Raffel et al. 2020, section 2.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.pairs import count_targets, target_loss
from stemma.families.t5.model import T5
from stemma.families.t5.objective import SpanCorruption
from stemma.finetuning.patterns import FIELDS, check_pattern, fill_pattern
from stemma.layers.masks import Mask

PATTERNS = ("{text}", "first: {text} second: {pair}")  # of a text, of a pair


@dataclass(frozen=True)
class TextClassification:
    """T5's loss of the right label's text; a label is chosen by the likelihood of its whole text, so that no answer is
    outside the labels (the paper generates and counts any other text as wrong).

    Args:
        pattern: the source: "{text}" and "{pair}" in it; T5's own tasks are like "sst2 sentence: {text}".
        words: token ids of each label's text, with the end. separator: the token that ends a source.
        longest: most tokens of a source; None: any number.
        label_smoothing: in training, share of each target that is spread evenly over the vocabulary.
    """

    pattern: str
    words: tuple[tuple[int, ...], ...]
    separator: int
    longest: int | None = None
    label_smoothing: float = 0.0

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, label_words: Sequence[str], longest: int | None, *, pattern: str | None, pair: bool
    ) -> "TextClassification":
        """Build it from the labels' texts.

        Raises:
            InputError: a pattern without the texts, or labels that the tokenizer writes alike.
        """
        pattern = PATTERNS[pair] if pattern is None else pattern
        check_pattern(pattern, FIELDS[: 1 + pair])
        words = tuple((*ids, tokenizer.separator) for ids in tokenizer.encode_batch(list(label_words)))
        if len(set(words)) < len(words):
            raise InputError(f"labels {', '.join(label_words)}: two of them have the same tokens")
        return cls(pattern, words, tokenizer.separator, longest)

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return len(self.words)

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """Return `source` and `target` (int64, with their ends) and `label` of each example; `tokens` is the source."""
        rows = [dict(zip(FIELDS, texts, strict=False)) for texts in data.texts]
        room = None if self.longest is None else self.longest - 1
        examples = []
        for ids, label in zip(fill_pattern(self.pattern, rows, tokenizer, room), data.labels, strict=True):
            source = np.array([*ids, self.separator], np.int64)
            target = np.array(self.words[int(label)], np.int64)
            examples.append({"source": source, "target": target, "label": label, "tokens": source})
        return examples

    def example(self, tokens: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the example as it is."""
        return tokens

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return T5's batch (see `SpanCorruption.collate`), with `labels`, int64 [batch]."""
        return {**SpanCorruption.collate(examples), "labels": torch.tensor([e["label"] for e in examples])}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many targets the batch has."""
        return count_targets(batch)

    def loss(
        self, model: T5, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this batch's share of the step's loss, and sums to report."""
        return target_loss(model, batch, totals, self.label_smoothing if model.training else 0.0)

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example among the labels, float32 [batch]."""
        return F.cross_entropy(scores, targets, reduction="none")

    def scores(self, model: T5, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the log-likelihood of each label's text, float32 [batch, outputs]; sources are encoded once."""
        padding = batch.get("source_padding")
        encoded = model.encode(batch["source"], None if padding is None else Mask(key_padding=padding))
        columns = []
        for word in self.words:
            target = torch.tensor([word], device=encoded.device).expand(len(encoded), -1)
            hidden = model.decode(model.shifted(target), encoded, source_padding=padding)
            log_probabilities = model.logits(hidden).float().log_softmax(-1)
            columns.append(log_probabilities.gather(-1, target.unsqueeze(-1)).squeeze(-1).sum(1))
        return torch.stack(columns, 1)
