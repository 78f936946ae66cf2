"""Tagged words in columns: a word a line, a blank line after a sentence; entity tags of any scheme become IOB2.

The schemes, for "Lake Constance" followed at once by "Bodensee" and then by a word outside:
    IOB1   I-LOC I-LOC B-LOC O   B- only where the entity touches one of its type before it (CoNLL-2003)
    IOB2   B-LOC I-LOC B-LOC O   B- begins every entity
    BIOES  B-LOC E-LOC S-LOC O   E- ends one of several words, S- is one of a single word
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from stemma.data.tables import numbered_lines
from stemma.errors import InputError

TaggedSentence = tuple[list[str], list[str]]

DOCUMENT_START = "-DOCSTART-"
ENTITY_TAG = re.compile(r"[BIES]-.+")


def read_conll(path: Path, *, word_column: int = 1, label_column: int | None = None) -> list[TaggedSentence]:
    """Read the sentences of a file in columns, (words, tags) with a tag a word; entity tags are converted to IOB2.

    Columns are divided by tabs, or by blanks in lines without a tab. -DOCSTART- lines end a sentence and are left out.
    Tags of which none looks like an entity's (parts of speech) stay as they are. In a file named .conllu, comments
    and the lines of multiword tokens ("1-2") and of empty nodes ("1.1") are left out.

    Args:
        word_column, label_column: from 1; the label's is the last unless given.

    Raises:
        InputError: a line with more or fewer columns than the first or without the column asked for, an empty word or
            tag, a tag that is of no scheme while others are (each with file and line); a file without sentences.
    """
    sentences: list[TaggedSentence] = []
    places: list[list[int]] = []  # the line of every word
    for rows in _sentences(path, conllu=".conllu" in path.suffixes):
        words, tags = [], []
        for number, row in rows:
            origin = f"{path}, line {number}"
            words.append(_column(row, word_column, "word", origin))
            tags.append(_column(row, len(row) if label_column is None else label_column, "label", origin))
        sentences.append((words, tags))
        places.append([number for number, _ in rows])
    if not sentences:
        raise InputError(f"{path}: no sentences; expected a word and its label on each line")
    return in_iob2(sentences, lambda sentence, word: f"{path}, line {places[sentence][word]}")


def in_iob2(sentences: list[TaggedSentence], origin: Callable[[int, int], str]) -> list[TaggedSentence]:
    """Return sentences with entity tags in IOB2; as they are if no tag is an entity's.

    Args:
        origin: of the label of a sentence's word, both counted from 0, for the error.
    Raises:
        InputError: a tag that is of no scheme while others are.
    """
    if detect_scheme(tags for _, tags in sentences) is None:
        return sentences
    for sentence, (_, tags) in enumerate(sentences):
        for word, tag in enumerate(tags):
            if tag != "O" and not ENTITY_TAG.fullmatch(tag):
                raise InputError(
                    f"{origin(sentence, word)}: label '{tag[:40]}'; expected O, or B-, I-, E- or S- and a type"
                )
    return [(words, to_iob2(tags)) for words, tags in sentences]


def detect_scheme(sentences: Iterable[Sequence[str]]) -> str | None:
    """Which scheme the tags of the sentences are in: "BIOES", "IOB1", "IOB2", or None if no tag is an entity's.

    An E- or S- means BIOES; otherwise an I- that starts an entity means IOB1.
    """
    scheme = None
    for tags in sentences:
        before = "O"
        for tag in tags:
            if ENTITY_TAG.fullmatch(tag):
                if tag[0] in "ES":
                    return "BIOES"
                scheme = scheme or "IOB2"
                if tag[0] == "I" and before[2:] != tag[2:]:
                    scheme = "IOB1"
            before = tag
    return scheme


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Convert the tags of one sentence from IOB1, IOB2 or BIOES to IOB2.

    One rule serves all three: a word goes on with an entity if its tag is I- or E- and an entity of its type is open,
    which E-, S- and O close. Tags against their scheme are thus read as conlleval reads them.
    """
    converted = []
    open_type = ""
    for tag in tags:
        if tag == "O":
            converted.append("O")
            open_type = ""
            continue
        mark, kind = tag[0], tag[2:]
        converted.append(f"I-{kind}" if mark in "IE" and open_type == kind else f"B-{kind}")
        open_type = "" if mark in "ES" else kind
    return converted


def _sentences(path: Path, conllu: bool) -> Iterator[list[tuple[int, list[str]]]]:
    """Yield the rows of each sentence with their line numbers; all have as many columns as the first of the file."""
    sentence: list[tuple[int, list[str]]] = []
    first: tuple[int, int] | None = None  # line, columns
    for number, line in numbered_lines(path):
        row = _divided(line)
        # A byte order mark may be left where files were joined, and ends the published development set of WNUT-17.
        if not line.strip().strip("\ufeff") or row[0] == DOCUMENT_START:
            if sentence:
                yield sentence
            sentence = []
            continue
        if conllu and (line.startswith("#") or not row[0].isdecimal()):
            continue
        first = first or (number, len(row))
        if len(row) != first[1]:
            raise InputError(
                f"{path}, line {number}: {len(row)} columns; expected {first[1]} as in line {first[0]}, or a blank line"
            )
        sentence.append((number, row))
    if sentence:
        yield sentence


def _divided(line: str) -> list[str]:
    # Not split(): a word may be, or hold, white space of another kind, such as a no-break space.
    return line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))


def _column(row: list[str], column: int, what: str, origin: str) -> str:
    if not 1 <= column <= len(row) or len(row) == 1:
        raise InputError(
            f"{origin}: no column {column} for the {what}; there are {len(row)}, expected a word and a label"
        )
    if not row[column - 1].strip(" "):
        raise InputError(f"{origin}: the {what} in column {column} is empty")
    return row[column - 1]
