"""The bidirectional language model: each word from those before it and, apart from that, from those behind it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import SkipValidation
from torch import Tensor

from stemma.data.collation import padded
from stemma.errors import InputError
from stemma.families.elmo.model import ELMo, reversal, turned
from stemma.families.elmo.words import LINE_END, SENTENCE_BEGIN, SENTENCE_END, UNKNOWN, spell
from stemma.layers.sampled_softmax import sampled_cross_entropy

if TYPE_CHECKING:
    from stemma.data.tokenized_corpus import TokenizedSplit
    from stemma.data.tokenizers import Tokenizer

IGNORED = -100


@dataclass(frozen=True)
class BidirectionalLM:
    """The mean of the losses of the two directions (Peters et al. 2018, section 3.1).

    Text is a stream of words with one mark between sentences. Read forward the mark is `<S>` and is predicted as
    `</S>`, read backward the other way round, so that both directions learn from the same stretch. Words outside of
    the softmax are read by their characters and predicted as `<UNK>`.

    Rows begin without a state; the authors carried the LSTM's from window to window, and cut them at 20 words.

    Args:
        words: of the tokenizer, by their numbers. separator: number of the mark that begins a document.
        samples: words that a training step's softmax is estimated from; null: all of them. Held-out text is always
            scored with all.
    """

    words: SkipValidation[tuple[str, ...]]
    separator: int
    samples: int | None = None

    likelihood: ClassVar[bool] = False  # unknown words are one, so that bits per byte would flatter

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise InputError(f"objective.samples: {self.samples}, expected 1 or more words, or null for all")

    @staticmethod
    def prepare_tokenizer(tokenizer: "Tokenizer", options: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer.

        Raises:
            InputError: it is none of words with ELMo's marks.
        """
        marks = (SENTENCE_END, SENTENCE_BEGIN, UNKNOWN)
        if not tokenizer.has_whole_words or any(tokenizer.backend.token_to_id(mark) is None for mark in marks):
            raise InputError(f"tokenizer: not of words with {', '.join(marks)} among them; expected kind: elmo")
        return tokenizer

    def example(self, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return int64 [length + 1] `tokens` as they are."""
        return {"tokens": tokens}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the number of words (ends of sentences included) that each direction predicts."""
        return {"targets": int(self._pairs(batch).sum())}

    def loss(
        self, model: ELMo, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean negative log-likelihood of a word in nats over both directions, and sums to report.

        Args:
            batch: int64 `tokens` [batch, length + 1]; of rows that are padded `lengths` [batch]: pairs of neighbours.
            totals: what `counts` gives for the whole step.
        """
        divisor = max((totals or self.counts(batch))["targets"], 1)
        tokens, pairs = batch["tokens"], self._pairs(batch)
        length = tokens.shape[1] - 1
        lengths = batch.get("lengths", torch.full((len(tokens),), length, device=tokens.device))
        back = reversal(lengths, length)
        types, place = tokens.unique(return_inverse=True)
        begin, end = model.boundaries()
        vectors = model.words(self._characters(types, model.config.longest_word))[place]  # each word is read once
        marks = self._marks(tokens).unsqueeze(-1)
        ahead = torch.where(marks, begin, vectors)[:, :-1]
        behind = turned(torch.where(marks, end, vectors)[:, 1:], back)
        outputs, _ = model.context(torch.stack([ahead, behind]), lengths)
        top = model.dropout(outputs[-1])
        losses = [
            self._direction(model, states, self._targets(targets, mark, model.config.outputs), counted, divisor)
            for states, targets, mark, counted in (
                (top[0], tokens[:, 1:], SENTENCE_END, pairs),
                (top[1], tokens[:, :-1].gather(1, back), SENTENCE_BEGIN, pairs.gather(1, back)),
            )
        ]
        loss = torch.stack(losses).mean()
        forward, backward = (part.detach() * divisor for part in losses)
        return loss, {
            "nll": (forward + backward) / 2,
            "targets": pairs.sum(),
            "forward_loss": forward,
            "backward_loss": backward,
        }

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches that score every pair of neighbouring words of the split's documents once, in both directions.

        Each document is cut into windows of `length` pairs, which begin without a state, as in training.
        """
        rows: list[np.ndarray] = []
        for number in range(split.documents):
            start, end = split.bounds(number)
            tokens = np.append(split.tokens.read(start, end).astype(np.int64), self.separator)
            rows += [tokens[first : first + length + 1] for first in range(0, len(tokens) - 1, length)]
            while len(rows) >= batch_size:
                yield _padded(rows[:batch_size])
                rows = rows[batch_size:]
        if rows:
            yield _padded(rows)

    def training_flops(self, model: ELMo, length: int) -> float:
        """Estimate the floating-point operations of a sequence: 6 for each parameter of context and softmax that a word
        meets; its characters, which are read once a batch however often it comes, are left out."""
        context = sum(parameter.numel() for parameter in model.context.parameters())
        outputs = 0 if model.output is None else min(self.samples or 1 << 60, model.config.outputs)
        return 6.0 * length * (context + 2 * outputs * model.config.projection)

    def _direction(self, model: ELMo, states: Tensor, targets: Tensor, counted: Tensor, divisor: int) -> Tensor:
        assert model.output is not None
        weight, bias = model.output.weight, model.output.bias
        hidden, targets = states.flatten(0, 1), targets.where(counted, IGNORED).flatten()
        samples = self.samples if model.training else None
        return sampled_cross_entropy(hidden, weight, bias, targets, samples=samples, divisor=divisor)

    def _targets(self, tokens: Tensor, mark: str, outputs: int) -> Tensor:
        """Return the rows of the softmax that `tokens` are, where a mark between sentences is `mark`."""
        targets = tokens.where(tokens < outputs, self.words.index(UNKNOWN))
        return targets.where(~self._marks(tokens), self.words.index(mark))

    def _marks(self, tokens: Tensor) -> Tensor:
        """Return where the marks between sentences are: beginnings of documents, and ends of lines."""
        marks = tokens == self.separator
        return marks | (tokens == len(self.words) - 1) if self.words[-1] == LINE_END else marks

    def _pairs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return bool [batch, length]: neighbours that are predicted from each other; not two marks, no padding."""
        marks = self._marks(batch["tokens"])
        pairs = ~(marks[:, 1:] & marks[:, :-1])
        if "lengths" in batch:
            pairs &= torch.arange(pairs.shape[1], device=pairs.device) < batch["lengths"].unsqueeze(1)
        return pairs

    @cached_property
    def _spelled(self) -> dict[int, Tensor]:
        return {}

    def _characters(self, types: Tensor, longest: int) -> Tensor:
        if longest not in self._spelled:
            self._spelled[longest] = torch.from_numpy(spell(self.words, longest))
        return self._spelled[longest][types.cpu()].to(types.device)


def _padded(rows: list[np.ndarray]) -> dict[str, Tensor]:
    return {"tokens": padded(rows), "lengths": torch.tensor([len(row) - 1 for row in rows])}
