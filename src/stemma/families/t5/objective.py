"""Denoising objectives of an encoder-decoder: from a stretch of text to a source, a target and a loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import SkipValidation
from torch import Tensor

from stemma.errors import InputError
from stemma.families.pairs import collate_pairs, count_targets, target_loss, training_flops
from stemma.families.t5 import corruption, tokens
from stemma.families.t5.model import T5

if TYPE_CHECKING:
    from stemma.data.tokenized_corpus import TokenizedSplit
    from stemma.data.tokenizers import Tokenizer

Noise = Literal["spans", "tokens", "suffix", "all"]
SourceForm = Literal["sentinels", "drop", "mask", "mask-or-random", "shuffle"]
TargetForm = Literal["sentinels", "drop", "whole"]


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective, and with other options the alternatives of its paper (Raffel et al. 2020, table 3).

    | | noise | source | target | density |
    |---|---|---|---|---|
    | span corruption | spans | sentinels | sentinels | 0.15 |
    | i.i.d. denoising, spans replaced | tokens | sentinels | sentinels | 0.15 |
    | i.i.d. denoising, tokens dropped | tokens | drop | drop | 0.15 |
    | BERT-style | tokens | mask-or-random | whole | 0.15 |
    | MASS-style | tokens | mask | whole | 0.15 |
    | prefix language model | suffix | drop | drop | |
    | deshuffling | all | shuffle | whole | |
    | language model (the source is empty) | all | drop | drop | |

    Args:
        separator: the token that ends source and target. vocabulary: number of token ids.
        sentinels: ids of <extra_id_0>, <extra_id_1>, ...; the first is also the mask token.
        noise: which tokens are to be predicted. source, target: how the text is written with the noise, and how
            without the rest. density: share of noise. mean_span: its mean length. random_roll: see `span_noise`.
        random: of "mask-or-random": how often noise becomes a random token and not the mask.
    Raises:
        InputError: a number out of its range.
    """

    separator: int
    vocabulary: int
    sentinels: SkipValidation[tuple[int, ...]]
    noise: Noise = "spans"
    source: SourceForm = "sentinels"
    target: TargetForm = "sentinels"
    density: float = 0.15
    mean_span: float = 3.0
    random_roll: bool = False
    random: float = 0.1

    likelihood: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.density < 1:
            raise InputError(f"objective.density: {self.density}, expected a share between 0 and 1")
        if self.mean_span < 1:
            raise InputError(f"objective.mean_span: {self.mean_span}, expected 1 or more tokens")
        if not 0 <= self.random <= 1:
            raise InputError(f"objective.random: {self.random}, expected a probability")

    @staticmethod
    def prepare_tokenizer(tokenizer: "Tokenizer", options: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer with T5's sentinels."""
        return tokens.prepare_tokenizer(tokenizer)

    def example(self, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Turn int64 [length + 1] tokens into `source` and `target`, int64, with the token that ends each.

        Packing gives one token more than the length, for objectives that predict the next one; it is left out.
        """
        return self.corrupted(tokens[:-1], rng)

    def corrupted(self, tokens: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Turn int64 [length] tokens into `source` and `target`."""
        noise = self._draw_noise(len(tokens), rng)
        source = self._write_source(tokens, noise, rng)
        if self.target == "sentinels":
            target = corruption.with_sentinels(tokens, ~noise, self.sentinels)
        else:
            target = tokens if self.target == "whole" else tokens[noise]
        return {"source": np.append(source, self.separator), "target": np.append(target, self.separator)}

    def _draw_noise(self, length: int, rng: np.random.Generator) -> np.ndarray:
        if self.noise == "spans":
            return corruption.span_noise(length, self.density, self.mean_span, rng, roll=self.random_roll)
        if self.noise == "tokens":
            return corruption.token_noise(length, self.density, rng)
        return corruption.suffix_noise(length, rng) if self.noise == "suffix" else np.ones(length, bool)

    def _write_source(self, tokens: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.source == "sentinels":
            return corruption.with_sentinels(tokens, noise, self.sentinels)
        if self.source == "drop":
            return tokens[~noise]
        if self.source == "shuffle":
            return corruption.shuffled(tokens, noise, rng)
        random = self.random if self.source == "mask-or-random" else 0.0
        choices = range(3, self.vocabulary)  # as in the reference: any but padding, end and unknown
        return corruption.masked(tokens, noise, self.sentinels[0], random=random, choices=choices, rng=rng)

    @staticmethod
    def collate(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
        """Stack examples (see `collate_pairs`)."""
        return collate_pairs([one["source"] for one in examples], [one["target"] for one in examples])

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """See `count_targets`."""
        return count_targets(batch)

    def loss(
        self, model: T5, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `target_loss`."""
        return target_loss(model, batch, totals)

    def training_flops(self, model: T5, length: int) -> float:
        """Estimate the floating-point operations of one example of `length` tokens of text (see `pairs`)."""
        drawn = [self.corrupted(np.zeros(length, np.int64), np.random.default_rng(seed)) for seed in range(8)]
        source, target = (sum(len(example[name]) for example in drawn) / 8 for name in ("source", "target"))
        return training_flops(model, source, target)

    def held_out(self, split: "TokenizedSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches over all documents, one behind the other in pieces of `length`, corrupted always alike."""
        examples = (
            self.corrupted(piece, np.random.default_rng([length, index]))
            for index, piece in enumerate(_pieces(split, length))
        )
        while group := list(islice(examples, batch_size)):
            yield self.collate(group)


@dataclass(frozen=True)
class PrefixLM(SpanCorruption):
    """Predict a text's second part from its first, cut at a random place (Raffel et al. 2020, section 3.3.1)."""

    noise: Noise = "suffix"
    source: SourceForm = "drop"
    target: TargetForm = "drop"


def _pieces(split: "TokenizedSplit", length: int) -> Iterator[np.ndarray]:
    """Yield the split's documents, one behind the other, in pieces of `length` tokens and a last shorter one."""
    held = np.zeros(0, np.int64)
    for index in range(split.documents):
        held = np.concatenate([held, split.tokens.read(*split.bounds(index)).astype(np.int64)])
        whole = len(held) // length * length
        yield from held[:whole].reshape(-1, length)
        held = held[whole:]
    if len(held) > 1:
        yield held
