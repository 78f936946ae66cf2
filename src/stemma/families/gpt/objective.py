"""Next-token prediction: from a stretch of packed documents to a loss."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stemma.data.packing import scoring_windows
from stemma.families.gpt.model import GPT
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.masks import Mask

if TYPE_CHECKING:
    from stemma.data.shards import TokenizedSplit

IGNORED = -100


@dataclass(frozen=True)
class Causal:
    """The causal language model objective of GPT.

    Args:
        separator: id of the token that starts each document.
        separate_documents: tokens see their own document only, and positions restart with it. GPT-2 and GPT-3 were
            trained with False.
        overlap: least number of tokens of context, as a fraction of the length, when held-out text is scored.
    """

    separator: int
    separate_documents: bool = True
    overlap: float = 0.25

    def example(self, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Turn int64 [length + 1] tokens into `tokens`, `targets` and `document_ids`, each int64 [length]."""
        inputs, targets = tokens[:-1], tokens[1:]
        example = {"tokens": inputs, "targets": targets}
        if self.separate_documents:
            example["document_ids"] = np.cumsum(inputs == self.separator)
        return example

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many targets the batch has: what a loss over several batches must be divided by."""
        return {"targets": int((batch["targets"] != IGNORED).sum())}

    def loss(
        self, model: GPT, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean negative log-likelihood in nats, and sums to report.

        Args:
            batch: int64 [batch, length] `tokens`, `targets` (-100: none) and, optionally, `document_ids`.
            totals: what `counts` gives for the whole step, over its micro-batches and workers; the loss is then this
                batch's share of the step's mean. Default: the batch is the step.
        """
        divisor = max((totals or self.counts(batch))["targets"], 1)
        mask = Mask(causal=True, document_ids=batch.get("document_ids"))
        hidden = model.hidden(batch["tokens"], mask=mask)
        targets = batch["targets"].flatten()
        loss = linear_cross_entropy(hidden.flatten(0, 1), model.output_weight, targets, divisor=divisor)
        return loss, {"nll": loss.detach() * divisor, "targets": (targets != IGNORED).sum()}

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches that score every token of the split's documents once, however training packs them."""
        for window in scoring_windows(split, length, int(self.overlap * length), batch_size):
            yield {name: torch.from_numpy(array) for name, array in window.items()}
