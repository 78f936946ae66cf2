"""Edge probing's data: sentences of words with labelled spans, or pairs of spans (Tenney et al. 2019, section 2).

A JSON object a line, spans half-open over the words of the text between blanks:
    {"text": "Anna sees Boris", "targets": [{"span1": [0, 1], "span2": [1, 2], "label": "nsubj"}]}
A target has one label or a list of them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stemma.data.tables import read_rows
from stemma.errors import InputError
from stemma.files import write_whole

Span = tuple[int, int]


@dataclass(frozen=True)
class Target:
    """A span, or two, and what it is. labels: distinct, at least one."""

    spans: tuple[Span, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Sentence:
    """Words without white space, and targets over them."""

    words: tuple[str, ...]
    targets: tuple[Target, ...]


def read_edges(path: Path) -> list[Sentence]:
    """Read the published format; sentences without targets are left out.

    Raises:
        InputError: a line that is no such object, a span that is empty or outside of the text, one-span targets among
            pairs (each with file and line), or a file without targets.
    """
    sentences = []
    for row, origin in read_rows(path):
        text, targets = row.get("text"), row.get("targets")
        if not isinstance(text, str) or not isinstance(targets, list):
            raise InputError(f'{origin}: expected a "text" and a list of "targets"')
        words = tuple(text.split())
        if targets:
            found = tuple(_target(one, len(words), f"{origin}, target {n}") for n, one in enumerate(targets, 1))
            sentences.append(Sentence(words, found))
    return checked(sentences, path)


def checked(sentences: list[Sentence], path: Path) -> list[Sentence]:
    """Return sentences of which all targets have as many spans.

    Raises:
        InputError: they have not, or there are none.
    """
    numbers = {len(target.spans) for sentence in sentences for target in sentence.targets}
    if not numbers:
        raise InputError(f"{path}: no targets; expected labelled spans")
    if len(numbers) > 1:
        raise InputError(f"{path}: targets with one span and with two; expected all alike")
    return sentences


def label_names(parts: Iterable[Sequence[Sentence]]) -> list[str]:
    """Return the labels of all targets, sorted."""
    return sorted(
        {label for part in parts for sentence in part for target in sentence.targets for label in target.labels}
    )


def label_matrix(sentences: Sequence[Sentence], names: Sequence[str]) -> np.ndarray:
    """Return bool [targets, names]: which labels each target of the sentences has."""
    number = {name: index for index, name in enumerate(names)}
    targets = [target for sentence in sentences for target in sentence.targets]
    matrix = np.zeros((len(targets), len(names)), bool)
    for row, target in enumerate(targets):
        matrix[row, [number[label] for label in target.labels]] = True
    return matrix


def write_predictions(path: Path, sentences: Sequence[Sentence], rows: Sequence[np.ndarray | None]) -> None:
    """Write the published format with the probability of each label in each target's "preds".

    Args:
        rows: float [labels] of each target in turn, None of one that was not read.
    """
    with write_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in _predicted(sentences, rows):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _predicted(sentences: Sequence[Sentence], rows: Sequence[np.ndarray | None]) -> Iterator[dict[str, Any]]:
    following = iter(rows)
    for sentence in sentences:
        targets = []
        for target in sentence.targets:
            content: dict[str, Any] = {f"span{n}": list(span) for n, span in enumerate(target.spans, 1)}
            content["label"] = target.labels[0] if len(target.labels) == 1 else list(target.labels)
            row = next(following)
            proba = None if row is None else [round(float(value), 6) for value in row]
            targets.append({**content, "preds": {"proba": proba}})
        yield {"text": " ".join(sentence.words), "targets": targets}


def _target(content: Any, words: int, origin: str) -> Target:
    if not isinstance(content, dict):
        raise InputError(f'{origin}: expected an object with "span1" and "label"')
    names = ["span1", "span2"] if content.get("span2") is not None else ["span1"]
    spans = tuple(_span(content.get(name), words, f"{origin}, {name}") for name in names)
    label = content.get("label")
    labels = tuple(dict.fromkeys(label)) if isinstance(label, list) else (label,)
    if not labels or not all(isinstance(one, str) and one for one in labels):
        raise InputError(f"{origin}: label {label!r}; expected a text or a list of texts")
    return Target(spans, labels)


def _span(content: Any, words: int, origin: str) -> Span:
    if not (isinstance(content, list) and len(content) == 2 and all(type(end) is int for end in content)):
        raise InputError(f"{origin}: {content!r}; expected [start, end] in words")
    start, end = content
    if not 0 <= start < end <= words:
        raise InputError(f"{origin}: [{start}, {end}] of {words} words; expected 0 <= start < end <= {words}")
    return start, end
