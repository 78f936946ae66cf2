"""What the losses of all output layers share; a GPT's goes on learning its language beside the task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stemma.finetuning.heads import WithHead
from stemma.finetuning.reading import Example, Reader
from stemma.layers.cross_entropy import linear_cross_entropy

IGNORED = -100


@dataclass(frozen=True)
class HeadObjective(ABC):
    """The mean loss of an output layer; a task says what its `nll` is, and over how many `labels`.

    Args:
        reader: see `reading.Reader`.
        language_model: what the loss of predicting each next token of the input is multiplied by and added (Radford et
            al. 2018, section 3.2: 0.5); 0: it is not computed.
        label_smoothing: in training, share of each target that is spread evenly over all classes.
    """

    reader: Reader
    language_model: float = 0.0
    label_smoothing: float = field(default=0.0, kw_only=True)

    def example(self, tokens: Example, rng: np.random.Generator) -> Example:
        """Return the example as it is."""
        return tokens

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the number of labels, and that of predicted tokens."""
        counts = {"targets": len(batch["labels"])}
        if self.language_model:
            counts["words"] = int((batch["lengths"] - 1).sum())
        return counts

    def loss(
        self, model: WithHead, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the step's loss, and sums to report."""
        totals = totals or self.counts(batch)
        # The language model's loss needs all states.
        states = model.states(batch) if self.language_model else None
        read = model.read(batch) if states is None else states.flatten(0, 1)[batch["read"]]
        nll = self.nll(model.logits(read), batch, self.label_smoothing if model.training else 0.0)
        # A batch of windows may answer for no label.
        loss = nll / max(totals["targets"], 1)
        sums: dict[str, Tensor | float] = {"nll": nll.detach(), "targets": len(batch["labels"])}
        if states is not None:
            inside = torch.arange(1, states.shape[1] + 1, device=states.device) < batch["lengths"].unsqueeze(1)
            following = batch["tokens"].roll(-1, 1).where(inside, IGNORED)
            weight, divisor = model.backbone.output_weight, max(totals["words"], 1)
            words = linear_cross_entropy(states.flatten(0, 1), weight, following.flatten(), divisor=divisor)
            loss = loss + self.language_model * words
            sums |= {"language_model_loss/words": words.detach() * divisor, "words": int(inside.sum())}
        return loss, sums

    @abstractmethod
    def nll(self, logits: Tensor, batch: Mapping[str, Tensor], label_smoothing: float = 0.0) -> Tensor:
        """Return the summed loss of a batch, float32 [], of the output layer's logits, float [reads, outputs]."""
