"""Files of word vectors: word2vec's text and binary formats, and GloVe's text, which has no header.

word2vec: a first line "words dimensions"; then a line a word, or in binary the word, a blank, its float32 numbers
(little-endian) and, by word2vec.c but not by gensim, a line end. GloVe: lines only, whose words may hold blanks.
"""

import gzip
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO

import numpy as np

from stemma.errors import InputError

LINES = 4096  # parsed at once
BUFFER = 1 << 22  # bytes read at once


def read(path: Path, form: str | None, errors: str, limit: int | None) -> tuple[list[str], np.ndarray]:
    """Return the words and a float32 matrix; see `WordVectors.load`."""
    try:
        with _open(path) as file:
            first = file.readline(1 << 20)
            header = _header(first)
            if form is None:
                form = _recognise(header, file)
            if form != "glove" and header is None:
                raise InputError(f"{path}, line 1: expected the numbers of words and dimensions")
            if form == "glove":
                return _read_lines(chain([first], file), path, None, errors, limit, 1)
            count, dimensions = header or (0, 0)
            wanted = count if limit is None else min(count, limit)
            file.seek(len(first))
            if form == "word2vec":
                words, matrix = _read_lines(iter(file), path, dimensions, errors, wanted, 2)
                if len(words) < wanted:
                    raise InputError(f"{path}: {len(words)} words; the first line promises {count}")
                return words, matrix
            return _read_binary(file, path, wanted, dimensions, errors)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from None


def write(path: Path, form: str, words: Sequence[str], matrix: np.ndarray, decimals: int) -> None:
    """Write the vectors; see `WordVectors.save`."""
    with open(path, "wb") as file:
        if form != "glove":
            spaced = next((word for word in words if not word or word.split() != [word]), None)
            if spaced is not None:
                raise InputError(f"the word '{spaced}' is empty or has white space; expected none in this format")
            file.write(f"{len(words)} {matrix.shape[1]}\n".encode())
        pattern = " ".join([f"%.{decimals}f"] * matrix.shape[1])
        for word, vector in zip(words, matrix, strict=True):
            file.write(word.encode(errors="surrogateescape") + b" ")
            if form == "word2vec-binary":
                file.write(vector.astype("<f4").tobytes() + b"\n")
            else:
                file.write((pattern % tuple(vector.tolist())).encode() + b"\n")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb", buffering=BUFFER)  # type: ignore[return-value]


def _header(line: bytes) -> tuple[int, int] | None:
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or int(parts[1]) == 0:
        return None
    return int(parts[0]), int(parts[1])


def _recognise(header: tuple[int, int] | None, file: IO[bytes]) -> str:
    """Tell the format from the first line, and the second, which in text has a number of numbers."""
    if header is None:
        return "glove"
    second = file.readline(1 << 20).split()
    try:
        numbers = [float(part) for part in second[-header[1] :]]
    except ValueError:
        return "word2vec-binary"
    return "word2vec" if len(numbers) == header[1] else "word2vec-binary"


def _read_lines(
    lines: Iterator[bytes], path: Path, dimensions: int | None, errors: str, limit: int | None, number: int
) -> tuple[list[str], np.ndarray]:
    """Read lines of a word and numbers, split from the right; `number` is that of the first line."""
    words: list[str] = []
    parts: list[np.ndarray] = []
    lines = islice(lines, limit)
    while block := list(islice(lines, LINES)):
        found, numbers = [], []
        for offset, line in enumerate(block):
            text = line.strip(b" \r\n") if dimensions is not None else line.rstrip(b" \r\n")
            if dimensions is None:
                dimensions = text.count(b" ")
            fields = text.rsplit(b" ", dimensions)
            if dimensions == 0 or len(fields) != dimensions + 1:
                raise InputError(f"{path}, line {number + offset}: expected a word and {dimensions or 'its'} numbers")
            found.append(_decode(fields[0], errors, f"{path}, line {number + offset}"))
            numbers.append(fields[1:])
        try:
            parts.append(np.array(numbers, dtype=np.bytes_).astype(np.float32))
        except ValueError as error:
            raise InputError(f"{path}, lines {number} to {number + len(block) - 1}: {error}") from None
        words += found
        number += len(block)
    if not words:
        raise InputError(f"{path}: no vectors in it")
    return words, np.concatenate(parts)


def _read_binary(file: IO[bytes], path: Path, count: int, dimensions: int, errors: str) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    matrix = np.empty((count, dimensions), np.float32)
    size = 4 * dimensions
    buffer, position, done = b"", 0, 0  # `done`: bytes before the buffer
    for row in range(count):
        while (blank := buffer.find(b" ", position)) < 0 or len(buffer) < blank + 1 + size:
            more = file.read(BUFFER)
            if not more:
                raise InputError(f"{path}: ends in word {row + 1} of {count}, at byte {done + len(buffer)}")
            done += position
            buffer, position = buffer[position:] + more, 0
        word = buffer[position:blank].lstrip(b"\n")
        words.append(_decode(word, errors, f"{path}, word {row + 1}"))
        matrix[row] = np.frombuffer(buffer, "<f4", dimensions, blank + 1)
        position = blank + 1 + size
    return words, matrix


def _decode(word: bytes, errors: str, origin: str) -> str:
    try:
        return word.decode(errors=errors)
    except UnicodeDecodeError as error:
        raise InputError(f"{origin}: not UTF-8 ({error.reason}); other errors= than 'strict' would accept it") from None
