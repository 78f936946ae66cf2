"""Intervals: closed forms, scipy's own, and how often they hold what they should."""

import math

import numpy as np
import pytest
from scipy import stats

from stemma.errors import InputError
from stemma.evaluation.intervals import Interval, of_share, over_examples, over_seeds, paired_over_seeds


def test_over_seeds_is_students_t_by_hand() -> None:
    # Mean 2, standard deviation 1, three values; t of 2 degrees of freedom at 97.5 % is 4.302653 in any table.
    found = over_seeds([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert (found.estimate, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_over_seeds_is_scipys(level: float) -> None:
    values = np.random.default_rng(0).normal(size=7)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(level)
    found = over_seeds(values.tolist(), level)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_paired_differences() -> None:
    rng = np.random.default_rng(1)
    common, gain = rng.normal(size=5) * 100, np.array([0.9, 1.0, 1.1, 1.0, 1.2])
    found = paired_over_seeds((common + gain).tolist(), common.tolist())
    low, high = stats.ttest_rel(common + gain, common).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.low > 0.8  # what the pairs have in common is gone


def test_bootstrap_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    held = [over_examples(rng.exponential(size=100), seed=seed) for seed in range(300)]
    share = np.mean([one.low <= 1 <= one.high for one in held])
    assert 0.90 <= share <= 0.98  # 95 % less what is known to be missing for skewed samples of a hundred


def test_bootstrap_of_a_statistic() -> None:
    values = np.random.default_rng(3).normal(size=400)
    found = over_examples(values, lambda drawn: np.median(drawn, axis=-1))
    theirs = stats.bootstrap(
        (values,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.estimate == np.median(values)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert found == over_examples(values, lambda drawn: np.median(drawn, axis=-1))


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (3, 10), (10, 10), (813, 1000)])
def test_wilson_is_scipys(hits: int, trials: int) -> None:
    theirs = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    found = of_share(hits, trials)
    assert (found.estimate, found.low, found.high) == pytest.approx((hits / trials, theirs.low, theirs.high), abs=1e-9)


def test_in_words() -> None:
    assert str(Interval(0.81234, 0.8, 0.82555)) == "0.8123 [0.8, 0.8256]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: over_seeds([1.0]), "at least 2 values, got 1"),
        (lambda: over_seeds([1.0, math.nan]), "value 2 is not finite"),
        (lambda: over_examples([]), "at least 1 values, got 0"),
        (lambda: paired_over_seeds([1, 2], [1]), "2 values against 1"),
        (lambda: of_share(0, 0), "0 hits of 0 trials"),
        (lambda: of_share(3, 2), "3 hits of 2 trials"),
    ],
)
def test_says_what_is_wrong(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
