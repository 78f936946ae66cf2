"""A smaller BERT taught by a larger one (Sanh et al. 2019, "DistilBERT, a distilled version of BERT: smaller, faster,
cheaper and lighter", sections 2 and 3).

loss = soft * temperature^2 * divergence from the teacher at the masked places
     + hard * cross-entropy of the masked tokens
     + hidden * (1 - cosine of the last hidden states) at all tokens
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma import families
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.distillation.linear_divergence import SoftLoss, linear_divergence
from stemma.distillation.teachers import hidden_distance, order_of, targets_of
from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.bert.objective import MaskedLanguageModel
from stemma.families.bert.passages import Passage
from stemma.families.directory import resolve
from stemma.families.dispatch import with_article
from stemma.layers.cross_entropy import linear_cross_entropy
from stemma.layers.ensembles import Mean
from stemma.layers.linear import linear
from stemma.layers.masks import Mask

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class MaskedTeacher:
    """A BERT whose tokens are those of its student, perhaps in another order.

    Args:
        weight, bias: of its output, float [vocabulary, hidden] and [vocabulary], rows in the student's order.
        order: its id for each of the student's, int64 [vocabulary]; None: the same.
    """

    model: BERT
    weight: Tensor
    bias: Tensor
    order: Tensor | None = None

    @torch.no_grad()
    def states(self, batch: Batch, mask: Mask | None, places: Tensor) -> Tensor:
        """Return its last states at some places of a batch, float [places, hidden]."""
        tokens = batch["tokens"] if self.order is None else self.order[batch["tokens"]]
        return self.model.hidden(tokens, batch["segments"], mask, places)

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """Return the logits at such states, float [places, vocabulary], in the student's order."""
        prepared = self.model.masked_head(states)
        return linear(prepared, self.weight.to(prepared.dtype), self.bias.to(prepared.dtype))


@dataclass(frozen=True)
class TaughtMasked:
    """The loss of DistilBERT on texts that are masked anew each time they are seen, in rows without padding.

    Args:
        masked: how texts are masked. soft_loss, mean, weights: see `tokens.Taught`; scale, hidden: see there.
        everywhere: the teachers are listened to at all tokens, not at the masked ones alone.
    """

    masked: MaskedLanguageModel
    teachers: Sequence[MaskedTeacher]
    soft_loss: SoftLoss
    mean: Mean = "arithmetic"
    weights: Sequence[float] | None = None
    scale: float = 1.0
    hidden: float = 0.0
    everywhere: bool = False

    def example(self, tokens: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Mask an item (see material.py)."""
        return self.masked.example(Passage(tokens["tokens"], np.zeros_like(tokens["tokens"])), rng)

    def collate(self, examples: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Return the batch of `MaskedLanguageModel.collate` with `real`, int64 [tokens], the places of all tokens, and
        `masked`, int64 [masked], where the masked ones stand among these."""
        batch = self.masked.collate(examples)
        documents = batch.get("document_ids")
        real = torch.arange(batch["tokens"].numel())
        batch["real"] = real if documents is None else real[documents.flatten() >= 0]
        batch["masked"] = torch.searchsorted(batch["real"], batch["places"])
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many masked tokens a batch has, and how many tokens in all: each loss is a mean over its own."""
        return {"targets": len(batch["targets"]), "tokens": len(batch["real"])}

    def loss(
        self, model: BERT, batch: Batch, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the update's loss, and sums to report: `soft`, `hard` and `hidden`, the means
        times the number of targets."""
        own = self.counts(batch)
        totals = totals or own
        mask = Mask(document_ids=batch["document_ids"]) if "document_ids" in batch else None
        # Of the last layer no other states are computed.
        whole = self.everywhere or self.hidden > 0
        read = batch["real"] if whole else batch["places"]
        states = model.hidden(batch["tokens"], batch["segments"], mask, read)
        theirs = [teacher.states(batch, mask, read) for teacher in self.teachers]
        loss, soft, hard = self._soft_and_hard(model, batch, states, theirs, totals, whole)
        loss = self.scale * loss
        parts = {"soft": soft, "hard": hard}
        if self.hidden:
            apart = hidden_distance(states, theirs) / max(totals["tokens"], 1)
            loss = loss + self.hidden * apart
            parts["hidden"] = apart.detach()
        sums = {name: part * totals["targets"] for name, part in {"nll": loss.detach(), **parts}.items()}
        return loss, {**sums, "targets": own["targets"], "tokens": own["tokens"]}

    def _soft_and_hard(
        self,
        model: BERT,
        batch: Batch,
        states: Tensor,
        theirs: Sequence[Tensor],
        totals: Mapping[str, int],
        whole: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weighted mean of soft and hard loss, and both."""
        size = self.masked.bert_tokens.vocabulary
        weight, bias = model.masked_weight[:size], model.masked_head.bias[:size]
        temperature, masked = self.soft_loss.temperature, batch["masked"]
        if not self.everywhere:
            chosen = states[masked] if whole else states
            at = [own[masked] for own in theirs] if whole else theirs
            targets = targets_of(self.teachers, at, temperature, self.mean, self.weights)
            divisor = max(totals["targets"], 1)
            head = model.masked_head(chosen)
            return linear_divergence(
                head, weight, targets, batch["targets"], self.soft_loss, bias=bias, divisor=divisor
            )
        head = model.masked_head(states)
        targets = targets_of(self.teachers, theirs, temperature, self.mean, self.weights)
        nothing = torch.zeros(len(head), dtype=torch.int64, device=head.device)
        alone = replace(self.soft_loss, weight=1.0)
        divisor = max(totals["tokens"], 1)
        soft, _, _ = linear_divergence(head, weight, targets, nothing, alone, bias=bias, divisor=divisor)
        hard = linear_cross_entropy(
            head[masked], weight, batch["targets"], bias=bias, divisor=max(totals["targets"], 1)
        )
        return torch.lerp(hard, soft, self.soft_loss.weight), soft.detach(), hard.detach()


def load_masked_teachers(
    names: Sequence[str], tokenizer: Tokenizer, longest: int, device: Any = None
) -> list[MaskedTeacher]:
    """Load the teachers of a BERT.

    Args:
        tokenizer, longest: of the student: most tokens of a text.
    Raises:
        InputError: no such model, no BERT, one of another vocabulary, or one that reads less.
    """
    return [_load(name, tokenizer, longest, device) for name in names]


def _load(name: str, tokenizer: Tokenizer, longest: int, device: Any) -> MaskedTeacher:
    directory = resolve(name)
    model: Any = families.load(directory, dtype=torch.float32, device=device)
    if not isinstance(model, BERT):
        raise InputError(
            f"objective.teachers: {name} is {with_article(model)}, and the student a BERT; expected a BERT"
        )
    if model.config.context < longest:
        raise InputError(
            f"objective.teachers: {name} reads {model.config.context} tokens at most; expected "
            f"data.longest={model.config.context}"
        )
    order = order_of(load_tokenizer(directory), tokenizer, name)
    model.requires_grad_(False)
    order = None if order is None else order.to(model.masked_weight.device)
    rows: Any = slice(tokenizer.vocabulary) if order is None else order
    return MaskedTeacher(model.eval(), model.masked_weight[rows], model.masked_head.bias[rows], order)
