"""Held-out evaluation: loss, perplexity and bits per byte of the raw text."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.training.distributed import Workers, release
from stemma.training.objective import Batch, HeldOut, LossModule, Measured, means


@dataclass(frozen=True)
class Evaluation:
    """The result of scoring held-out text.

    Args:
        loss: mean negative log-likelihood of a target, in nats. perplexity: its exponential.
        bits_per_byte: total negative log-likelihood in bits per UTF-8 byte of the raw text, which unlike the others
            can be compared between tokenizers; None where the objective is no likelihood of the text.
        targets: number of tokens (of a fine-tuned task: examples) scored.
        metrics, score: of a fine-tuned task, see `objective.Measurement`.
        parts: the objective's other sums, as means (see `objective.means`).
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    targets: int
    metrics: dict[str, float] | None = None
    score: float | None = None
    parts: dict[str, float] | None = None

    def numbers(self) -> dict[str, float]:
        """Return what a log of metrics takes, by name."""
        values = {**asdict(self), **(self.metrics or {}), **(self.parts or {})}
        return {f"held_out_{name}": value for name, value in values.items() if isinstance(value, int | float)}

    def in_words(self, step: int, best: bool) -> str:
        """Return one line for the user; `best`: no earlier evaluation was better."""
        words = [f"step {step:,}", f"held-out loss {self.loss:.4f}"]
        if self.metrics is None:
            words.append(f"perplexity {self.perplexity:.2f}")
        words += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in (self.metrics or {}).items()]
        if self.bits_per_byte is not None:
            words.append(f"{self.bits_per_byte:.4f} bits per byte")
        parts = (self.parts or {}).items()
        words += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in parts if "loss" in name]
        return "  ".join([*words, *["best so far"] * best])


@torch.no_grad()
def evaluate(
    loss_module: nn.Module, held_out: HeldOut | Measured, workers: Workers, precision: AbstractContextManager[None]
) -> Evaluation:
    """Score held-out text with the model in evaluation mode; the workers share the batches.

    Args:
        loss_module: what `LossModule` makes of model and objective. precision: entered around the whole pass.
    """
    loss_module.eval()
    if isinstance(held_out, Measured):
        return _measured(loss_module, held_out, precision)
    sums: dict[str, float] = {"nll": 0.0, "targets": 0.0}
    with precision:
        for batch, counted in _share(held_out.batches(), workers):
            _, metrics = loss_module({name: tensor.to(workers.device) for name, tensor in batch.items()})
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value) * counted
    release(loss_module)
    loss_module.train()
    sums = workers.sum(sums)
    loss = sums["nll"] / max(sums["targets"], 1)
    bits = None if not held_out.bytes else sums["nll"] / (math.log(2) * held_out.bytes)
    return Evaluation(loss, math.exp(min(loss, 700.0)), bits, int(sums["targets"]), parts=means(sums) or None)


def _measured(loss_module: nn.Module, held_out: Measured, precision: AbstractContextManager[None]) -> Evaluation:
    """Let each worker measure everything: tasks have few examples, and their metrics are no sums."""
    assert isinstance(loss_module, LossModule)
    with precision:
        result = held_out.measure(loss_module.model)
    release(loss_module)
    loss_module.train()
    perplexity = math.exp(min(result.loss, 700.0))
    return Evaluation(result.loss, perplexity, None, result.examples, dict(result.metrics), result.score)


class SampledDocuments:
    """About `tokens` tokens of a split, as documents spread evenly over it; what `scoring_windows` needs of a split.

    A document longer than that is cut, and its bytes counted in proportion.
    """

    def __init__(self, split: TokenizedSplit, tokens: int) -> None:
        share = min(tokens / max(len(split.tokens), 1), 1.0)
        reached = np.floor(np.arange(split.documents + 1) * share)
        self.tokens, self._split, self._most = split.tokens, split, tokens
        self._chosen = np.flatnonzero(np.diff(reached)) if share < 1 else np.arange(split.documents)
        if len(self._chosen) == 0:
            self._chosen = np.arange(min(split.documents, 1))
        sizes = np.diff(np.asarray(split.document_starts), append=len(split.tokens))[self._chosen]
        kept = np.minimum(sizes, tokens) / sizes
        self.documents = len(self._chosen)
        self.bytes = round(float((split.document_bytes[self._chosen] * kept).sum()))

    def bounds(self, index: int) -> tuple[int, int]:
        """Return where a chosen document's tokens begin, with its separator, and end."""
        start, end = self._split.bounds(int(self._chosen[index]))
        return start, min(end, start + self._most)


def _share(batches: Iterator[Batch], workers: Workers) -> Iterator[tuple[Batch, bool]]:
    """Deal the batches out. All workers get equally many, as sharded models need; some do not count."""
    while dealt := list(islice(batches, workers.world)):
        if workers.rank < len(dealt):
            yield dealt[workers.rank], True
        else:
            yield dealt[0], False
