"""Where the right answer stands among all candidates, and what that comes to (Petroni et al. 2019, section 4.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.evaluation.intervals import over_examples

KINDS = ("1-1", "N-1", "N-M")
CURVE = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_SHOWN = 10


@dataclass(frozen=True)
class Answered:
    """What came out for some facts.

    Args:
        rank: int64 [facts], of the right object, from 1; a tie counts against it.
        filtered: likewise with the subject's other right objects taken out.
        log_probability: float64 [facts], of the right object. best: int64 [facts, up to 10], the best candidates.
    """

    rank: np.ndarray
    filtered: np.ndarray
    log_probability: np.ndarray
    best: np.ndarray

    @classmethod
    def of(cls, scores: Tensor, gold: Sequence[int], others: Sequence[Sequence[int]]) -> "Answered":
        """Rank by float [facts, candidates] scores.

        Args:
            gold: for each fact, the right candidate. others: for each, the further right ones.
        """
        own = scores.gather(1, torch.tensor(gold).unsqueeze(1))
        not_below = ~(scores < own)  # so that a score that is not a number is no success
        rank = not_below.sum(1).numpy()
        removed = np.array([int(row[list(also)].sum()) for row, also in zip(not_below, others, strict=True)], np.int64)
        best = scores.topk(min(_SHOWN, scores.shape[1])).indices.numpy()
        return cls(rank, rank - removed, own.squeeze(1).double().numpy(), best)

    @classmethod
    def joined(cls, parts: Sequence["Answered"]) -> "Answered":
        """Return facts after facts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def chosen(cls, options: Sequence["Answered"], which: np.ndarray) -> "Answered":
        """Return for each fact what option `which[fact]` said."""
        rows = np.arange(len(which))
        names = cls.__dataclass_fields__
        return cls(*(np.stack([getattr(option, name) for option in options])[which, rows] for name in names))


def precision_at(ranks: np.ndarray, k: int) -> float:
    """Return the share of facts whose object is among the first k."""
    return float((ranks <= k).mean())


def measures_of(ranks: np.ndarray, filtered: np.ndarray) -> dict[str, float]:
    """Return P@1, P@10 and the mean reciprocal rank of some facts, raw and filtered."""
    found: dict[str, float] = {}
    for name, one in (("", ranks), ("filtered_", filtered)):
        found |= {f"{name}p_at_{k}": precision_at(one, k) for k in (1, 10)}
        found[f"{name}mrr"] = float((1 / one).mean())
    return found


def summary_of(
    ranks: Mapping[str, tuple[np.ndarray, np.ndarray]], kinds: Mapping[str, str], candidates: int
) -> dict[str, Any]:
    """Return what the ranks of several relations come to.

    Args:
        ranks: of each relation, raw and filtered. kinds: "1-1", ... of each. candidates: how many were ranked.
    Returns:
        facts; relations: the measures of each; macro: their means over the relations, with `p_at_1_interval`, a 95 %
        bootstrap interval over relations; micro: the measures of all facts; by_kind: macro measures within each kind;
        curve: [k, macro P@k, macro filtered P@k].
    """
    each = {name: measures_of(*both) | {"facts": len(both[0])} for name, both in ranks.items()}
    interval = over_examples([row["p_at_1"] for row in each.values()])
    in_kind = {kind: [name for name in ranks if kinds.get(name) == kind] for kind in KINDS}
    points = [k for k in CURVE if k < candidates] + [candidates]
    return {
        "facts": sum(len(both[0]) for both in ranks.values()),
        "relations": each,
        "macro": _means(each.values()) | {"p_at_1_interval": [interval.low, interval.high]},
        "micro": measures_of(*(np.concatenate(side) for side in zip(*ranks.values(), strict=True))),
        "by_kind": {kind: _means([each[name] for name in names]) for kind, names in in_kind.items() if names},
        "curve": [
            [k, *(float(np.mean([precision_at(both[side], k) for both in ranks.values()])) for side in (0, 1))]
            for k in points
        ],
    }


def _means(rows: Any) -> dict[str, float]:
    rows = list(rows)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "facts"}
