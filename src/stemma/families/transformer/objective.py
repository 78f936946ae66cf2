"""Translation, or any task of pairs of texts: from a batch of them to a loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from stemma.errors import InputError
from stemma.families.pairs import collate_pairs, count_targets, target_loss, training_flops
from stemma.families.transformer.batches import Pairs, TokenBatches
from stemma.families.transformer.model import Transformer

if TYPE_CHECKING:
    from stemma.data.parallel_corpora import ParallelSplit
    from stemma.data.tokenizers import Tokenizer

PADDING = "<pad>"
_USUAL = 32  # tokens of a sentence, by which operations are estimated


@dataclass(frozen=True)
class Translation:
    """The likelihood of each target given its source (Vaswani et al. 2017, sections 5.1 and 5.4).

    A sequence of training data is a batch of pairs of about one length: `training.length` says how many tokens it has
    on either side at most, `training.batch` how many such batches make an update, as the paper's eight GPUs did.

    Args:
        separator: the token that ends source and target.
        label_smoothing: share of each target that is spread evenly over the vocabulary in training.
        longest: pairs with more tokens on a side, ends included, are not trained on.
    Raises:
        InputError: a number out of its range.
    """

    separator: int
    label_smoothing: float = 0.1
    longest: int = 256

    reads_pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"objective.label_smoothing: {self.label_smoothing}, expected a share from 0 to below 1")
        if self.longest < 2:
            raise InputError(f"objective.longest: {self.longest}, expected 2 or more tokens")

    @staticmethod
    def prepare_tokenizer(tokenizer: "Tokenizer", options: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer with a token for padding, with which a decoder begins too.

        One without a token for the unknown, such as byte-level BPE, names its end as that, as GPT-2's does: CTranslate2
        asks for one.
        """
        if tokenizer.unknown is None:
            tokenizer = tokenizer.with_special_tokens(unk_token=tokenizer.token(tokenizer.separator))
        return tokenizer if tokenizer.pad is not None else tokenizer.with_special_tokens(pad_token=PADDING)

    def sequences(self, split: "ParallelSplit", length: int, seed: int, batch: int) -> TokenBatches:
        """Return the training data (see `TokenBatches`)."""
        if self.longest > length:
            raise InputError(f"training.length: {length} tokens hold no pair of objective.longest={self.longest}")
        return TokenBatches(split, length, seed, end=self.separator, longest=self.longest)

    def example(self, tokens: Pairs, rng: np.random.Generator) -> dict[str, Any]:
        """Return a batch of pairs as it is."""
        return {"pairs": tokens}

    @staticmethod
    def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Put the pairs of all batches into one (see `collate_pairs`)."""
        sources, targets = zip(*(pair for example in examples for pair in example["pairs"]), strict=True)
        return collate_pairs(sources, targets)

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """See `count_targets`."""
        return count_targets(batch)

    def loss(
        self, model: Transformer, batch: Mapping[str, Tensor], totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `target_loss`; a model in eval mode is not judged by smoothed targets."""
        return target_loss(model, batch, totals, self.label_smoothing if model.training else 0.0)

    def training_flops(self, model: Transformer, length: int) -> float:
        """Estimate the floating-point operations of a batch of `length` tokens on either side."""
        return training_flops(model, _USUAL, _USUAL) * length / _USUAL

    def held_out(self, split: "ParallelSplit", length: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches over all pairs, by length, of at most `length` tokens on either side."""
        batches = TokenBatches(split, length, 0, end=self.separator, longest=None)
        for pairs in batches.by_length():
            yield self.collate([{"pairs": pairs}])
