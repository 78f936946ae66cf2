"""The two ways to pretrain an LSTM (Dai and Le 2015, sections 2 and 3): predict a text, or write it again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stemma.data.collation import padded
from stemma.data.content_hashes import digest
from stemma.data.shuffled_by_length import ShuffledByLength
from stemma.data.streams import Streams, Window
from stemma.errors import InputError
from stemma.families.lstm.documents import Pieces, documents_by_length
from stemma.families.lstm.model import LSTM, State
from stemma.layers.sampled_softmax import sampled_cross_entropy

if TYPE_CHECKING:
    from stemma.data.tokenized_corpus import TokenizedSplit

IGNORED = -100


@dataclass(frozen=True)
class CarriedCausal:
    """Next-token prediction whose rows go on from update to update; the gradient ends where an update's window begins.

    Held-out documents are read whole, each from its separator on and from an empty state.

    Args:
        separator: id of the token that starts each document.
        separate_documents: the state is forgotten at each separator.
        deviation: of the windows' lengths (see `Streams`; AWD-LSTM: 5).
        activation_penalty: of the mean square of the last layer's states after dropout (AWD-LSTM: 2).
        temporal_penalty: of the mean square of their change from step to step, before dropout (AWD-LSTM: 1).
        samples: tokens that a training step's softmax is estimated from; null: all of them. They are drawn as if the
            tokenizer's ids were by falling frequency, as those of `word` are.
    """

    separator: int
    separate_documents: bool = False
    deviation: float = 0.0
    activation_penalty: float = 0.0
    temporal_penalty: float = 0.0
    samples: int | None = None

    def __post_init__(self) -> None:
        for name in ("deviation", "activation_penalty", "temporal_penalty"):
            if getattr(self, name) < 0:
                raise InputError(f"objective.{name}: {getattr(self, name)}, expected 0 or more")
        _check_samples(self.samples)

    @cached_property
    def carried(self) -> dict[str, Tensor]:
        """The state that each row was left in, float [rows, width] of each layer; empty before the first update."""
        return {}

    def sequences(self, split: "TokenizedSplit", length: int, seed: int, batch: int) -> Streams:
        """Return the windows of `batch` rows."""
        return Streams(split, length, batch, seed, self.deviation)

    def example(self, tokens: Window, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return `tokens` and `targets`, int64 [length]; `row` and `rows`, int64 []; bool [length] `starts`, where
        documents are separate."""
        inputs = tokens.tokens[:-1]
        example = {"tokens": inputs, "targets": tokens.tokens[1:]}
        if self.separate_documents:
            example["starts"] = inputs == self.separator
        return {**example, "row": np.array(tokens.row), "rows": np.array(tokens.rows)}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many targets the batch has: what a loss over several batches must be divided by."""
        return {"targets": int((batch["targets"] != IGNORED).sum())}

    def training_flops(self, model: LSTM, length: int) -> float:
        """Estimate the floating-point operations of a step per sequence: 6 for each parameter that a token meets."""
        return 6.0 * length * (_recurrent(model) + _output(model, self.samples))

    def loss(
        self, model: LSTM, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean negative log-likelihood in nats, with the penalties, and sums to report.

        A model in training goes on from the state of the batch's rows, and leaves it; one in evaluation reads the batch
        from an empty state, in pieces.

        Args:
            batch: int64 [batch, length] `tokens` and `targets` (-100: none); `starts` and rows as `example` makes them.
            totals: what `counts` gives for the whole step, over its micro-batches and workers; the loss is then this
                batch's share of the step's mean. Default: the batch is the step.
        """
        counts = self.counts(batch)["targets"]
        divisor = max((totals or {"targets": counts})["targets"], 1)
        if not model.training:
            loss = _loss_in_pieces(model, batch, divisor)
            return loss, {"nll": loss.detach() * divisor, "targets": torch.tensor(counts)}
        states, state = model.read(batch["tokens"], self._state(batch), batch.get("starts"))
        self._keep(batch, state)
        hidden = model.output_dropout(states)
        loss = _cross_entropy(model, hidden, batch["targets"], divisor, self.samples)
        sums = {"nll": loss.detach() * divisor, "targets": torch.tensor(counts)}
        share = counts / divisor
        if self.activation_penalty:
            loss = loss + share * self.activation_penalty * hidden.square().mean()
        if self.temporal_penalty:
            loss = loss + share * self.temporal_penalty * states.diff(dim=1).square().mean()
        return loss, sums

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of whole documents, of about `batch_size` times `length` tokens each."""
        for rows in documents_by_length(split, batch_size * length):
            yield _padded([(tokens[:-1], tokens[1:]) for tokens in rows])

    def _state(self, batch: Mapping[str, Tensor]) -> State | None:
        """Return the state that the rows of a batch were left in; None: nothing was read yet."""
        if not self.carried:
            return None
        parts = {name: tensor[batch["row"]] for name, tensor in self.carried.items()}
        return tuple((parts[f"hidden.{n}"], parts[f"cells.{n}"]) for n in range(len(parts) // 2))

    def _keep(self, batch: Mapping[str, Tensor], state: State) -> None:
        for number, layer in enumerate(state):
            for name, part in zip(("hidden", "cells"), layer, strict=True):
                key = f"{name}.{number}"
                if key not in self.carried:
                    self.carried[key] = part.new_zeros(int(batch["rows"][0]), part.shape[1])
                self.carried[key][batch["row"]] = part.detach()


@dataclass(frozen=True)
class SequenceAutoencoder:
    """Write a text again after reading it (Dai and Le 2015, section 2): all that is known of it then is the state.

    Reading and writing are one pass through one LSTM over `separator text separator text`; what is scored is the text
    and its end behind the second separator. A text is a document, or a piece of one of at most the length.

    Args:
        separator: id of the token that starts and ends a text. samples: see `CarriedCausal`.
    """

    separator: int
    samples: int | None = None

    likelihood: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    def sequences(self, split: "TokenizedSplit", length: int, seed: int, batch: int) -> ShuffledByLength:
        """Return the texts, shuffled, next to others of about their length."""
        pieces = Pieces(split, length)
        fingerprint = digest([split.fingerprint, "pieces", str(length)])
        return ShuffledByLength(pieces, pieces.sizes, batch, seed, fingerprint)

    def example(self, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Turn a text, int64 [length], into `tokens` and `targets`, int64 [2 * length + 2]."""
        separator = np.array([self.separator])
        reading = np.concatenate([separator, tokens])
        targets = np.concatenate([np.full(len(reading), IGNORED), tokens, separator])
        return {"tokens": np.tile(reading, 2), "targets": targets}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `tokens` and `targets`, int64 [batch, longest], padded at their ends."""
        return _padded([(example["tokens"], example["targets"]) for example in examples])

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return how many targets the batch has: what a loss over several batches must be divided by."""
        return {"targets": int((batch["targets"] != IGNORED).sum())}

    def training_flops(self, model: LSTM, length: int) -> float:
        """Estimate the floating-point operations of a step per text: each token is read twice and scored once."""
        return 6.0 * length * (2 * _recurrent(model) + _output(model, self.samples))

    def loss(
        self, model: LSTM, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean negative log-likelihood in nats, and sums to report; arguments as of `CarriedCausal.loss`."""
        counts = self.counts(batch)["targets"]
        divisor = max((totals or {"targets": counts})["targets"], 1)
        samples = self.samples if model.training else None
        loss = _cross_entropy(model, model.hidden(batch["tokens"]), batch["targets"], divisor, samples)
        return loss, {"nll": loss.detach() * divisor, "targets": torch.tensor(counts)}

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of all texts of the split."""
        pieces, rng = Pieces(split, length), np.random.default_rng(0)
        order = np.argsort(pieces.sizes, kind="stable")
        for start in range(0, len(order), batch_size):
            yield self.collate([self.example(pieces[int(n)], rng) for n in order[start : start + batch_size]])


_PIECE = 512  # tokens of a held-out document that are read at once: what is in memory


def _loss_in_pieces(model: LSTM, batch: Mapping[str, Tensor], divisor: int) -> Tensor:
    state: State | None = None
    loss = torch.zeros((), device=batch["tokens"].device)
    for tokens, targets in zip(batch["tokens"].split(_PIECE, 1), batch["targets"].split(_PIECE, 1), strict=True):
        states, state = model.read(tokens, state)
        loss = loss + _cross_entropy(model, states, targets, divisor)
    return loss


def _cross_entropy(model: LSTM, hidden: Tensor, targets: Tensor, divisor: int, samples: int | None = None) -> Tensor:
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    return sampled_cross_entropy(hidden, model.output_weight, None, targets, samples=samples, divisor=divisor)


def _check_samples(samples: int | None) -> None:
    if samples is not None and samples < 1:
        raise InputError(f"objective.samples: {samples}, expected 1 or more tokens, or null for all")


def _recurrent(model: LSTM) -> int:
    return sum(weight.numel() for weight in model.blocks.parameters() if weight.dim() > 1)


def _output(model: LSTM, samples: int | None) -> int:
    return model.config.hidden * min(samples or model.config.vocabulary, model.config.vocabulary)


def _padded(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
    tokens, targets = zip(*rows, strict=True)
    return {"tokens": padded(tokens), "targets": padded(targets, IGNORED)}
