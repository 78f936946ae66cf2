"""Questions about texts in SQuAD's JSON: data[].paragraphs[].{context, qas[].{id, question, answers, is_impossible}}.

Rajpurkar et al. 2016 (SQuAD 1.1) and 2018 (SQuAD 2.0, with questions that the text does not answer).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.data.byte_streams import text_chunks
from stemma.data.readers import check_unicode, missing_field
from stemma.errors import InputError


@dataclass(frozen=True)
class Answer:
    """A stretch of the context: `text` from character `start` (Unicode code points, from 0)."""

    text: str
    start: int

    def fits(self, context: str) -> bool:
        """Whether the context really has this text there."""
        return bool(self.text) and self.start >= 0 and context.startswith(self.text, self.start)


@dataclass(frozen=True)
class Question:
    """A question on a context, with all its accepted answers."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    is_impossible: bool
    """Whether the context does not hold the answer; always False in SQuAD 1.1, which lacks the field."""


@dataclass(frozen=True)
class SquadData:
    """The questions of a file, in its order."""

    questions: list[Question]
    misfits: int
    """Answers that do not stand in their context at the offset given."""


def read_squad(path: Path) -> SquadData:
    """Read a SQuAD JSON file (.gz and .zst too).

    A question may lack answers only if it is impossible. Answers that misfit are counted and kept.

    Raises:
        InputError: the file is no such JSON; names the place in it, as `data[0].paragraphs[2].qas[1]`.
    """
    try:
        content = json.loads("".join(text_chunks(path, lambda read: None)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    questions: list[Question] = []
    for article, article_place in _items(content, "data", f"{path}: ", ""):
        for paragraph, place in _items(article, "paragraphs", article_place, "."):
            context = _field(paragraph, "context", str, place)
            questions.extend(_question(entry, context, at) for entry, at in _items(paragraph, "qas", place, "."))
    if not questions:
        raise InputError(f"{path}: no questions; expected at least one")
    misfits = sum(not answer.fits(question.context) for question in questions for answer in question.answers)
    return SquadData(questions, misfits)


def _question(entry: Any, context: str, place: str) -> Question:
    identity, question = _field(entry, "id", str, place), _field(entry, "question", str, place)
    impossible = _field(entry, "is_impossible", bool, place) if "is_impossible" in entry else False
    found = [] if impossible and "answers" not in entry else _items(entry, "answers", place, ".")
    if not found and not impossible:
        raise InputError(f"{place}: no answers; expected at least one, or is_impossible")
    answers = tuple(Answer(_field(item, "text", str, at), _field(item, "answer_start", int, at)) for item, at in found)
    return Question(identity, question, context, answers, impossible)


def _items(entry: Any, name: str, place: str, joint: str) -> list[tuple[Any, str]]:
    """The members of a list, each with its place."""
    return [(item, f"{place}{joint}{name}[{i}]") for i, item in enumerate(_field(entry, name, list, place))]


def _field(entry: Any, name: str, kind: type, place: str) -> Any:
    place = place.removesuffix(": ")
    if not isinstance(entry, dict):
        raise InputError(f"{place}: a JSON {type(entry).__name__}; expected an object with the field '{name}'")
    if name not in entry:
        raise missing_field(name, entry, place)
    value = entry[name]
    if type(value) is not kind:  # not isinstance: True is an int
        found = type(value).__name__
        raise InputError(f"{place}: field '{name}' is of type {found}; expected {kind.__name__}")
    if isinstance(value, str):
        check_unicode(value, f"{place}, field '{name}'")
    return value
