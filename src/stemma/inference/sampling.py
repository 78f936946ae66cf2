"""Choosing the next token: filters over the logits and a draw from what they leave, for all rows at once.

A filter's parameter is one number for all rows or a tensor [rows, 1]. The filters come in transformers' order:
repetition penalty, temperature, top-k, top-p, min-p. A filter sets what it removes to -inf; tokens that tie with the
last one kept are kept too, so that the result does not depend on how a sort breaks ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError

_NUCLEUS_GUESS = 256  # tokens that top-p looks at first; sorting a large vocabulary costs a hundred times more


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: the logits are divided by it; 0 takes the most likely token.
        top_k: keep the k most likely tokens. top_p: keep the smallest set of most likely tokens that together have at
            least this probability (Holtzman et al. 2020, section 3.1). min_p: keep tokens at least this times as
            probable as the most likely one (Nguyen et al. 2024). None: no such filter.
        repetition_penalty: what the text already contains has its logit divided by this if positive, multiplied if
            negative (Keskar et al. 2019, section 4.1). 1: none.
    Raises:
        InputError: a parameter out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _expect("temperature", self.temperature, self.temperature >= 0, "0 (always the most likely token) or more")
        _expect("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more")
        _expect("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "more than 0 and at most 1")
        _expect("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1")
        penalty = self.repetition_penalty
        _expect("repetition_penalty", penalty, penalty > 0, "more than 0 (1 is none)")

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0 or self.top_k == 1

    def choose(self, logits: Tensor, uniform: Tensor | None, seen: Tensor | None = None) -> Tensor:
        """Return the chosen tokens, int64 [rows].

        Args:
            logits: float32 [rows, vocabulary].
            uniform: float64 [rows] in [0, 1), one draw a row; not needed when `greedy`.
            seen: bool [rows, vocabulary], the tokens that a row's text contains; needed for the penalty only.
        """
        if self.repetition_penalty != 1 and seen is not None:
            logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if self.greedy or uniform is None:
            return logits.argmax(-1)
        return draw(self.filter(logits), uniform)

    def filter(self, logits: Tensor) -> Tensor:
        """Return the logits of the distribution to draw from (temperature above 0, penalty already applied)."""
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = keep_top_p(logits, self.top_p, most=self.top_k)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    """Make tokens marked in `seen`, bool [rows, vocabulary], less likely (for a penalty above 1)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int | Tensor) -> Tensor:
    """Keep the k largest logits of each row, and what ties with the smallest of them."""
    most = min(int(k.max()) if isinstance(k, Tensor) else k, logits.shape[-1])
    largest = logits.topk(most, dim=-1).values
    last = largest.gather(-1, k.clamp_max(most) - 1) if isinstance(k, Tensor) else largest[:, -1:]
    return logits.masked_fill(logits < last, -torch.inf)


def keep_top_p(logits: Tensor, p: float | Tensor, *, most: int | None = None) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches p, at least one.

    Args:
        logits: float32 [rows, vocabulary]; -inf where a token is already removed.
        most: no row has more than so many tokens left (ties apart).
    """
    vocabulary = logits.shape[-1]
    total = logits.logsumexp(-1, keepdim=True)
    for size in (min(most or _NUCLEUS_GUESS, vocabulary), vocabulary):
        largest = logits.topk(size, dim=-1).values
        cumulative = (largest - total).exp().cumsum(-1)
        if size == vocabulary or bool((cumulative[:, -1:] >= p).all()):
            break
    before = cumulative - (largest - total).exp()  # probability of the tokens that are more likely than this one
    last = torch.where(before < p, largest, torch.inf).amin(-1, keepdim=True)
    return logits.masked_fill(logits < last, -torch.inf)


def keep_min_p(logits: Tensor, p: float | Tensor) -> Tensor:
    """Keep the tokens whose probability is at least p times that of the most likely one."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + torch.as_tensor(p).log(), -torch.inf)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token of softmax(logits) for each row by inverting the cumulative distribution at `uniform`.

    Args:
        logits: float32 [rows, vocabulary]. uniform: float64 [rows] in [0, 1).
    Returns:
        int64 [rows].
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)  # in float32 the sums of 50,000 terms would be off by 1e-5
    total = cumulative[:, -1:]
    threshold = torch.minimum(uniform.unsqueeze(-1) * total, total.nextafter(torch.zeros_like(total)))
    # The first token whose cumulative probability exceeds the threshold: never one of probability 0.
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def log_probabilities_of(tokens: Tensor, logits: Tensor) -> Tensor:
    """Return float32 [rows]: the natural logarithm of softmax(logits) at tokens, int64 [rows]."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def uniforms(seed: int, sample: int, prompt: Sequence[int], count: int) -> np.ndarray:
    """Return the numbers, float64 [count] in [0, 1), that decide one sample's tokens.

    They are a pure function of the seed, the sample's number and the prompt, so a text does not depend on what else is
    in the batch, and two prompts do not share their luck. Number i decides token i.
    """
    return np.random.default_rng([seed, sample, len(prompt), *prompt]).random(count)


def _expect(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}, expected {expected}")
