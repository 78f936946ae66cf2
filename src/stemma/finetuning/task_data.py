"""The examples of a task as its files have them: what is read, and what is expected of it."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stemma.data.conll import ENTITY_TAG, read_conll
from stemma.data.dataset_rows import is_dataset, needs_split
from stemma.data.labelled import LabelledData, read_labelled, split_by_hash
from stemma.data.parallel_texts import read_parallel
from stemma.data.readers import check_unicode, missing_field
from stemma.data.squad import read_squad
from stemma.data.tables import read_rows
from stemma.data.tagged_rows import read_questions, read_tagged
from stemma.errors import InputError, closest
from stemma.finetuning.choice_data import read_choices
from stemma.finetuning.recipe import DataRecipe, Kind


@dataclass(frozen=True)
class Examples(LabelledData):
    """Examples of the tasks that do not have one class or number a text:

    | kind | `texts[i]` | `labels[i]` | `label_names` |
    |---|---|---|---|
    | tagging | the words | a tag for each, as an index | the tags |
    | text | the source | the target | |
    | choice | the question ("": none) and the options | which is right, from 0 | |
    | answering | the question and the context | (text, first character) of each accepted answer | |
    """

    labels: list[Any]

    @property
    def label_counts(self) -> dict[str, int]:
        """How often each label occurs, in the order of `label_names`."""
        counts = Counter(label for labels in self.labels for label in labels) if self.label_names else Counter()
        return {name: counts[index] for index, name in enumerate(self.label_names)}


def read_examples(path: str, kind: Kind, data: DataRecipe, train: LabelledData | None = None) -> LabelledData:
    """Read one file or data set of a task.

    Args:
        path: see `recipe.DataRecipe`.
        train: the training set, whose labels are the only ones; None: this is it.
    Raises:
        InputError: a file that does not hold what the task needs; names the place.
    """
    if train is not None and is_dataset(path) and needs_split(path):
        # "train" would be measured on what was learned.
        raise InputError(f"{path}: which of its splits? Expected one behind it, such as {path}:validation")
    if kind == "tagging":
        return _tagged(path, data, train)
    if kind == "text":
        return _pairs(path, data)
    if kind == "answering":
        return _asked(path)
    if kind == "choice":
        columns = {"question": data.question, "choices": data.choices, "label": data.label}
        return Examples(*read_choices(Path(path), **columns, header=data.header, quotes=data.quotes), ())  # type: ignore[arg-type]
    regression = kind == "regression"
    return read_labelled(
        Path(path),
        text=data.text,
        pair=data.pair,
        label=data.label,
        label_names=None if regression or train is None else train.label_names,
        regression=regression,
        header=data.header,
        quotes=data.quotes,
    )


def hold_out(data: LabelledData, share: float, kind: Kind) -> tuple[LabelledData, LabelledData]:
    """Return (rest, held out), divided by a hash of the texts (see `split_by_hash`), of answering of the contexts.

    Raises:
        InputError: see there.
    """
    texts = [text[1:] for text in data.texts] if kind == "answering" else data.texts
    numbered = LabelledData(texts, list(range(len(data))), ())
    rest, held_out = split_by_hash(numbered, share, seed=0)
    return selected(data, rest.labels), selected(data, held_out.labels)


def selected(data: LabelledData, numbers: Sequence[Any]) -> LabelledData:
    """Return the examples of these numbers."""
    labels: Any = [data.labels[number] for number in numbers]
    return replace(data, texts=[data.texts[number] for number in numbers], labels=labels)


def _tagged(path: str, data: DataRecipe, train: LabelledData | None) -> Examples:
    if is_dataset(path):
        sentences = read_tagged(path, words=data.text, tags=data.label)
    else:
        word = _number(data.text, "data.text", default="text") or 1
        tag = _number(data.label, "data.label", default="label")
        sentences = read_conll(Path(path), word_column=word, label_column=tag)
    names = _tag_names([tags for _, tags in sentences]) if train is None else train.label_names
    index_of = {name: index for index, name in enumerate(names)}
    for _, tags in sentences:
        unknown = next((tag for tag in tags if tag not in index_of), None)
        if unknown is not None:
            hint = closest(unknown, names)
            raise InputError(f"{path}: tag '{unknown[:40]}' does not occur in the training set{hint}")
    labels = [[index_of[tag] for tag in tags] for _, tags in sentences]
    return Examples([tuple(words) for words, _ in sentences], labels, names)


def _pairs(path: str, data: DataRecipe) -> Examples:
    files = path.split(",")
    if len(files) == 2 and not Path(path).exists():
        pairs = read_parallel(Path(files[0]), Path(files[1]))
    else:
        rows = read_rows(Path(path), header=data.header, quotes=data.quotes)
        pairs = [(text_of(row, data.source, at), text_of(row, data.target, at)) for row, at in rows]
    if not pairs:
        raise InputError(f"{path}: no rows; expected at least one source and its target")
    return Examples([(source,) for source, _ in pairs], [target for _, target in pairs], ())


def _asked(path: str) -> Examples:
    squad = read_questions(path) if is_dataset(path) else read_squad(Path(path))
    if squad.misfits:
        warnings.warn(
            f"{path}: {squad.misfits:,} answers do not stand where it says they do", UserWarning, stacklevel=3
        )
    accepted = [() if one.is_impossible else one.answers for one in squad.questions]
    answers = [[(answer.text, answer.start) for answer in one] for one in accepted]
    return Examples([(one.question, one.context) for one in squad.questions], answers, ())


def text_of(row: Mapping[str, Any], column: str, origin: str) -> str:
    """Return a row's text in a column.

    Raises:
        InputError: no such column, or no text in it.
    """
    if column not in row:
        raise missing_field(column, row, origin)
    if not isinstance(row[column], str) or not row[column].strip():
        raise InputError(f"{origin}: field '{column}' is {str(row[column])[:40]!r}; expected a text in every row")
    check_unicode(row[column], origin)
    return row[column]


def _number(column: str, key: str, default: str) -> int | None:
    if column == default:
        return None
    if not column.isdecimal():
        raise InputError(f"{key}: '{column}'; the columns of a CoNLL file have numbers, from 1")
    return int(column)


def _tag_names(sentences: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the tags by falling frequency; of entities O, and both tags of each type, whether or not both occur."""
    counts = Counter(tag for tags in sentences for tag in tags)
    if not any(ENTITY_TAG.fullmatch(tag) for tag in counts):
        return tuple(sorted(counts, key=lambda tag: (-counts[tag], tag)))
    kinds: Counter[str] = Counter()
    for tag, count in counts.items():
        if tag != "O":
            kinds[tag[2:]] += count
    return ("O", *(f"{mark}-{kind}" for kind in sorted(kinds, key=lambda kind: (-kinds[kind], kind)) for mark in "BI"))
