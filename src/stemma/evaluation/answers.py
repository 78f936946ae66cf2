"""Exact match and F1 of short answers, as the official script of SQuAD counts them (Rajpurkar et al. 2016, section 6;
2018 for questions without an answer)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from stemma.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)  # ASCII's only, as in the script


def normalized(answer: str) -> str:
    """Return an answer in lower case without ASCII punctuation, articles and superfluous blanks."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, expected: Sequence[str]) -> float:
    """Return 1.0 if the prediction equals any expected answer once both are normalised, else 0.0.

    Args:
        expected: the answers that count as right; none: the question has no answer, and "" is right.
    """
    return float(any(normalized(predicted) == normalized(answer) for answer in expected or [""]))


def f1(predicted: str, expected: Sequence[str]) -> float:
    """Return the F1 of the prediction's words against those of the nearest expected answer (see `exact_match`).

    Where one of both is without words, it is 1.0 if the other is too, else 0.0.
    """
    return max(_overlap(normalized(predicted).split(), normalized(answer).split()) for answer in expected or [""])


def score_answers(predicted: Sequence[str], expected: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the mean "exact_match" and "f1" over all questions, from 0 to 1.

    Raises:
        InputError: no questions, or not as many predictions as questions.
    """
    if not expected or len(predicted) != len(expected):
        raise InputError(f"{len(predicted)} predictions for {len(expected)} questions; expected one for each")
    pairs = list(zip(predicted, expected, strict=True))
    return {
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "f1": sum(f1(*pair) for pair in pairs) / len(pairs),
    }


def _overlap(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))
