"""What a rollout becomes for the updates: parts that are computed at once, and tensors about all responses.

Tensors are [responses, length] with a mask; the parts say which responses they hold. The parts are made once for a
rollout and are the same in the passes without gradients and in all updates. So what is computed twice with the same
weights is equal to the last bit: before the first update all ratios are exactly 1, and the divergence of a policy from
a reference that it equals is exactly 0.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.alignment.reading import IGNORED, Batch, Reading, Sample
from stemma.inference.sampling import log_probabilities_of
from stemma.layers.linear import linear
from stemma.layers.token_log_probabilities import chunk_rows, token_log_probabilities
from stemma.training.lora import without_lora


@dataclass(frozen=True)
class Part:
    """Responses that are computed at once.

    Args:
        rows: int64 [responses of the part], their numbers. batch: what `reading` made of them, at the places where a
            token was chosen. tokens: int64 [places], these tokens.
    """

    rows: Tensor
    batch: Batch
    tokens: Tensor


@dataclass(frozen=True)
class Experience:
    """All that the updates of a rollout need.

    Args:
        mask: bool, True at the responses' tokens. old: log-probabilities of the policy that wrote them.
        advantages: of the tokens. reference: the reference's log-probabilities.
        values, returns: of PPO.
    """

    mask: Tensor
    old: Tensor
    reference: Tensor
    advantages: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None


@dataclass(frozen=True)
class Policy:
    """A model that writes, and how it reads what it wrote.

    Args:
        model: in eval mode, so that no dropout makes a ratio. reference: a model that is not trained; None: the model
            itself without its adapters. vocabulary: ids of the tokenizer; the model may have more, which no text has.
        temperature: the logits are divided by it, where responses are written and everywhere else.
    """

    model: Any
    reading: Reading
    reference: Any | None
    vocabulary: int
    temperature: float

    def output(self, model: Any) -> Tensor:
        """Return the output projection of the tokens that there are, float [vocabulary, hidden]."""
        return model.output_weight[: self.vocabulary]

    def log_probabilities(self, part: Part) -> Tensor:
        """Return those of a part's tokens as the policy is now, float32 [tokens], with gradients."""
        states = self.reading.states(self.model, part.batch)
        return token_log_probabilities(states, self.output(self.model), part.tokens, self.temperature)

    def states_of(self, model: Any, part: Part) -> Tensor:
        """Return the states before each token, float [tokens, hidden], as an update computes them: some layers add up
        in another order where there will be no gradients."""
        with torch.enable_grad():
            return self.reading.states(model, part.batch).detach()

    @contextmanager
    def as_reference(self) -> Iterator[Any]:
        """Give the block the reference as a model."""
        if self.reference is not None:
            yield self.reference
            return
        with without_lora(self.model):
            yield self.model


@dataclass(frozen=True)
class Recollection:
    """What the policy and its reference say of a rollout, before any update; float32 [responses, length].

    Args:
        log_probabilities, reference: of the tokens. entropy: of the policy at each token. kl: the divergence at each
            token, exactly, a sum over the vocabulary.
    """

    log_probabilities: Tensor
    reference: Tensor
    entropy: Tensor
    kl: Tensor


@torch.no_grad()
def recollect(policy: Policy, parts: Sequence[Part], mask: Tensor) -> Recollection:
    """Read a rollout again as the updates will."""
    found = [torch.zeros(mask.shape, device=mask.device) for _ in fields(Recollection)]
    for part in parts:
        ours = policy.states_of(policy.model, part)
        with policy.as_reference() as reference:
            theirs = policy.states_of(reference, part)
            weights = policy.output(policy.model), policy.output(reference)
        rows = chunk_rows(weights[0])
        chunks = zip(ours.split(rows), theirs.split(rows), part.tokens.split(rows), strict=True)
        numbers = [_compare(one, other, tokens, weights, policy.temperature) for one, other, tokens in chunks]
        for tensor, values in zip(found, zip(*numbers, strict=True), strict=True):
            tensor[part.rows] = spread(torch.cat(values), mask[part.rows])
    return Recollection(*found)


def _compare(
    ours: Tensor, theirs: Tensor, tokens: Tensor, weights: tuple[Tensor, Tensor], temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of `Recollection` of some tokens; the first two as `token_log_probabilities` computes them."""
    logits, other = (
        linear(states, weight).float() / temperature for states, weight in zip((ours, theirs), weights, strict=True)
    )
    own, reference = logits.log_softmax(-1), other.log_softmax(-1)
    shares = own.exp()
    return (
        log_probabilities_of(tokens, logits),
        log_probabilities_of(tokens, other),
        -(shares * own).sum(-1),
        (shares * (own - reference)).sum(-1),
    )


def divide(
    reading: Reading,
    samples: Sequence[Sample],
    *,
    minibatches: int,
    most_rows: int | None,
    rng: np.random.Generator,
    device: torch.device,
) -> list[list[Part]]:
    """Deal the responses out to minibatches at random; in each, put those of about the same length into one part.

    Args:
        most_rows: responses of a part; None: a minibatch is one part.
    """
    dealt = []
    for numbers in np.array_split(rng.permutation(len(samples)), minibatches):
        numbers = numbers[np.argsort([len(samples[number]) for number in numbers], kind="stable")]
        pieces = np.array_split(numbers, -(-len(numbers) // (most_rows or len(numbers))))
        dealt.append([_part(reading, samples, piece, device) for piece in pieces])
    return dealt


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Return values of tokens, float [tokens], as [responses, length], 0 where `mask` is False."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def mask_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return bool [responses, length of the longest], True at the tokens of each response."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device).unsqueeze(1)


def _part(reading: Reading, samples: Sequence[Sample], numbers: np.ndarray, device: torch.device) -> Part:
    batch = reading.batch([samples[number] for number in numbers], device)
    choosing = batch["targets"] != IGNORED
    tokens = batch["targets"][choosing]
    return Part(torch.from_numpy(numbers).to(device), {**batch, "places": batch["places"][choosing]}, tokens)
