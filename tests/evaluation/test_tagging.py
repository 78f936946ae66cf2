"""Entities and words: seqeval's published example, cases by hand, and a count of entities of our own."""

import sys

import numpy as np
import pytest

from stemma.data.conll import to_iob2
from stemma.errors import InputError
from stemma.evaluation.tagging import score_tags


def _scores(accuracy: float, right: int, predicted: int, expected: int) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "f1": 2 * right / (predicted + expected),
        "precision": right / predicted,
        "recall": right / expected,
    }


def test_seqevals_published_example() -> None:
    expected = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert score_tags(predicted, expected) == pytest.approx(_scores(0.8, 1, 2, 2))  # its README: 0.50 and 0.80


@pytest.mark.parametrize(
    ("predicted", "expected", "scores"),
    [
        ("B-A I-A O B-B", "B-A I-A O B-B", (1, 2, 2, 2)),
        ("B-A O O B-B", "B-A I-A O B-B", (3 / 4, 1, 2, 2)),  # part of an entity is none of it
        ("B-B I-B O O", "B-A I-A O B-B", (1 / 4, 0, 1, 2)),  # nor is one of another type
        ("I-A I-A O I-B", "B-A I-A O B-B", (2 / 4, 2, 2, 2)),  # an I- may begin one, as conlleval reads it
        ("B-A I-B O O", "B-A B-B O O", (3 / 4, 2, 2, 2)),  # also after another type
        ("B-A I-A B-A", "B-A B-A B-A", (2 / 3, 1, 2, 3)),
        ("B-a-b O", "B-a-c O", (1 / 2, 0, 1, 1)),
    ],
)
def test_by_hand(predicted: str, expected: str, scores: tuple) -> None:
    assert score_tags([predicted.split()], [expected.split()]) == pytest.approx(_scores(*scores))


def test_entities_end_with_their_sentence() -> None:
    found = score_tags([["B-A"], ["I-A"]], [["B-A"], ["B-A"]])
    assert found == pytest.approx(_scores(0.5, 2, 2, 2))


def test_micro_averages_count_entities_not_types_or_sentences() -> None:
    expected = [["B-A"] * 8, ["B-B"]]
    predicted = [["B-A"] * 8, ["O"]]
    assert score_tags(predicted, expected) == pytest.approx(_scores(8 / 9, 8, 8, 9))


def test_is_a_count_of_entities() -> None:
    def entities(sentences: list[list[str]]) -> set[tuple[int, int, int, str]]:
        found = set()
        for number, tags in enumerate(sentences):
            tags = [*to_iob2(tags), "O"]
            for start, tag in enumerate(tags):
                if tag[0] == "B":
                    end = next(place for place in range(start + 1, len(tags)) if tags[place][0] != "I")
                    found.add((number, start, end, tag[2:]))
        return found

    rng = np.random.default_rng(0)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    lengths = rng.integers(0, 7, size=200)
    expected = [rng.choice(tags, size=length).tolist() for length in lengths]
    predicted = [[tag if rng.random() < 0.8 else str(rng.choice(tags)) for tag in sentence] for sentence in expected]
    ours, theirs = entities(predicted), entities(expected)
    same = [a == b for pair in zip(predicted, expected, strict=True) for a, b in zip(*pair, strict=True)]
    counts = _scores(sum(same) / len(same), len(ours & theirs), len(ours), len(theirs))
    assert score_tags(predicted, expected) == pytest.approx(counts)


def test_parts_of_speech_get_an_accuracy_alone() -> None:
    assert score_tags([["NN", "VB", "NN"]], [["NN", "VB", "JJ"]]) == pytest.approx({"accuracy": 2 / 3})
    assert score_tags([["O", "NN"]], [["NN", "NN"]]) == {"accuracy": 0.5}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("predicted", "expected", "accuracy"), [("O O", "O O", 1), ("O O", "O B-A", 0.5), ("B-A O", "O O", 0.5)]
)
def test_undefined_is_nought_without_a_warning(predicted: str, expected: str, accuracy: float) -> None:
    found = score_tags([predicted.split()], [expected.split()])
    assert found == {"accuracy": accuracy, "f1": 0, "precision": 0, "recall": 0}


@pytest.mark.parametrize(
    ("predicted", "expected", "message"),
    [
        ([["O"]], [["O"], ["O"]], "1 predictions for 2 sentences"),
        ([], [], "0 predictions for 0 sentences"),
        ([["O"], ["O"]], [["O"], ["O", "O"]], "sentence 2: 1 predictions for 2 words"),
        ([[]], [[]], "0 predictions for 0 words in 1 sentences"),
        ([["NN"]], [["B-A"]], "tag 'NN' among entities' tags"),
        ([["B-"]], [["B-A"]], "tag 'B-' among entities' tags"),
    ],
)
def test_says_what_is_wrong(predicted: list, expected: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_tags(predicted, expected)


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqeval.metrics", None)
    with pytest.raises(InputError, match=r'need seqeval: pip install "stemma-lm\[evaluation\]"'):
        score_tags([["B-A"]], [["B-A"]])
    assert score_tags([["NN"]], [["NN"]]) == {"accuracy": 1}
