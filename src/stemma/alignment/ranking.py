"""The loss of a reward model: of two responses, the better one is to score higher.

Ouyang et al. 2022, equation 1: all pairs of the K responses to a prompt are one element of the batch, so that each
response is read once and no prompt counts more for having more responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.alignment.comparisons import Comparison, Pair
from stemma.alignment.conversations import Renderer
from stemma.alignment.reading import Batch, CausalReading, Reading
from stemma.errors import InputError


def ranking_loss(scores: Tensor, pairs: Tensor, sizes: Tensor) -> Tensor:
    """Return the sum over prompts of the mean over pairs of -log sigmoid(score of the better - score of the worse).

    Args:
        scores: float [responses]. pairs: int64 [pairs, 2], numbers of the better and the worse response.
        sizes: int64 [pairs]: how many pairs there are of each one's prompt.
    """
    better, worse = scores[pairs[:, 0]], scores[pairs[:, 1]]
    return -(F.logsigmoid(better - worse) / sizes).sum()


def numbered_pairs(examples: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Return `pairs`, counted through all responses of the examples, and `sizes` of `ranking_loss`."""
    pairs: list[Pair] = []
    sizes: list[int] = []
    first = 0
    for example in examples:
        pairs += [(first + better, first + worse) for better, worse in example["pairs"]]
        sizes += [len(example["pairs"])] * len(example["pairs"])
        first += len(example["texts"])
    return torch.tensor(pairs), torch.tensor(sizes)


@dataclass(frozen=True)
class Ranking:
    """The mean over prompts of `ranking_loss`, of a `RewardModel`."""

    reading: Reading

    def example(self, tokens: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the example as it is."""
        return tokens

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return what `Reading.collate` makes of all responses; `pairs` and `sizes` of `ranking_loss`; and `prompts`
        [examples], how many responses each has."""
        pairs, sizes = numbered_pairs(examples)
        return {
            **self.reading.collate([text for example in examples for text in example["texts"]]),
            "pairs": pairs,
            "sizes": sizes,
            "prompts": torch.tensor([len(example["texts"]) for example in examples]),
        }

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of prompts."""
        return {"targets": len(batch["prompts"])}

    def loss(
        self, model: Any, batch: Batch, totals: Mapping[str, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return this batch's share of the update's loss, and sums to report."""
        counts, pairs = self.counts(batch), batch["pairs"]
        scores = model(batch)
        nll = ranking_loss(scores, pairs, batch["sizes"])
        right = (scores[pairs[:, 0]] > scores[pairs[:, 1]]).sum()
        sums: dict[str, Tensor | float] = {"nll": nll.detach(), **counts, "accuracy/pairs": right, "pairs": len(pairs)}
        return nll / max((totals or counts)["targets"], 1), sums


def encode(
    comparisons: Sequence[Comparison], renderer: Renderer, reading: Reading
) -> tuple[list[dict[str, Any]], list[Comparison], int]:
    """Return the examples of comparisons, with the comparisons themselves, and how many pairs were left out because a
    response is too long with its prompt: only whole ones can be judged.

    Raises:
        InputError: all are too long.
    """
    examples, kept, left_out = [], [], 0
    for comparison in comparisons:
        samples = [renderer.sample(comparison.prompt, response) for response in comparison.responses]
        # A text without a prompt begins with one more token.
        sizes = [len(sample) + (isinstance(reading, CausalReading) and not sample.prompt) for sample in samples]
        pairs = [pair for pair in comparison.pairs if all(sizes[number] <= reading.longest for number in pair)]
        left_out += len(comparison.pairs) - len(pairs)
        used = sorted({number for pair in pairs for number in pair})
        if not used:
            continue
        place = {number: new for new, number in enumerate(used)}
        renumbered = tuple((place[better], place[worse]) for better, worse in pairs)
        texts = [reading.frame(samples[number]) for number in used]
        tokens = np.concatenate([text["tokens"] for text in texts])
        examples.append({"texts": texts, "pairs": renumbered, "tokens": tokens})
        kept.append(Comparison(comparison.prompt, tuple(comparison.responses[number] for number in used), renumbered))
    if not examples:
        raise InputError(f"no comparison fits into {reading.longest} tokens (data.longest)")
    return examples, kept, left_out
