"""Texts or pairs of texts with a label each: reading, splitting, and counting what leaks from train into test."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.data.readers import check_unicode, missing_field
from stemma.data.tables import read_rows
from stemma.errors import InputError, closest


@dataclass(frozen=True)
class LabelledData:
    """`texts[i]` (one text, or two of a pair) has `labels[i]`."""

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]
    """Indices into `label_names`; of a regression, the numbers themselves."""
    label_names: tuple[str, ...]
    """Empty for a regression."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def label_counts(self) -> dict[str, int]:
        """How many examples each label has, in the order of `label_names`; those without any too."""
        counts = Counter(self.labels)
        return {name: counts[index] for index, name in enumerate(self.label_names)}


def read_labelled(
    path: Path,
    *,
    text: str,
    pair: str | None = None,
    label: str,
    label_names: Sequence[str] | None = None,
    regression: bool = False,
    header: bool = True,
    quotes: bool = True,
) -> LabelledData:
    """Read a file of labelled texts, whole.

    Labels may be strings, whole numbers or booleans ("true", "false"). They are numbered as in `label_names`, the
    names of the training set; without these by falling frequency, equally frequent ones by name.

    Args:
        path: a table or data set as `read_rows` reads it, as are `header` and `quotes`.
        text, pair, label: names of columns; numbers from "1" where there is no header.
        regression: labels are numbers to predict and have no names.

    Raises:
        InputError: a column that is missing, a text that is blank or no string, a label that is blank, not among
            `label_names` or, of a regression, no finite number (each with file and line); a file without rows.
    """
    if regression and label_names is not None:
        raise InputError("the labels of a regression are numbers; expected no label names")
    if label_names is not None and len(set(label_names)) != len(label_names):
        raise InputError(f"label names: one is there twice in {', '.join(label_names)}; expected each once")
    columns = [text] if pair is None else [text, pair]
    texts: list[tuple[str, ...]] = []
    values: list[str] = []
    numbers: list[float] = []
    for row, origin in read_rows(path, header=header, quotes=quotes):
        texts.append(tuple(_text(row, column, origin) for column in columns))
        value = _column(row, label, origin)
        if regression:
            numbers.append(_number(value, label, origin))
        else:
            values.append(_label(value, label, origin))
            if label_names is not None and values[-1] not in label_names:
                raise _unknown_label(values[-1], label_names, origin)
    if not texts:
        raise InputError(f"{path}: no rows; expected at least one labelled text")
    if regression:
        return LabelledData(texts, numbers, ())
    counts = Counter(values)
    names = tuple(label_names or sorted(counts, key=lambda name: (-counts[name], name)))
    index_of = {name: index for index, name in enumerate(names)}
    return LabelledData(texts, [index_of[value] for value in values], names)


def split_by_hash(data: LabelledData, share: float, seed: int) -> tuple[LabelledData, LabelledData]:
    """Divide into (rest, held out), about `share` of the different texts held out, both in the order of `data`.

    Only the text (both of a pair) and the seed decide, so that equal texts are on the same side, wherever they stand
    and whatever their labels. Pairs that share one text only may be divided.

    Raises:
        InputError: `share` is not between 0 and 1, or one side would be empty.
    """
    if not 0 < share < 1:
        raise InputError(f"a share of {share:g} cannot be held out; expected one between 0 and 1")
    sides: tuple[list[int], list[int]] = [], []
    for index, texts in enumerate(data.texts):
        sides[_fraction(texts, seed) < share].append(index)
    rest, held_out = sides
    if not rest or not held_out:
        emptier = "nothing would remain" if held_out else "nothing would be held out"
        raise InputError(f"{emptier}: a share of {share:g} of {len(data):,} examples; expected more of them")
    return _selected(data, rest), _selected(data, held_out)


def leakage(train: LabelledData, test: LabelledData) -> int:
    """How many examples of `test` have exactly the text (both of a pair) of one in `train`, whatever the label."""
    seen = set(train.texts)
    return sum(texts in seen for texts in test.texts)


def _fraction(texts: tuple[str, ...], seed: int) -> float:
    # JSON, so that ("ab", "c") and ("a", "bc") differ.
    value = hashlib.blake2b(json.dumps([seed, *texts]).encode(), digest_size=8, person=b"labelled").digest()
    return int.from_bytes(value, "big") / 2.0**64


def _selected(data: LabelledData, indices: list[int]) -> LabelledData:
    texts = [data.texts[index] for index in indices]
    return LabelledData(texts, [data.labels[index] for index in indices], data.label_names)


def _column(row: dict[str, Any], column: str, origin: str) -> Any:
    if column not in row:
        error = missing_field(column, row, origin)
        # A number asked for where there are names: most likely the file has no header.
        raise (
            InputError(f"{error} (columns have numbers only in a file without a header)")
            if column.isdecimal()
            else error
        )
    return row[column]


def _text(row: dict[str, Any], column: str, origin: str) -> str:
    value = _column(row, column, origin)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{origin}: field '{column}' is empty; expected a text in every row")
    if not isinstance(value, str):
        raise InputError(f"{origin}: field '{column}' is of type {type(value).__name__}; expected a string")
    check_unicode(value, origin)
    return value


def _label(value: Any, column: str, origin: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{origin}: field '{column}' is empty; expected a label in every row")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int):
        kind = type(value).__name__
        raise InputError(
            f"{origin}: label '{column}' is of type {kind}; expected a string, a whole number or a boolean"
        )
    name = str(value).strip()
    check_unicode(name, origin)
    return name


def _number(value: Any, column: str, origin: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{origin}: label '{column}' is {str(value)[:40]!r}; expected a finite number")
    return number


def _unknown_label(name: str, label_names: Sequence[str], origin: str) -> InputError:
    listed = ", ".join(known[:40] for known in label_names[:12]) + (", ..." if len(label_names) > 12 else "")
    hint = closest(name, label_names)
    return InputError(f"{origin}: unknown label '{name[:40]}'{hint}; the labels of the training set are: {listed}")
