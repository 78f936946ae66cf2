"""Specialists of classes that a generalist confuses (Hinton, Vinyals and Dean 2015, section 5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stemma.errors import InputError


def confusion_clusters(
    predictions: np.ndarray, clusters: int, *, size: int, seed: int, passes: int = 8
) -> list[list[int]]:
    """Return sets of classes that a generalist is likely to take for each other; no labels are needed.

    Online k-means on the columns of the covariance of its predictions (MacQueen's rule: a centre moves to each of its
    columns by one over how many it has seen), from centres drawn by k-means++. A set is what stands nearest to its
    centre; sets may overlap, and a class may be in none.

    Args:
        predictions: float [examples, classes], probabilities. clusters: how many sets. size: classes of each.
        seed: of the start. passes: how often the columns are gone through.
    Returns:
        sorted numbers of classes, sets in the order of their first one; equal sets once.
    Raises:
        InputError: more sets or larger ones than there are classes.
    """
    classes = predictions.shape[1]
    if not 0 < clusters <= classes or not 0 < size <= classes:
        raise InputError(f"{clusters} specialists of {size} classes: there are only {classes} classes")
    columns = np.cov(predictions, rowvar=False)  # [classes, classes]; column j says what goes with class j
    rng = np.random.default_rng(seed)
    centres = _start(columns, clusters, rng)
    seen = np.ones(clusters)
    for _ in range(passes):
        for column in columns[rng.permutation(classes)]:
            nearest = int(((centres - column) ** 2).sum(1).argmin())
            seen[nearest] += 1
            centres[nearest] += (column - centres[nearest]) / seen[nearest]
    distances = ((centres[:, None] - columns) ** 2).sum(-1)  # [clusters, classes]
    found = {tuple(sorted(map(int, np.argsort(row, kind="stable")[:size]))) for row in distances}
    return [list(one) for one in sorted(found)]


def _start(columns: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Return k-means++'s centres: each next one drawn by its squared distance to those that are there."""
    centres = [columns[rng.integers(len(columns))]]
    while len(centres) < clusters:
        distances = ((columns[:, None] - np.stack(centres)) ** 2).sum(-1).min(1)
        total = distances.sum()
        shares = distances / total if total > 0 else np.full(len(columns), 1 / len(columns))
        centres.append(columns[rng.choice(len(columns), p=shares)])
    return np.stack(centres)


def dustbin_correction(natural: float, trained: float) -> float:
    """Return what is added to the logit of the dustbin, the class of all that is no specialist's.

    A specialist sees more of its classes than there are; it must not believe that.

    Args:
        natural, trained: the share of the specialist's classes in the data, and in what it was trained on.
    """
    return float(np.log((1 - natural) / (1 - trained)) - np.log(natural / trained))


@dataclass(frozen=True)
class Specialist:
    """classes: what it tells apart; its last output is the dustbin's."""

    classes: Sequence[int]

    def cells(self, classes: int) -> Tensor:
        """Return for each of all classes which of the specialist's outputs speaks of it, int64 [classes]."""
        cells = torch.full((classes,), len(self.classes))
        cells[list(self.classes)] = torch.arange(len(self.classes))
        return cells

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Return a specialist's labels for those of all classes, int64 [examples]."""
        return self.cells(classes)[labels]


def combine(
    generalist: Tensor,
    specialists: Sequence[Specialist],
    outputs: Sequence[Tensor],
    *,
    asked: int = 1,
    steps: int = 50,
    tolerance: float = 1e-7,
) -> Tensor:
    """Return the distributions q that minimise `KL(g || q) + sum of KL(p_m || q_m)`, float64 [examples, classes].

    q_m is q with all that is not the specialist's summed in one cell. A specialist is asked where one of the `asked`
    likeliest classes of the generalist is its own; where none is, q is g. The paper descends in the logits of q; this
    is maximum likelihood of grouped data, which expectation-maximisation solves without a step size.

    Args:
        generalist: probabilities, float [examples, classes]. outputs: of each specialist, probabilities, float
            [examples, its classes and the dustbin].
        steps, tolerance: at most so many steps, or until nothing changes by more.
    """
    g = generalist.double()
    top = g.topk(asked).indices
    opinions = []  # of each specialist: whom it is asked about, its cell of each class, and what it says of its cells
    for one, output in zip(specialists, outputs, strict=True):
        rows = torch.isin(top, torch.tensor(list(one.classes))).any(1).nonzero().flatten()
        opinions.append((rows, one.cells(g.shape[1]), output.double()[rows]))
    voices = torch.ones(len(g), 1, dtype=g.dtype)
    for rows, _, _ in opinions:
        voices[rows] += 1
    q = g.clamp_min(1e-12)
    q = q / q.sum(1, keepdim=True)
    for _ in range(steps):
        # The probability of a cell, shared among its classes as q shares it; the generalist's cells are single classes.
        total = g.clone()
        for rows, cells, says in opinions:
            own = q[rows]
            inside = torch.zeros_like(says).index_add_(1, cells, own)
            total[rows] += own * (says / inside.clamp_min(1e-300))[:, cells]
        before, q = q, total / voices
        if (q - before).abs().max() < tolerance:
            break
    return q
