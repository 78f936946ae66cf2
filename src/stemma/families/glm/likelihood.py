"""GLM as a language model: a text from left to right, behind one final blank (Du et al. 2022, section 2.2)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import SkipValidation
from torch import Tensor

from stemma.families.glm import tokens as special_tokens
from stemma.families.glm.examples import IGNORED, Example, collate, continuation_example
from stemma.families.glm.model import GLM
from stemma.families.glm.objective import part_b_loss, sample_of
from stemma.families.glm.tokens import GLMTokens

if TYPE_CHECKING:
    from stemma.data.tokenized_corpus import TokenizedSplit
    from stemma.data.tokenizers import Tokenizer

_POOL = 64  # batches whose windows are sorted by length, so that little is padded


@dataclass(frozen=True)
class LeftToRight:
    """Everything after [CLS] is written behind a blank: by the chain rule a true likelihood of the text.

    Its bits per byte can be compared with a GPT's. Meant for evaluation; trained on it, a GLM only continues texts.

    Args:
        glm_tokens: the tokenizer's special tokens. task_masks: the blank is [gMASK], not [MASK].
        block_positions: see `BlankInfilling`.
        overlap: least number of tokens of context in Part A, as a fraction of the length, when held-out text is scored.
    """

    glm_tokens: SkipValidation[GLMTokens]
    task_masks: bool = False
    block_positions: bool = True
    overlap: float = 0.25

    @staticmethod
    def prepare_tokenizer(tokenizer: "Tokenizer", options: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer with GLM's special tokens."""
        return special_tokens.prepare_tokenizer(tokenizer)

    def example(self, tokens: np.ndarray, rng: np.random.Generator) -> Example:
        """Turn int64 [length + 1] tokens of a stream of documents into an example (see examples.py)."""
        return self._continuation(sample_of(tokens, self.glm_tokens), 1)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return a batch of examples of whatever lengths (see `examples.collate`)."""
        return collate(examples, self.glm_tokens.end)

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many targets the batch has."""
        return {"targets": int((batch["targets"] != IGNORED).sum())}

    def loss(
        self, model: GLM, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean negative log-likelihood in nats, and sums to report (see `BlankInfilling.loss`)."""
        return part_b_loss(model, batch, max((totals or self.counts(batch))["targets"], 1))

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches in which every token of every document is a target once, documents apart."""
        examples = (self._continuation(*window) for window in self._windows(split, length))
        while pool := sorted(islice(examples, _POOL * batch_size), key=lambda example: len(example["tokens"])):
            for start in range(0, len(pool), batch_size):
                yield self.collate(pool[start : start + batch_size])

    def _windows(self, split: "TokenizedSplit", length: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yield samples of at most `length` tokens, and from where on they are scored."""
        overlap = min(int(self.overlap * length), length - 2)
        for index in range(split.documents):
            start, stop = split.bounds(index)
            scored = start + 1  # behind the separator
            while scored < stop:
                first = max(start + 1, scored - overlap)
                end = min(first + length - 1, stop)
                text = split.tokens.read(first, end).astype(np.int64)
                yield np.concatenate([[self.glm_tokens.beginning], text]), 1 + scored - first
                scored = end

    def _continuation(self, sample: np.ndarray, division: int) -> Example:
        ids = self.glm_tokens
        mask = ids.document_mask if self.task_masks else ids.mask
        return continuation_example(
            sample, division, mask, ids.piece_start, block_positions=self.block_positions, silent=ids.beginning
        )
