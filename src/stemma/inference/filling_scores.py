"""How likely given pieces are in a GLM's blanks: one forward pass with all pieces written in an order."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.glm.examples import IGNORED, collate, filled_example
from stemma.families.glm.tokens import GLMTokens
from stemma.inference.sampling import log_probabilities_of
from stemma.layers.masks import Mask


@torch.inference_mode()
def score_fillings(
    model: Any,
    ids: GLMTokens,
    contexts: Sequence[Sequence[int]],
    fillings: Sequence[Sequence[Sequence[int]]],
    *,
    orders: int = 1,
    batch_size: int = 32,
    seed: int = 0,
) -> list[list[float]]:
    """Return, for each context, the log-probability of each of its given pieces with its end, in the order of the text.

    It depends on the order in which the pieces are written.

    Args:
        contexts: Part A as token ids. fillings: for each context, the ids of the piece for each of its blanks.
        orders: 1: from left to right. More: the mean over that many orders, all of them if there are no more, else
            drawn without replacement by `seed`.
    Raises:
        InputError: as many pieces as blanks are expected, and at least one.
    """
    jobs = []
    for number, (context, pieces) in enumerate(zip(contexts, fillings, strict=True)):
        places = [place for place, token in enumerate(context) if token in ids.blanks]
        if not places or len(places) != len(pieces):
            raise InputError(f"context {number + 1} has {len(places)} blanks, got {len(pieces)} pieces")
        for order in _orders(len(places), orders, np.random.default_rng([seed, number])):
            example = filled_example(
                context, [places[i] for i in order], [pieces[i] for i in order], ids.piece_start, ids.piece_end
            )
            jobs.append((number, order, example))
    sums = [[0.0] * len(pieces) for pieces in fillings]
    counts = [0] * len(contexts)
    jobs.sort(key=lambda job: len(job[2]["tokens"]))
    device = model.output_weight.device
    for first in range(0, len(jobs), batch_size):
        part = jobs[first : first + batch_size]
        batch = {name: tensor.to(device) for name, tensor in collate([job[2] for job in part], ids.end).items()}
        for (number, order, _), scores in zip(part, target_scores(model, batch), strict=True):
            counts[number] += 1
            start = 0
            for blank in order:
                stop = start + len(fillings[number][blank]) + 1
                sums[number][blank] += sum(scores[start:stop])
                start = stop
    return [[total / counts[number] for total in totals] for number, totals in enumerate(sums)]


def target_scores(model: Any, batch: Mapping[str, Tensor]) -> list[list[float]]:
    """Return the log-probabilities of each row's targets in their order."""
    mask = Mask(causal=True, prefix_lengths=batch["context_lengths"])
    learned = batch["targets"] != IGNORED
    states = model.hidden(batch["tokens"], batch["positions"], mask, places=learned.flatten().nonzero().squeeze(1))
    scores = log_probabilities_of(batch["targets"][learned], model.logits(states).float())
    return [row.tolist() for row in scores.split(learned.sum(1).tolist())]


def _orders(blanks: int, wanted: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    if wanted <= 1:
        return [tuple(range(blanks))]
    if factorial(blanks) <= wanted:
        return list(permutations(range(blanks)))
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < wanted:
        drawn[tuple(rng.permutation(blanks).tolist())] = None
    return list(drawn)
