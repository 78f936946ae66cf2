"""Correlations and errors: closed forms, and Anscombe's published ones."""

import math
import sys

import pytest

from stemma.errors import InputError
from stemma.evaluation.regression import score_numbers


def test_by_hand() -> None:
    # Products of deviations sum to 5.5, squares to 5 and 8.75; ranks 1 3 2 4, so that d^2 sums to 2.
    found = score_numbers([1, 2, 3, 4], [1, 3, 2, 5])
    spearman = 1 - 6 * 2 / (4 * (4**2 - 1))
    expected = {"pearson": 5.5 / math.sqrt(5 * 8.75), "spearman": spearman, "rmse": math.sqrt(3 / 4)}
    assert found == pytest.approx(expected)


def test_ties_share_their_mean_rank() -> None:
    # Ranks 1.5 1.5 3 against 1 2 3: deviations -0.5 -0.5 1 and -1 0 1.
    assert score_numbers([7, 7, 9], [1, 2, 30])["spearman"] == pytest.approx(1.5 / math.sqrt(1.5 * 2))


@pytest.mark.parametrize(
    "values",
    [
        [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68],
        [9.14, 8.14, 8.74, 8.77, 9.26, 8.10, 6.13, 3.10, 9.13, 7.26, 4.74],
    ],
)
def test_anscombe(values: list[float]) -> None:
    # Anscombe 1973: every set of his has a correlation of 0.816.
    assert score_numbers(values, [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5])["pearson"] == pytest.approx(0.816, abs=5e-4)


def test_order_alone_is_spearmans() -> None:
    found = score_numbers([math.exp(x) for x in range(10)], [-x for x in range(10)])
    assert found["spearman"] == pytest.approx(-1)
    assert -1 < found["pearson"] < -0.5


@pytest.mark.parametrize(
    ("predicted", "expected", "message", "rmse"),
    [
        ([2, 2, 2], [1, 2, 3], "all predictions are 2: no correlation is defined", math.sqrt(2 / 3)),
        ([1, 2, 3], [0.5, 0.5, 0.5], "all expected numbers are 0.5: no", math.sqrt((0.25 + 2.25 + 6.25) / 3)),
        ([1], [4], "all predictions are 1: no", 3),
    ],
)
def test_constants_are_uncorrelated_with_a_warning(
    predicted: list[float], expected: list[float], message: str, rmse: float
) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        found = score_numbers(predicted, expected)
    assert len(caught) == 1
    assert found == pytest.approx({"pearson": 0, "spearman": 0, "rmse": rmse})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_numbers([1], [1, 2]), "1 predictions for 2 examples"),
        (lambda: score_numbers([], []), "0 predictions for 0 examples"),
        (lambda: score_numbers([1, math.nan], [1, 2]), "prediction 2 is nan"),
        (lambda: score_numbers([1, 2], [math.inf, 2]), "expected number 1 is inf"),
        (lambda: score_numbers([[1], [2]], [1, 2]), r"predictions of shape \[2, 1\]"),
    ],
)
def test_says_what_is_wrong(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(InputError, match=r'need scipy: pip install "stemma-lm\[evaluation\]"'):
        score_numbers([1, 2], [1, 2])
