"""Word vectors: words, a matrix, and what is asked of them. Loaded from and saved to the common formats."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from stemma.data import vector_files
from stemma.data.word_corpora import read_vocabulary, write_vocabulary
from stemma.errors import InputError, closest
from stemma.files import write_whole

FORMATS = ("word2vec", "word2vec-binary", "glove")
VOCABULARY, WEIGHTS, CONFIG = "vocabulary.txt", "model.safetensors", "config.json"
TENSOR = "vectors"


class WordVectors:
    """A vector for each of many words.

    Args:
        words: as a rule by falling frequency. matrix: float32 [words, dimensions], may be memory-mapped.
        counts: int64 [words], how often each came, where that is known.
    Raises:
        InputError: not as many rows as words.
    """

    def __init__(self, words: Sequence[str], matrix: np.ndarray, counts: np.ndarray | None = None) -> None:
        if matrix.ndim != 2 or len(words) != len(matrix):
            raise InputError(f"{len(words)} words for a matrix of shape {list(matrix.shape)}; expected a row a word")
        self.words, self.matrix, self.counts = list(words), matrix, counts

    @classmethod
    def load(
        cls, path: str | Path, *, form: str | None = None, errors: str = "strict", limit: int | None = None
    ) -> "WordVectors":
        """Load a directory that training wrote, or a file of vectors, also one below .gz.

        Only the directory's matrix is memory-mapped: in the other formats words stand between the numbers.

        Args:
            form: of a file, one of `FORMATS`; default: what it looks like.
            errors: for words that are not UTF-8, as in `bytes.decode`; "surrogateescape" keeps and writes their bytes.
            limit: load only the first words.
        Raises:
            InputError: no such file, or one of another form, naming the line or byte.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            return _load_directory(path, limit)
        if form is not None and form not in FORMATS:
            raise InputError(f"format: '{form}'{closest(form, FORMATS)}; expected {', '.join(FORMATS)}")
        words, matrix = vector_files.read(path, form, errors, limit)
        return cls(words, matrix)

    def save(self, path: str | Path, form: str, *, decimals: int = 6) -> None:
        """Write a file of vectors, whole or not at all.

        Args:
            form: one of `FORMATS`. decimals: of the numbers in the text formats.
        Raises:
            InputError: unknown format, or a word with white space, which the word2vec formats cannot hold.
        """
        if form not in FORMATS:
            raise InputError(f"format: '{form}'{closest(form, FORMATS)}; expected {', '.join(FORMATS)}")
        with write_whole(Path(path)) as temporary:
            vector_files.write(temporary, form, self.words, self.matrix, decimals)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._rows

    def __getitem__(self, word: str) -> np.ndarray:
        return self.matrix[self.row(word)]

    @property
    def dimensions(self) -> int:
        """The length of each vector."""
        return self.matrix.shape[1]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in reversed(list(enumerate(self.words)))}

    @cached_property
    def directions(self) -> np.ndarray:
        """The vectors at length 1, float32 [words, dimensions]; zero vectors stay zero, so that their cosines are 0."""
        lengths = np.sqrt(np.einsum("ij,ij->i", self.matrix, self.matrix, dtype=np.float64))[:, None]
        return self.matrix / np.where(lengths > 0, lengths, 1).astype(np.float32)

    def row(self, word: str) -> int:
        """Return the row of a word.

        Raises:
            InputError: it has none; names the nearest.
        """
        if word not in self._rows:
            known = [near for near in self.words if near[:1] == word[:1] and abs(len(near) - len(word)) < 3]
            raise InputError(f"no vector for the word '{word}'{closest(word, known[:20000])}")
        return self._rows[word]

    def neighbours(self, word: str, top: int = 10) -> list[tuple[str, float]]:
        """Return the words with the largest cosines to a word, and these; not the word itself."""
        row = self.row(word)
        return self._largest(self.directions @ self.directions[row], top, [row])

    def analogy(self, first: str, second: str, third: str, top: int = 10) -> list[tuple[str, float]]:
        """Return what is to `third` as `second` is to `first` (3CosAdd), with cosines; not the three themselves."""
        rows = [self.row(word) for word in (first, second, third)]
        target = self.directions[rows[1]] - self.directions[rows[0]] + self.directions[rows[2]]
        length = float(np.linalg.norm(target))
        return self._largest(self.directions @ (target / (length or 1)), top, rows)

    def _largest(self, scores: np.ndarray, top: int, excluded: Iterable[int]) -> list[tuple[str, float]]:
        scores[list(excluded)] = -np.inf
        count = min(top, len(scores) - len(set(excluded)))
        best = np.argpartition(-scores, max(count - 1, 0))[:count]
        return [(self.words[row], float(scores[row])) for row in best[np.argsort(-scores[best], kind="stable")]]


def write_directory(
    directory: Path, config: dict[str, Any], words: Sequence[str], counts: np.ndarray, tensors: dict[str, np.ndarray]
) -> None:
    """Write config.json, vocabulary.txt and model.safetensors into an empty folder; `tensors` holds "vectors".

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    content = {**config, "vocabulary": len(words), "dimensions": tensors[TENSOR].shape[1]}
    (directory / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_vocabulary(directory / VOCABULARY, words, counts)
    write_tensors(directory / WEIGHTS, tensors)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    with write_whole(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask says; safetensors makes files private
        try:
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary, metadata)
        except SafetensorError as error:  # what a full disk looks like from there
            raise OSError(f"{path}: {error}") from error
        temporary.chmod(mode)


def _load_directory(directory: Path, limit: int | None) -> WordVectors:
    if not ((directory / VOCABULARY).is_file() and (directory / CONFIG).is_file()):
        raise InputError(f"{directory}: no {CONFIG} and {VOCABULARY}; expected a directory of word vectors, or a file")
    words, counts = read_vocabulary(directory / VOCABULARY)
    return WordVectors(words[:limit], map_tensor(directory / WEIGHTS, TENSOR)[:limit], counts[:limit])


def map_tensor(path: Path, name: str) -> np.ndarray:
    """Return one float32 tensor of a safetensors file, memory-mapped.

    Raises:
        InputError: no such file or tensor, another type, or a file that is cut off.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        entry = header[name]
        start, end = entry["data_offsets"]
        if entry["dtype"] != "F32":
            raise InputError(f"{path}: tensor '{name}' is {entry['dtype']}, expected F32")
        return np.memmap(path, np.float32, "r", offset=8 + size + start, shape=tuple(entry["shape"]))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: no whole safetensors file with a tensor '{name}' ({error})") from None
