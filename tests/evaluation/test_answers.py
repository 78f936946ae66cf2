"""SQuAD's measures, on cases worked out by hand from the official script's rules."""

import pytest

from stemma.errors import InputError
from stemma.evaluation.answers import exact_match, f1, normalized, score_answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Eiffel Tower.", "eiffel tower"),
        ("a U.S.-based an apple", "usbased apple"),  # punctuation goes first, and joins what it parted
        ("theory another", "theory another"),  # articles are whole words
        ("«Été»\u2014the", "«été»\u2014"),  # other alphabets' punctuation stays
        ("a-the", "athe"),
        ("the", ""),
    ],
)
def test_normalised(answer: str, expected: str) -> None:
    assert normalized(answer) == expected


@pytest.mark.parametrize(
    ("predicted", "expected", "match", "overlap"),
    [
        ("the Denver Broncos!", ["Denver Broncos", "Broncos"], 1, 1),
        ("Broncos of Denver", ["Denver Broncos"], 0, 0.8),  # 2 common of 3 and 2: P 2/3, R 1
        ("Carolina", ["Denver", "Denver Broncos"], 0, 0),
        ("new new york", ["new york"], 0, 0.8),  # a word counts as often as in both
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
        ("the", ["a"], 1, 1),
    ],
)
def test_measures(predicted: str, expected: list[str], match: float, overlap: float) -> None:
    assert exact_match(predicted, expected) == match
    assert f1(predicted, expected) == pytest.approx(overlap)


def test_means() -> None:
    found = score_answers(["Denver", "Broncos of Denver"], [["Denver"], ["Denver Broncos"]])
    assert found == pytest.approx({"exact_match": 0.5, "f1": 0.9})
    with pytest.raises(InputError, match="1 predictions for 2 questions"):
        score_answers(["a"], [["a"], ["b"]])
