"""What a reward model is worth: how often it agrees with people, how sure it may be, whether it only counts words."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stemma.alignment.comparisons import Comparison
from stemma.evaluation.intervals import Interval, over_examples
from stemma.evaluation.regression import score_numbers

_BINS = 5
_MATCHED = 0.1  # lengths that differ by less are taken for alike


@dataclass(frozen=True)
class RewardReport:
    """Agreement of rewards with comparisons.

    Args:
        accuracy: share of pairs whose better response has the higher reward (ties count half), the mean over prompts,
            with a bootstrap interval over prompts.
        calibration: of pairs by how probable the model thinks its own preference, (mean probability, share that is
            right, pairs). calibration_error: the mean difference of the two, weighted by pairs.
        length_correlation: Spearman's, of the rewards of responses with their lengths in words.
        longer_wins: the share of pairs whose better response is the longer one: what counting words reaches.
        accuracy_alike: accuracy on pairs whose lengths differ by less than 10 %; None: there are none.
    """

    prompts: int
    pairs: int
    accuracy: Interval
    calibration: list[tuple[float, float, int]]
    calibration_error: float
    length_correlation: float
    longer_wins: float
    accuracy_alike: Interval | None

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        return asdict(self)


def report(comparisons: Sequence[Comparison], rewards: Sequence[Sequence[float]]) -> RewardReport:
    """Return how the rewards of each comparison's responses agree with it.

    Raises:
        InputError: scipy is not installed.
    """
    right: list[float] = []  # of each pair
    prompt: list[int] = []
    margins: list[float] = []
    better, worse = [], []
    for number, (comparison, scores) in enumerate(zip(comparisons, rewards, strict=True)):
        lengths = [len(response.split()) for response in comparison.responses]
        for first, second in comparison.pairs:
            margins.append(float(scores[first] - scores[second]))
            right.append(0.5 + 0.5 * float(np.sign(margins[-1])))
            prompt.append(number)
            better.append(lengths[first])
            worse.append(lengths[second])
    hits, owner = np.array(right), np.array(prompt)
    longer, shorter = np.maximum(better, worse), np.minimum(better, worse)
    alike = longer - shorter < _MATCHED * longer
    calibration = _calibration(np.array(margins), hits)
    error = sum(abs(mean - share) * count for mean, share, count in calibration) / len(hits)
    words = [len(response.split()) for comparison in comparisons for response in comparison.responses]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # all alike: no correlation, which is 0
        correlation = score_numbers([float(score) for scores in rewards for score in scores], words)["spearman"]
    return RewardReport(
        prompts=len(comparisons),
        pairs=len(hits),
        accuracy=over_examples(_by_prompt(hits, owner)),
        calibration=calibration,
        calibration_error=float(error),
        length_correlation=correlation,
        longer_wins=float(np.mean(0.5 + 0.5 * np.sign(np.subtract(better, worse)))),
        accuracy_alike=over_examples(_by_prompt(hits[alike], owner[alike])) if alike.any() else None,
    )


def _by_prompt(values: np.ndarray, owner: np.ndarray) -> list[float]:
    """Return the mean of each prompt's values."""
    return [float(values[owner == number].mean()) for number in np.unique(owner)]


def _calibration(margins: np.ndarray, hits: np.ndarray) -> list[tuple[float, float, int]]:
    """Return (mean probability, share that is right, pairs) of the bins that hold any, the least sure first."""
    sure = 1 / (1 + np.exp(-np.abs(margins)))  # from 0.5 to 1
    bins = np.minimum(((sure - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    found = []
    for number in np.unique(bins):
        inside = bins == number
        found.append((float(sure[inside].mean()), float(hits[inside].mean()), int(inside.sum())))
    return found
