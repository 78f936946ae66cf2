"""Edge probing's targets from treebanks, tagged columns, and spans of characters."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stemma.data.conll import read_conll
from stemma.data.tables import read_rows
from stemma.errors import InputError
from stemma.probing.edges import Sentence, Span, Target, checked, read_edges

_WORD, _PART, _HEAD, _RELATION = 2, 4, 7, 8  # columns of CoNLL-U


def read_dependencies(path: Path) -> list[Sentence]:
    """Read a CoNLL-U treebank: of each word itself, its head (of the root: itself), and their relation.

    Raises:
        InputError: see `read_conll`; a head that is no word of the sentence.
    """
    heads = read_conll(_treebank(path), word_column=_WORD, label_column=_HEAD)
    relations = read_conll(path, word_column=_WORD, label_column=_RELATION)
    sentences = []
    for number, ((words, above), (_, labels)) in enumerate(zip(heads, relations, strict=True), 1):
        targets = []
        for place, (head, label) in enumerate(zip(above, labels, strict=True)):
            if not head.isdecimal() or int(head) > len(words):
                raise InputError(
                    f"{path}, sentence {number}: head '{head}' of word {place + 1}; expected 0 to {len(words)}"
                )
            other = int(head) - 1 if int(head) else place
            targets.append(Target(((place, place + 1), (other, other + 1)), (label,)))
        sentences.append(Sentence(_plain(words), tuple(targets)))
    return checked(sentences, path)


def read_parts_of_speech(path: Path) -> list[Sentence]:
    """Read a CoNLL-U treebank: each word with its universal part of speech. Errors: see `read_conll`."""
    sentences = []
    for words, tags in read_conll(_treebank(path), word_column=_WORD, label_column=_PART):
        targets = tuple(Target(((place, place + 1),), (tag,)) for place, tag in enumerate(tags))
        sentences.append(Sentence(_plain(words), targets))
    return checked(sentences, path)


def read_entities(path: Path) -> list[Sentence]:
    """Read entities in columns, a word and its tag a line, in any scheme (CoNLL-2003); sentences without any are left
    out. Errors: see `read_conll`."""
    sentences = []
    for words, tags in read_conll(path):
        starts = [place for place, tag in enumerate(tags) if tag.startswith("B-")]
        targets = []
        for start in starts:
            end = start + 1
            while end < len(tags) and tags[end].startswith("I-"):
                end += 1
            targets.append(Target(((start, end),), (tags[start][2:],)))
        if targets:
            sentences.append(Sentence(_plain(words), tuple(targets)))
    return checked(sentences, path)


def read_character_spans(path: Path) -> list[Sentence]:
    """Read JSON lines with a text and spans of its characters, half-open:

    {"text": "Anna sees Boris.", "spans": [{"start": 10, "end": 15, "label": "person"}]}

    A pair has "start2" and "end2" too. A span stands for the words that it touches.

    Raises:
        InputError: a line that is no such object, or a span that touches no word, with file and line.
    """
    sentences = []
    for row, origin in read_rows(path):
        text, spans = row.get("text"), row.get("spans")
        if not isinstance(text, str) or not isinstance(spans, list):
            raise InputError(f'{origin}: expected a "text" and a list of "spans"')
        words = [match.span() for match in re.finditer(r"\S+", text)]
        targets = []
        for number, span in enumerate(spans, 1):
            where = f"{origin}, span {number}"
            if not isinstance(span, dict) or not isinstance(span.get("label"), str):
                raise InputError(f'{where}: expected an object with "start", "end" and "label"')
            ends = [("start", "end"), ("start2", "end2")] if "start2" in span else [("start", "end")]
            found = tuple(_touched(words, span.get(start), span.get(end), len(text), where) for start, end in ends)
            targets.append(Target(found, (span["label"],)))
        if targets:
            sentences.append(Sentence(tuple(text.split()), tuple(targets)))
    return checked(sentences, path)


# What a file holds, by the name of its task.
TASKS: dict[str, Callable[[Path], list[Sentence]]] = {
    "edges": read_edges,
    "dependencies": read_dependencies,
    "parts-of-speech": read_parts_of_speech,
    "entities": read_entities,
    "spans": read_character_spans,
}


def _touched(words: list[Span], start: Any, end: Any, length: int, origin: str) -> Span:
    if not (type(start) is int and type(end) is int and 0 <= start < end <= length):
        raise InputError(f"{origin}: [{start}, {end}]; expected 0 <= start < end <= {length} characters")
    touched = [place for place, (first, last) in enumerate(words) if first < end and start < last]
    if not touched:
        raise InputError(f"{origin}: [{start}, {end}] holds white space only; expected a word")
    return touched[0], touched[-1] + 1


def _treebank(path: Path) -> Path:
    if ".conllu" not in path.suffixes:
        raise InputError(f"{path}: not a treebank by its name; expected .conllu")
    return path


def _plain(words: list[str]) -> tuple[str, ...]:
    """Return the words without white space inside, such as that of numbers, so that a text of them divides again."""
    return tuple("".join(word.split()) or "\ufffd" for word in words)
