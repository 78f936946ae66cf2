"""How sure a number is: intervals over examples, over seeds, and of differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from stemma.errors import InputError


@dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"


def over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of runs that differ in their seed, with Student's t interval.

    Raises:
        InputError: fewer than two values, or one that is not finite.
    """
    array = _finite(values, 2)
    mean, error = float(array.mean()), float(array.std(ddof=1) / np.sqrt(len(array)))
    half = _students_t((1 + level) / 2, len(array) - 1) * error
    return Interval(mean, mean - half, mean + half)


def paired_over_seeds(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of the differences `ours - theirs`, number by number, with Student's t interval.

    Raises:
        InputError: not equally many, or see `over_seeds`.
    """
    if len(ours) != len(theirs):
        raise InputError(f"{len(ours)} values against {len(theirs)}; expected one of each for every seed")
    return over_seeds(_finite(ours, 2) - _finite(theirs, 2), level)


def over_examples(
    values: Sequence[float],
    statistic: Callable[[np.ndarray], np.ndarray] = lambda drawn: drawn.mean(axis=-1),
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of the examples' values with its bootstrap percentile interval (Efron 1979).

    Args:
        statistic: of float64 [..., examples] along the last axis; default: the mean. For two systems on the same
            examples, give the differences of their values: a paired bootstrap.
    Raises:
        InputError: no values, or one that is not finite.
    """
    array = _finite(values, 1)
    draws = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    low, high = np.quantile(statistic(array[draws]), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(array)), float(low), float(high))


def of_share(hits: int, trials: int, level: float = 0.95) -> Interval:
    """Return the share of hits with Wilson's interval (1927), which holds for few trials and near 0 and 1 too.

    Raises:
        InputError: no trials, or not 0 <= hits <= trials.
    """
    if trials < 1 or not 0 <= hits <= trials:
        raise InputError(f"{hits} hits of {trials} trials; expected 0 <= hits <= trials and at least one trial")
    z, share = NormalDist().inv_cdf((1 + level) / 2), hits / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _students_t(probability: float, freedom: int) -> float:
    try:
        from scipy.stats import t
    except ImportError:
        raise InputError('intervals over seeds need scipy: pip install "stemma-lm[evaluation]"') from None
    return float(t.ppf(probability, freedom))


def _finite(values: Sequence[float] | np.ndarray, least: int) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) < least:
        raise InputError(f"an interval needs at least {least} values, got {array.size}")
    if not np.isfinite(array).all():
        raise InputError(f"value {int(np.flatnonzero(~np.isfinite(array))[0]) + 1} is not finite")
    return array
