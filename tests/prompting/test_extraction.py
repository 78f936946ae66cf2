"""Answers in what models wrote: known defects as cases, and published accuracies to the digit where the logs are."""

import gzip
import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from stemma.errors import InputError
from stemma.prompting.extraction import number_of, rule_named, same_number

PUBLISHED = Path(os.environ.get("STEMMA_PUBLISHED_DATA", Path(__file__).parents[3] / "shared/data"))
LOGS = PUBLISHED / "reference/answer_extraction"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 12", "12"),
        ("The answer is $5.", "5"),
        ("72 clips, altogether ...", "72"),
        ("so x = 10-5", "5"),
        (".5", ".5"),
        ("it is -3.", "-3"),
        ("a loss of -$4.50 in all", "-4.50"),
        ("The answer is $1,234,567.80.", "1,234,567.80"),
        ("She has 3, 5 and 2", "2"),
        ("12 apples\n\nA: 18\n", "18"),
        ("Therefore, the answer (arabic numerals) is 7 apples of 9.", "7"),
        ("The answer is unknown", None),
        ("", None),
    ],
)
def test_numbers(text, answer):
    assert rule_named("robust", "number").extract(text) == answer


def test_numbers_are_compared_as_values():
    assert same_number("29.00", "29") and same_number("$1,000", "1000") and same_number(".5", "0.50")
    assert not same_number("12", "1.2") and not same_number("12", "twelve") and same_number("x", "x")
    assert number_of("3/4") == number_of("0.75") and number_of("3/0") is None and number_of("--3") is None
    rule = rule_named("robust", "number", fractions=True)
    assert rule.extract("the answer is 3/4 of it") == "3/4" and rule.is_right("3/4", "0.75")
    assert rule_named("robust", "number").extract("The answer is 3/4") == "3"
    assert not rule.is_right(None, "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Actually, Both. The answer is C", "C"),
        ("(b) because a man", "B"),
        ("It is a man's D.", "D"),
        ("e", "E"),
        ("c)", "C"),
        ("None of these", None),
    ],
)
def test_choices(text, answer):
    assert rule_named("robust", "choice").extract(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Yes, it is.", "yes"), ("I know nothing. So the answer is no.", "no"), ("It is True", "yes"),
     ("yes or no?", None), ("maybe", None)],
)  # fmt: skip
def test_yes_and_no(text, answer):
    rule = rule_named("robust", "yes-no")
    assert rule.extract(text) == answer
    assert rule.is_right("yes", "True") and not rule.is_right("no", "True")


def test_texts_and_letters():
    assert rule_named("robust", "letters").extract('The answer is "y a j o".') == "yajo"
    assert rule_named("robust", "letters").is_right("YAJO", "yajo")
    assert rule_named("robust", "text").extract("So the answer is Paris.\n") == "Paris"
    assert rule_named("robust", "text").extract(" . ") is None


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("number", " $1,234. or 5", "1234"),
        ("number", "x = 10-5", "10"),
        ("number", "2,5", "25"),
        ("number", ".5", "5"),
        ("choice", "Actually, Both. The answer is C", "A"),
        ("yes-no", 'It is:"No",yes', "no"),
        ("letters", ' "y a.j\no" ', "yajo"),
        ("text", " Paris. ", "Paris"),
        ("number", "none", None),
    ],
)
def test_the_published_rule_takes_the_first(kind, text, answer):
    assert rule_named("published", kind).extract(text) == answer


def test_the_published_rule_after_examples():
    extract = rule_named("published", "number", examples=True).extract
    assert extract("3 + 4 = 7. The answer is 7 of 9. Q: 8?") == "7"
    assert extract("The answer is 3. The answer is 4 or 5.") == "4"
    assert extract("3 + 4 = 7") == "7"  # the last of the whole
    assert not rule_named("published", "number").is_right("7.0", "7")


def test_an_unknown_rule_and_kind():
    with pytest.raises(InputError, match=r"no rule 'robus' \(did you mean 'robust'\?\)"):
        rule_named("robus", "number")
    with pytest.raises(InputError, match="no kind of answer 'numbers'"):
        rule_named("robust", "numbers")


def rows(name):
    with gzip.open(LOGS / name, "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.skipif(not LOGS.is_dir(), reason="the published logs are not here")
def test_published_accuracies_to_the_digit():
    published, robust = rule_named("published", "number"), rule_named("robust", "number")
    found, values, all_rows = defaultdict(int), defaultdict(int), defaultdict(int)
    for row in rows("zero_shot_cot.jsonl.gz"):
        answer = published.extract(row["model_output"])
        assert (answer or "") == row["published_extracted"]
        found[row["dataset"]] += published.is_right(answer, row["gold"])
        answer = robust.extract("The answer is " + row["model_output"])  # a completion of such a text
        right = robust.is_right(answer, row["gold"])
        assert right or not row["published_correct"]
        values[row["dataset"]] += right
        all_rows[row["dataset"]] += 1
    shares = {name: round(100 * count / all_rows[name], 2) for name, count in found.items()}
    assert shares == {"multiarith": 78.67, "addsub": 69.62, "singleeq": 74.61, "svamp": 58.80}
    # Two of multiarith say "26 + 36 - 48 = 14. The answer (words) is fourteen.": right, and not 26.
    assert values == {"multiarith": 474, "addsub": 283, "singleeq": 392, "svamp": 588}


@pytest.mark.skipif(not LOGS.is_dir(), reason="the published solutions are not here")
def test_published_verdicts_of_solutions():
    rule = rule_named("robust", "number")
    solutions = rows("gsm8k_model_solutions.jsonl.gz")
    assert len(solutions) == 2640
    for row in solutions:
        assert rule.is_right(rule.extract(row["output"]), row["gold"]) == row["is_correct"], row["output"]
