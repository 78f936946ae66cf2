"""Questions with several answers to choose from, read from the columns of a table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stemma.data.readers import check_unicode, missing_field
from stemma.data.tables import read_rows
from stemma.errors import InputError


class _Row(NamedTuple):
    question: str
    options: list[str]
    names: list[str]  # of the options, where the file has them
    label: Any
    origin: str


def read_choices(
    path: Path, *, question: str | None, choices: str, label: str, header: bool = True, quotes: bool = True
) -> tuple[list[tuple[str, ...]], list[int]]:
    """Return (question, option, option, ...) of each row, and which option is right, counted from 0.

    Labels are read alike in a whole file: as names of the options (of their columns), else as their texts, else as
    indices from 0, else as letters.

    Args:
        question: columns with a comma between, whose texts are joined by blanks; None: there are only options.
        choices: a column with a list of texts, or with {"text": [...], "label": [...]} where labels are names of the
            options; or several columns of a text each, with commas between, blank ones last where a row has fewer.
        label: column. header, quotes: see `read_rows`.
    Raises:
        InputError: a column that is missing or holds something else, fewer than two options, a label that is none of
            them (each with file and line).
    """
    rows = []
    for row, origin in read_rows(path, header=header, quotes=quotes):
        parts = [
            _text(_column(row, column, origin), column, origin) for column in (question or "").split(",") if column
        ]
        options, names = _options(row, choices.split(","), origin)
        if len(options) < 2:
            raise InputError(f"{origin}: {len(options)} choices; expected at least two")
        rows.append(_Row(" ".join(parts), options, names, _column(row, label, origin), origin))
    if not rows:
        raise InputError(f"{path}: no rows; expected at least one question with its choices")
    return [(row.question, *row.options) for row in rows], _labels(rows, label)


def _options(row: Mapping[str, Any], columns: Sequence[str], origin: str) -> tuple[list[str], list[str]]:
    if len(columns) > 1:
        cells = [_column(row, column, origin) for column in columns]
        while cells and (cells[-1] is None or cells[-1] == ""):
            cells.pop()
        # A number would be taken for an index too.
        names = [] if any(column.isdecimal() for column in columns) else list(columns[: len(cells)])
        return [_text(cell, column, origin) for cell, column in zip(cells, columns, strict=False)], names
    value = _column(row, columns[0], origin)
    names = value.get("label", []) if isinstance(value, dict) else []
    texts = value.get("text") if isinstance(value, dict) else value
    if not isinstance(texts, list) or not isinstance(names, list) or (names and len(names) != len(texts)):
        raise InputError(f"{origin}: field '{columns[0]}' is {str(value)[:40]!r}; expected a list of texts")
    return [_text(text, columns[0], origin) for text in texts], [str(name) for name in names]


def _labels(rows: Sequence[_Row], column: str) -> list[int]:
    readings: list[Callable[[_Row], int | None]] = [_name, _own_text, _index, _letter]
    found = [[reading(row) for row in rows] for reading in readings]
    whole = next((places for places in found if None not in places), None)
    if whole is not None:
        return [place for place in whole if place is not None]
    nearest = min(found, key=lambda places: places.count(None))
    row = rows[nearest.index(None)]
    raise InputError(
        f"{row.origin}: label '{column}' is {str(row.label)[:40]!r}; expected, as in the other rows, an index from 0 "
        f"to {len(row.options) - 1}, a letter, or the text of one of the {len(row.options)} choices"
    )


def _name(row: _Row) -> int | None:
    return row.names.index(str(row.label)) if str(row.label) in row.names else None


def _own_text(row: _Row) -> int | None:
    return row.options.index(row.label) if row.label in row.options else None


def _index(row: _Row) -> int | None:
    number = int(row.label) if isinstance(row.label, str) and row.label.strip().isdecimal() else row.label
    whole = isinstance(number, int) and not isinstance(number, bool)
    return number if whole and 0 <= number < len(row.options) else None


def _letter(row: _Row) -> int | None:
    letter = row.label.strip().upper() if isinstance(row.label, str) else ""
    place = ord(letter) - ord("A") if len(letter) == 1 else -1
    return place if 0 <= place < len(row.options) else None


def _column(row: Mapping[str, Any], column: str, origin: str) -> Any:
    if column not in row:
        raise missing_field(column, row, origin)
    return row[column]


def _text(value: Any, column: str, origin: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{origin}: field '{column}' has {str(value)[:40]!r}; expected a text")
    check_unicode(value, origin)
    return value
