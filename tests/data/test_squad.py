import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stemma.data.squad import Answer, Question, read_squad
from stemma.errors import InputError

CONTEXT = "𝒳 lies on Lake Constance."  # its first character is one code point but two UTF-16 units


def question(**changes: Any) -> dict[str, Any]:
    return {"id": "q1", "question": "Where?", "answers": [{"text": "Lake", "answer_start": 10}]} | changes


def write(path: Path, *questions: Any) -> Path:
    text = json.dumps(
        {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}
    )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def fails(message: str):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz"])
def test_questions_with_and_without_answers(tmp_path: Path, name: str) -> None:
    path = write(
        tmp_path / name,
        question(answers=[{"text": "Lake", "answer_start": 10}, {"text": "Constance", "answer_start": 15}]),
        question(id="q2", answers=[], is_impossible=True, plausible_answers=[{"text": "x", "answer_start": 0}]),
    )
    data = read_squad(path)
    assert data.misfits == 0
    assert data.questions == [
        Question("q1", "Where?", CONTEXT, (Answer("Lake", 10), Answer("Constance", 15)), False),
        Question("q2", "Where?", CONTEXT, (), True),
    ]
    assert CONTEXT[10:14] == "Lake"


def test_answers_that_do_not_stand_where_they_should_are_counted(tmp_path: Path) -> None:
    misfits = [("Lake", 11), ("lake", 10), ("", 3), ("e.", -2), ("Constance.!", 15), (".", 999)]
    answers = [{"text": text, "answer_start": start} for text, start in [("Lake", 10), *misfits]]
    data = read_squad(write(tmp_path / "a.json", question(answers=answers)))
    assert data.misfits == len(misfits)
    assert len(data.questions[0].answers) == len(answers)


QUESTION = "data[0].paragraphs[0].qas[1]"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"question": "a"}, f"{QUESTION}: no field 'id'; the fields are: question"),
        (
            {"id": "a", "questoin": "a"},
            f"{QUESTION}: no field 'question' (did you mean 'questoin'?); the fields are: id, questoin",
        ),
        (question(id=7), f"{QUESTION}: field 'id' is of type int; expected str"),
        (question(is_impossible=1), f"{QUESTION}: field 'is_impossible' is of type int; expected bool"),
        (question(answers=[]), f"{QUESTION}: no answers; expected at least one, or is_impossible"),
        ({"id": "a", "question": "a"}, f"{QUESTION}: no field 'answers'; the fields are: id, question"),
        (question(answers=["Lake"]), f"{QUESTION}.answers[0]: a JSON str; expected an object with the field 'text'"),
        (
            question(answers=[{"text": "a", "answer_start": True}]),
            f"{QUESTION}.answers[0]: field 'answer_start' is of type bool; expected int",
        ),
        (
            question(question="\ud800"),
            f"{QUESTION}, field 'question': half a surrogate pair (\\ud800) at character 0; expected valid Unicode",
        ),
    ],
)
def test_errors_name_the_place(tmp_path: Path, entry: Any, message: str) -> None:
    path = write(tmp_path / "a.json", question(), entry)
    with fails(f"{path}: {message}"):
        read_squad(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data":\n [}', ", line 2: not JSON (Expecting value at column 3)"),
        ("[]", ": a JSON list; expected an object with the field 'data'"),
        ('{"dat": []}', ": no field 'data' (did you mean 'dat'?); the fields are: dat"),
        ('{"data": {}}', ": field 'data' is of type dict; expected list"),
        ('{"data": []}', ": no questions; expected at least one"),
        (
            '{"data": [{"paragraphs": [{"qas": []}]}]}',
            ": data[0].paragraphs[0]: no field 'context'; the fields are: qas",
        ),
    ],
)
def test_files_that_are_not_squad(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with fails(f"{path}{message}"):
        read_squad(path)
