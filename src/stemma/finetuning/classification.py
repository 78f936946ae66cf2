"""Classification of a text or a pair, and regression, by an output layer (see reading.py for each family's input)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.labelled import LabelledData
from stemma.data.tokenizers import Tokenizer
from stemma.finetuning import reading
from stemma.finetuning.heads import WithHead
from stemma.finetuning.reading import Example, Reader
from stemma.layers.cross_entropy import linear_cross_entropy

IGNORED = -100


@dataclass(frozen=True)
class HeadClassification:
    """The mean cross-entropy of the classes (of a regression: the squared error), of a GPT with its language model's.

    Args:
        outputs: number of classes; 0: a regression.
        language_model: what the loss of predicting each next token of the input is multiplied by and added (Radford et
            al. 2018, section 3.2: 0.5); 0: it is not computed.
    """

    reader: Reader
    outputs: int
    language_model: float = 0.0

    def encode(self, data: LabelledData, tokenizer: Tokenizer) -> list[Example]:
        """Return `tokens`, `segments` of pairs, `read` (see `Reader.frame`) and `label` of each example."""
        parts = [tokenizer.encode_batch(list(column)) for column in zip(*data.texts, strict=True)]
        dtype = np.int64 if self.outputs else np.float32
        framed = (self.reader.frame(*texts) for texts in zip(*parts, strict=True))
        pairs = zip(framed, data.labels, strict=True)
        return [{**example, "label": np.array(label, dtype)} for example, label in pairs]

    def example(self, tokens: Example, rng: np.random.Generator) -> Example:
        """Return the example as it is."""
        return tokens

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return what `reading.collate` does, and `labels`, int64 or float32 [batch]."""
        labels = np.stack([example["label"] for example in examples])
        return {**reading.collate(examples), "labels": torch.from_numpy(labels)}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the number of examples, and that of predicted tokens."""
        counts = {"targets": len(batch["labels"])}
        if self.language_model:
            counts["words"] = int((batch["lengths"] - 1).sum())
        return counts

    def loss(
        self, model: WithHead, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the step's loss, and sums to report."""
        totals = totals or self.counts(batch)
        states = model.states(batch)
        nll = self.losses(model.logits(states, batch), batch["labels"]).sum()
        loss = nll / totals["targets"]
        sums: dict[str, Tensor | float] = {"nll": nll.detach(), "targets": len(batch["labels"])}
        if self.language_model:
            inside = torch.arange(1, states.shape[1] + 1, device=states.device) < batch["lengths"].unsqueeze(1)
            following = batch["tokens"].roll(-1, 1).where(inside, IGNORED)
            weight, divisor = model.backbone.output_weight, max(totals["words"], 1)
            words = linear_cross_entropy(states.flatten(0, 1), weight, following.flatten(), divisor=divisor)
            loss = loss + self.language_model * words
            sums |= {"language_model_loss/words": words.detach() * divisor, "words": int(inside.sum())}
        return loss, sums

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, float32 [batch]."""
        if self.outputs:
            return F.cross_entropy(scores.float(), targets, reduction="none")
        return (scores.float().squeeze(1) - targets) ** 2

    def scores(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the classes, float [batch, outputs]; of a regression the prediction [batch, 1]."""
        return model(batch)
