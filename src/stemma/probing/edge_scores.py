"""How good decisions about targets are: every target with every label is one (Tenney et al. 2019, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stemma.evaluation.intervals import Interval, over_examples


def count(said: np.ndarray, right: np.ndarray, sentence: np.ndarray, sentences: int) -> np.ndarray:
    """Return int64 [..., sentences, 3]: decisions that are rightly yes, wrongly yes and wrongly no.

    Args:
        said: bool [..., targets, labels]. right: bool [targets, labels]. sentence: int64 [targets], of each target,
            rising.
    """
    each = np.stack([(said & right).sum(-1), (said & ~right).sum(-1), (~said & right).sum(-1)], -1)
    upto = np.concatenate([np.zeros_like(each[..., :1, :]), each.cumsum(-2)], -2)
    starts = np.searchsorted(sentence, np.arange(sentences + 1))
    counts: np.ndarray = np.diff(upto[..., starts, :], axis=-2)
    return counts


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """Return the F1 of counts, integers [..., 3], as of `count`; 0 where there is nothing to find and nothing found."""
    hits = 2.0 * counts[..., 0]
    f1: np.ndarray = hits / np.maximum(hits + counts[..., 1] + counts[..., 2], 1)
    return f1


def f1_interval(counts: np.ndarray) -> Interval:
    """Return micro-F1 of int [sentences, 3] with its bootstrap interval over the sentences: the targets of one are not
    independent."""
    return over_examples(range(len(counts)), lambda drawn: micro_f1(counts[drawn.astype(np.int64)].sum(-2)))


def by_label(said: np.ndarray, right: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and number of targets of each label, for bool [targets, labels] each."""
    hits, given, support = (said & right).sum(0), said.sum(0), right.sum(0)
    scores = {}
    for number, name in enumerate(names):
        f1 = 2 * hits[number] / max(given[number] + support[number], 1)
        scores[name] = {
            "precision": float(hits[number] / max(given[number], 1)),
            "recall": float(hits[number] / max(support[number], 1)),
            "f1": float(f1),
            "support": int(support[number]),
        }
    return scores


def summary(logits: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Return Matthews' correlation over all decisions and, if every target has one label, the likeliest's accuracy.

    Args:
        logits: float [targets, labels]; yes from 0 on. right: bool [targets, labels].
    """
    said = logits >= 0
    yes, wrong, missed = (float(part.sum()) for part in (said & right, said & ~right, ~said & right))
    no = said.size - yes - wrong - missed
    spread = ((yes + wrong) * (yes + missed) * (no + wrong) * (no + missed)) ** 0.5
    found: dict[str, Any] = {"matthews": (yes * no - wrong * missed) / spread if spread else 0.0}
    if (right.sum(1) == 1).all():
        found["accuracy"] = float((logits.argmax(1) == right.argmax(1)).mean())
    return found
