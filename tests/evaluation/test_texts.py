"""BLEU, chrF and ROUGE, on n-grams counted by hand and on the examples of ROUGE's paper (Lin 2004)."""

import math
import re
import sys
from collections.abc import Callable

import pytest

from stemma.errors import InputError
from stemma.evaluation import texts
from stemma.evaluation.texts import rouge_l, score_summaries, score_translations

MAT = "the cat sat on the mat"


@pytest.mark.parametrize(
    ("predicted", "references", "precisions", "brevity"),
    [
        ([MAT], [MAT], [1, 1, 1, 1], 1),
        ([MAT], ["the cat sat on a mat"], [5 / 6, 3 / 5, 2 / 4, 1 / 3], 1),
        (["the cat sat on the"], [MAT], [1, 1, 1, 1], math.exp(1 - 6 / 5)),
        # Of the corpus: n-grams are summed over both, before any division.
        ([MAT, MAT], [MAT, "the cat sat on a mat"], [11 / 12, 8 / 10, 6 / 8, 4 / 6], 1),
        # The comma is a word of its own, and the case counts.
        (["The cat, here and now"], ["the cat, here and now"], [5 / 6, 4 / 5, 3 / 4, 2 / 3], 1),
    ],
)
def test_bleu_by_hand(predicted: list[str], references: list[str], precisions: list[float], brevity: float) -> None:
    found = score_translations(predicted, references).values["bleu"]
    assert found == pytest.approx(100 * brevity * math.prod(precisions) ** (1 / 4))


@pytest.mark.parametrize(
    ("predicted", "references", "precision", "recall"),
    [
        (["abcd"], ["abce"], (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4, (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4),
        (["abc"], ["abcd"], 1, (3 / 4 + 2 / 3 + 1 / 2) / 3),  # orders that both are long enough for
        (["ab cd"], ["abcd"], 1, 1),  # blanks do not count
        (["ab", "ab"], ["ab", "ac"], (3 / 4 + 1 / 2) / 2, (3 / 4 + 1 / 2) / 2),
        (["ä"], ["ö"], 0, 0),
    ],
)
def test_chrf_by_hand(predicted: list[str], references: list[str], precision: float, recall: float) -> None:
    expected = 5 * precision * recall / (4 * precision + recall) if precision else 0  # recall counts twice
    assert score_translations(predicted, references).values["chrf"] == pytest.approx(100 * expected)


def test_signatures_say_how_it_was_counted() -> None:
    found = score_translations([MAT], [MAT])
    assert found.values.keys() == found.signatures.keys() == {"bleu", "chrf"}
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:[\d.]+", found.signatures["bleu"])
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:yes\|nc:6\|nw:0\|space:no\|version:[\d.]+", found.signatures["chrf"])


def test_empty_texts_are_nought() -> None:
    assert score_translations(["", "a b"], ["a b", ""]).values == {"bleu": 0, "chrf": 0}
    assert set(score_summaries(["", "a b"], ["a b", ""]).values()) == {0}
    assert rouge_l("", "") == 0


@pytest.mark.parametrize(
    ("predicted", "pairs", "sequence"),
    [
        ("the gunman kill police", 1 / 3, 2 / 4),  # the paper's S3: only "the gunman" in order
        ("the gunman police killed", 2 / 3, 2 / 4),  # its S4: LCS counts one of two parts
        ("police kill the gunman", 1, 1),  # its S2, that has 3/4 there: stems make killed the same as kill
        ("POLICE, killing: the gunman!", 1, 1),
    ],
)
def test_rouge_of_the_papers_examples(predicted: str, pairs: float, sequence: float) -> None:
    found = score_summaries([predicted], ["police killed the gunman"])
    assert found == pytest.approx({"rouge1": 1, "rouge2": pairs, "rougeL": sequence, "rougeLsum": sequence})
    assert rouge_l(predicted, "police killed the gunman") == pytest.approx(sequence)


def test_rouge_of_a_summary_of_lines() -> None:
    # Section 3.2 of the paper: of w1 to w5 the union of both lines' common subsequences holds w1, w2, w3 and w5.
    reference, predicted = "w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"
    found = score_summaries([predicted], [reference])
    assert found["rougeLsum"] == pytest.approx(2 * 4 / (10 + 5))
    assert found["rougeL"] == pytest.approx(2 * 4 / (10 + 5))  # w1 w2 w3 w5, across the lines
    lines = score_summaries(["second sentence.\nfirst sentence."], ["first sentence.\nsecond sentence."])
    assert (lines["rougeL"], lines["rougeLsum"]) == pytest.approx((2 / 4, 1))


def test_rouge_is_the_mean_of_the_texts_f1() -> None:
    # F1 of 1 word right of 1 written and 3 expected, and of all right.
    found = score_summaries(["testing", "one two"], ["testing one two", "one two"])
    assert found["rouge1"] == pytest.approx((2 / 4 + 1) / 2)
    assert rouge_l("one two three", "one three") == pytest.approx(2 * 2 / (3 + 2))


@pytest.mark.parametrize("score", [score_translations, score_summaries])
def test_says_what_is_wrong(score: Callable) -> None:
    with pytest.raises(InputError, match="1 predictions for 2 references; expected one for each"):
        score(["a"], ["a", "b"])
    with pytest.raises(InputError, match="0 predictions for 0 references"):
        score([], [])


@pytest.mark.parametrize(
    ("call", "module", "package"),
    [
        (lambda: score_translations(["a"], ["a"]), "sacrebleu.metrics", "sacrebleu"),
        (lambda: score_summaries(["a"], ["a"]), "rouge_score.rouge_scorer", "rouge-score"),
        (lambda: rouge_l("a", "a"), "rouge_score.rouge_scorer", "rouge-score"),
    ],
)
def test_says_what_is_missing(call: Callable, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf'need.* {package}: pip install "stemma-lm\[evaluation\]"'):
        call()
