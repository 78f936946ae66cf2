"""Metrics of classes, on confusion matrices and bins worked out by hand."""

import math
import sys

import numpy as np
import pytest

from stemma.errors import InputError
from stemma.evaluation.classification import expected_calibration_error, majority_share, score_classes

# 3 true and 1 false positives, 2 false and 4 true negatives.
PREDICTED = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
EXPECTED = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]


def test_two_classes_by_hand() -> None:
    both = (6 / 9 + 8 / 11) / 2
    matthews = (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6)
    expected = {"accuracy": 0.7, "f1": 6 / 9, "macro_f1": both, "matthews": matthews}
    assert score_classes(PREDICTED, EXPECTED, ["no", "yes"]) == pytest.approx(expected)
    assert score_classes(PREDICTED, EXPECTED, ["no", "yes"], positive="no") == pytest.approx(expected | {"f1": 8 / 11})


def test_three_classes_by_hand() -> None:
    found = score_classes([0, 1, 1, 1, 2, 0], [0, 0, 1, 1, 2, 2], ["a", "b", "c"])
    # Gorodkin's R_K of 4 right of 6, classes predicted 2, 3 and 1 times and expected twice each.
    matthews = (4 * 6 - (2 * 2 + 3 * 2 + 1 * 2)) / math.sqrt((36 - 14) * (36 - 12))
    assert found == pytest.approx({"accuracy": 4 / 6, "macro_f1": (2 / 4 + 4 / 5 + 2 / 3) / 3, "matthews": matthews})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("predicted", "expected", "scores"),
    [
        ([0, 0], [0, 1], {"accuracy": 0.5, "f1": 0, "macro_f1": 1 / 3, "matthews": 0}),
        ([1, 1], [1, 1], {"accuracy": 1, "f1": 1, "macro_f1": 1, "matthews": 0}),  # the other class occurs nowhere
        ([0], [1], {"accuracy": 0, "f1": 0, "macro_f1": 0, "matthews": 0}),
    ],
)
def test_undefined_is_nought_without_a_warning(predicted: list[int], expected: list[int], scores: dict) -> None:
    assert score_classes(predicted, expected, ["no", "yes"]) == pytest.approx(scores)


def test_majority() -> None:
    assert majority_share([2, 0, 2, 1, 2]) == 0.6
    assert majority_share([0, 1]) == 0.5


def test_calibration_by_hand() -> None:
    # Probabilities of the class that is right, so those below a half belong to wrong answers.
    right = np.array([0.9, 0.4, 0.55, 0.8, 0.3])
    probabilities = np.stack([right, 1 - right], axis=1)
    # Ranked: 0.55 right, 0.6 wrong, 0.7 wrong | 0.8 right, 0.9 right; mean gaps (1.85 - 1) / 3 and (1.7 - 2) / 2.
    assert expected_calibration_error(probabilities, [0] * 5, bins=2) == pytest.approx((0.85 + 0.3) / 5)
    assert expected_calibration_error(probabilities, [0] * 5, bins=1) == pytest.approx((3.55 - 3) / 5)
    # A bin for each example, and for no more.
    alone = (0.45 + 0.6 + 0.7 + 0.2 + 0.1) / 5
    assert expected_calibration_error(probabilities, [0] * 5) == pytest.approx(alone)


def test_calibration_of_equal_probabilities_does_not_depend_on_order() -> None:
    probabilities = np.tile([0.75, 0.25], (8, 1))
    for expected in ([0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0]):
        assert expected_calibration_error(probabilities, expected, bins=4) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("excess", [0.0, 0.1])
def test_calibration_finds_a_known_excess(excess: float) -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.7, 1, size=100_000)
    rest = (1 - sure)[:, None] / 2
    expected = np.where(rng.random(len(sure)) < sure - excess, 0, 1)
    found = expected_calibration_error(np.concatenate([sure[:, None], rest, rest], axis=1), expected)
    assert found == pytest.approx(excess, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score_classes([1], [1, 0], "ab"), "1 predictions for 2 examples"),
        (lambda: score_classes([], [], "ab"), "0 predictions for 0 examples"),
        (lambda: score_classes([0, 2], [0, 1], "ab"), "prediction 2 is 2; expected a class from 0 to 1"),
        (lambda: score_classes([0, 1], [-1, 1], "ab"), "label 1 is -1; expected a class from 0 to 1"),
        (lambda: score_classes([0], [0], "a"), "1 label names"),
        (lambda: score_classes([0], [0], "abc", positive="a"), "positive label 'a' among 3 labels"),
        (lambda: score_classes([0], [0], ["no", "yes"], positive="yess"), "no label 'yess'.*did you mean 'yes'"),
        (lambda: majority_share([]), "0 labels"),
        (lambda: expected_calibration_error(np.ones((2, 1)), [0]), "2 predictions for 1 examples"),
        (lambda: expected_calibration_error(np.empty((0, 2)), []), "0 predictions for 0 examples"),
        (lambda: expected_calibration_error(np.ones(2), [0, 0]), r"shape \[2\]; expected \[examples, classes\]"),
        (lambda: expected_calibration_error(np.array([[1, 0], [1, 0.5]]), [0, 0]), "row 2 .* sums to 1.5"),
        (lambda: expected_calibration_error(np.array([[1.5, -0.5]]), [0]), "row 1 .* sums to 1; expected parts of 1"),
        (lambda: expected_calibration_error(np.array([[math.nan, 1]]), [0]), "row 1 .* sums to nan"),
        (lambda: expected_calibration_error(np.array([[0.5, 0.5]]), [2]), "label 1 is 2; expected a class from 0 to 1"),
        (lambda: expected_calibration_error(np.array([[0.5, 0.5]]), [1], bins=0), "0 bins"),
    ],
)
def test_says_what_is_wrong(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(InputError, match=r'need scikit-learn: pip install "stemma-lm\[evaluation\]"'):
        score_classes(PREDICTED, EXPECTED, ["no", "yes"])
