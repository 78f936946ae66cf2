"""How good predicted classes are, and how honest their probabilities."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from stemma.errors import InputError, closest


def score_classes(
    predicted: Sequence[int], expected: Sequence[int], label_names: Sequence[str], *, positive: str | None = None
) -> dict[str, float]:
    """Return "accuracy", "macro_f1", "matthews" and, of two classes, "f1", as scikit-learn counts them.

    "macro_f1" is the mean over the classes that occur in either sequence; "matthews" is Gorodkin's generalisation
    (2004) for more than two classes. What is undefined (a class never predicted, a single class) is 0.

    Args:
        predicted, expected: classes from 0, in the order of label_names.
        positive: the class, of two, whose F1 is "f1"; default: the second.
    Raises:
        InputError: not as many predictions as examples, or none; a class without a name; no label named `positive`,
            or not two classes to choose it from; no scikit-learn.
    """
    _check_counts(len(predicted), len(expected))
    names = list(label_names)
    if len(names) < 2:
        raise InputError(f"{len(names)} label names; expected at least two")
    if positive is not None and len(names) != 2:
        raise InputError(f"positive label '{positive}' among {len(names)} labels; expected two labels for it")
    if positive is not None and positive not in names:
        hint = closest(positive, names) or f", expected {names[0]} or {names[1]}"
        raise InputError(f"no label '{positive}' to be the positive one{hint}")
    given, right = _classes(predicted, len(names), "prediction"), _classes(expected, len(names), "label")
    try:
        from sklearn.metrics import f1_score, matthews_corrcoef
    except ImportError:
        raise InputError('metrics of classes need scikit-learn: pip install "stemma-lm[evaluation]"') from None
    scores = {"accuracy": float(np.mean(given == right))}
    if len(names) == 2:
        position = 1 if positive is None else names.index(positive)
        scores["f1"] = float(f1_score(right == position, given == position, zero_division=0))
    scores["macro_f1"] = float(f1_score(right, given, average="macro", zero_division=0))
    # scikit-learn warns of a single class, for which the coefficient is 0 as stated.
    single = len(np.union1d(given, right)) == 1
    scores["matthews"] = 0.0 if single else float(matthews_corrcoef(right, given))
    return scores


def majority_share(expected: Sequence[int]) -> float:
    """Return the accuracy of always answering the most frequent class.

    Raises:
        InputError: no examples.
    """
    if not len(expected):
        raise InputError("0 labels; expected at least one to find the most frequent")
    return max(Counter(expected).values()) / len(expected)


def expected_calibration_error(probabilities: np.ndarray, expected: Sequence[int], bins: int = 15) -> float:
    """Return by how much the likeliest class's probability misses its accuracy, from 0 to 1 (Naeini et al. 2015).

    Examples are ranked by that probability and cut into bins of equal numbers (to within one), and the distances of a
    bin's mean probability and accuracy are averaged by its size. Examples of equal probability share their accuracy,
    so that their order does not decide between bins. Fewer examples than bins: a bin each.

    Args:
        probabilities: float [examples, classes], each row summing to 1. expected: classes from 0.
    Raises:
        InputError: not as many rows as labels, or none; rows that are no probabilities; a class without a column;
            fewer than one bin.
    """
    given = np.asarray(probabilities, np.float64)
    if given.ndim != 2:
        raise InputError(f"probabilities of shape {list(given.shape)}; expected [examples, classes]")
    _check_counts(len(given), len(expected))
    if bins < 1:
        raise InputError(f"{bins} bins; expected at least one")
    # Rows in float16 or bfloat16 sum to 1 only nearly. Comparisons with NaN are false.
    fine = (given >= 0).all(1) & (np.abs(given.sum(1) - 1) <= 1e-2)
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        raise InputError(f"row {row + 1} of the probabilities sums to {given[row].sum():.4g}; expected parts of 1")
    right = given.argmax(1) == _classes(expected, given.shape[1], "label")
    values, places, numbers = np.unique(given.max(1), return_inverse=True, return_counts=True)
    accuracy = np.repeat(np.bincount(places, right) / numbers, numbers)
    gaps = np.repeat(values, numbers) - accuracy
    return sum(abs(float(part.sum())) for part in np.array_split(gaps, min(bins, len(gaps)))) / len(gaps)


def _check_counts(predictions: int, examples: int) -> None:
    if not examples or predictions != examples:
        raise InputError(f"{predictions} predictions for {examples} examples; expected one for each")


def _classes(values: Sequence[int], classes: int, what: str) -> np.ndarray:
    """Return the values as int64 [examples]."""
    array = np.asarray(values)
    wrong = np.flatnonzero(~((array >= 0) & (array < classes) & (array == np.floor(array))))
    if len(wrong):
        raise InputError(f"{what} {wrong[0] + 1} is {array[wrong[0]]}; expected a class from 0 to {classes - 1}")
    return array.astype(np.int64)
