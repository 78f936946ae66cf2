"""Classification of a text or a pair, and regression, by an output layer (see reading.py for each family's input)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer
from stemma.finetuning import reading
from stemma.finetuning.head_objective import HeadObjective
from stemma.finetuning.heads import WithHead
from stemma.finetuning.reading import Example

Pairs = Literal["together", "both orders", "apart"]


@dataclass(frozen=True)
class HeadClassification(HeadObjective):
    """The mean cross-entropy of the classes, of a regression the squared error.

    Args:
        outputs: number of classes; 0: a regression.
        pairs: how the two texts of a pair are read. "together": in one row. "both orders": in two, of which the states
            are summed (Radford et al. 2018, section 3.3): similarity has no direction, a causal model's reading has.
            "apart": each by itself.
    """

    outputs: int = 0
    pairs: Pairs = "together"

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[Example]:
        """Return `tokens`, `segments` of pairs, `read` (see `Reader.frame`) and `label` of each example; `second` is
        the second row of a pair that takes two."""
        parts = [tokenizer.encode_batch(list(column)) for column in zip(*data.texts, strict=True)]
        dtype = np.int64 if self.outputs else np.float32
        examples = []
        for texts, label in zip(zip(*parts, strict=True), data.labels, strict=True):
            first = texts[:1] if self.pairs == "apart" else texts
            example: Any = {**self.reader.frame(*first), "label": np.array(label, dtype)}
            if self.pairs != "together" and len(texts) == 2:
                example["second"] = self.reader.frame(*(texts[1:] if self.pairs == "apart" else reversed(texts)))
            examples.append(example)
        return examples

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return what `reading.collate` does (`read` [batch, 2] of pairs that take two rows), and `labels`, int64 or
        float32 [batch]."""
        second = [example["second"] for example in examples if "second" in example]
        batch = reading.collate([*examples, *second])
        if second:
            batch["read"] = batch["read"].view(2, -1).T
        batch["labels"] = torch.from_numpy(np.stack([example["label"] for example in examples]))
        return batch

    def nll(self, logits: Tensor, batch: Mapping[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Return the summed loss, float32 []."""
        if self.outputs:
            return F.cross_entropy(logits.float(), batch["labels"], reduction="sum", label_smoothing=label_smoothing)
        return self.losses(logits, batch["labels"]).sum()

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, float32 [batch]."""
        if self.outputs:
            return F.cross_entropy(scores.float(), targets, reduction="none")
        return (scores.float().squeeze(1) - targets) ** 2

    def scores(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the classes, float [batch, outputs]; of a regression the prediction [batch, 1]."""
        return model(batch)


@dataclass(frozen=True)
class LabelGain(HeadClassification):
    """In training, predict a text's class at each of its tokens, with weights that rise linearly to the last one's.

    So the gradient need not come all the way from the end (Dai and Le 2015, "linear gain"). A text's weights sum to 1.
    """

    def loss(
        self, model: WithHead, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the step's loss, and sums to report."""
        if not model.training:
            return super().loss(model, batch, totals)
        states, labels = model.states(batch), batch["labels"]
        lengths = batch["lengths"].unsqueeze(1)
        steps = torch.arange(1, states.shape[1] + 1, device=states.device).expand(len(labels), -1)
        weights = steps.where(steps <= lengths, 0) / (lengths * (lengths + 1) / 2)
        logits = model.logits(states.flatten(0, 1)).float()
        targets = labels.repeat_interleave(states.shape[1])
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.label_smoothing)
        nll = (weights.flatten() * losses).sum()
        return nll / max((totals or self.counts(batch))["targets"], 1), {"nll": nll.detach(), "targets": len(labels)}
