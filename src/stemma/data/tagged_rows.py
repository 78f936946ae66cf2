"""Tagged words, and questions on texts, as the rows of a data set hold them (see dataset_rows.py)."""

from collections.abc import Mapping
from typing import Any

from stemma.data.conll import TaggedSentence, in_iob2
from stemma.data.dataset_rows import dataset_rows
from stemma.data.readers import check_unicode, missing_field
from stemma.data.squad import Answer, Question, SquadData
from stemma.errors import InputError


def read_tagged(what: str, *, words: str, tags: str) -> list[TaggedSentence]:
    """Read sentences: a column with a list of words, and one with a list of as many tags; entity tags become IOB2.

    Raises:
        InputError: a column that is missing or holds something else, a tag of no scheme while others are (each with
            its row); a data set without rows.
    """
    sentences, origins = [], []
    for row, origin in dataset_rows(what):
        found = _strings(row, words, origin), _strings(row, tags, origin)
        if len(found[0]) != len(found[1]):
            raise InputError(f"{origin}: {len(found[0])} words, but {len(found[1])} tags; expected one for each")
        if found[0]:
            sentences.append(found)
            origins.append(origin)
    if not sentences:
        raise InputError(f"{what}: no rows; expected at least one sentence")
    return in_iob2(sentences, lambda sentence, word: f"{origins[sentence]}, word {word + 1}")


def read_questions(what: str) -> SquadData:
    """Read questions as the hub's `squad` has them: question, context, answers {text: [...], answer_start: [...]}.

    A question without answers is impossible.

    Raises:
        InputError: a column that is missing or holds something else (with its row); a data set without rows.
    """
    questions = []
    for number, (row, origin) in enumerate(dataset_rows(what)):
        asked, context = (_text(_field(row, name, origin), name, origin) for name in ("question", "context"))
        answers = _field(row, "answers", origin)
        texts, starts = (answers.get("text"), answers.get("answer_start")) if isinstance(answers, Mapping) else (0, 0)
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise InputError(
                f"{origin}: field 'answers' is {str(answers)[:40]!r}; expected lists text and answer_start"
            )
        accepted = tuple(Answer(_text(text, "answers", origin), int(start)) for text, start in zip(texts, starts))  # noqa: B905
        questions.append(Question(str(row.get("id", number)), asked, context, accepted, not accepted))
    if not questions:
        raise InputError(f"{what}: no rows; expected at least one question")
    misfits = sum(not answer.fits(question.context) for question in questions for answer in question.answers)
    return SquadData(questions, misfits)


def _strings(row: Mapping[str, Any], column: str, origin: str) -> list[str]:
    values = _field(row, column, origin)
    if not isinstance(values, list):
        raise InputError(f"{origin}: field '{column}' is {str(values)[:40]!r}; expected a list of strings")
    return [_text(value, column, origin) for value in values]


def _text(value: Any, column: str, origin: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{origin}: field '{column}' has {str(value)[:40]!r}; expected a string")
    check_unicode(value, origin)
    return value


def _field(row: Mapping[str, Any], column: str, origin: str) -> Any:
    if column not in row:
        raise missing_field(column, row, origin)
    return row[column]
