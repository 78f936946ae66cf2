"""Corpora: what a user points at (files, folders, standard input, data sets, Python) as a stream of documents."""

import functools
import glob
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stemma.data.byte_streams import CHUNK, Count
from stemma.data.content_hashes import content_hashes, digest, stamps
from stemma.data.documents import SPLITTERS, Piece
from stemma.data.hub_datasets import PREFIX, open_hub_corpus, split_in_folder
from stemma.data.python_corpus import python_files, read_python
from stemma.data.readers import FORMATS, format_of, read
from stemma.data.splits import divide, plan_split
from stemma.errors import InputError, closest
from stemma.files import cache_directory, write_whole

OTHER_ARCHIVES = {".bz2", ".xz", ".lz4", ".zip", ".7z", ".tgz"}


@dataclass(frozen=True)
class CorpusSource:
    """A description of a corpus. Raises InputError where an option is none of those that there are."""

    what: str = "python"
    """A file, folder or glob; "-" (standard input); `hf:owner/name[:config][:split]`, also of a
    local folder in place of a name; or "python"."""
    field: str = "text"
    """The field of JSONL, CSV, Parquet and hub rows that holds the text; each row is a document."""
    documents: str = "file"
    """What a document is in text files: the whole "file", a "paragraph" (up to a blank line) or a "line"."""
    held_out: float | str = 0.05
    """The fraction to hold out from training, or another corpus in the form of `what`."""
    format: str | None = None
    """"text", "jsonl", "csv", "tsv", "parquet" or "arrow", where the file's name does not tell."""

    def __post_init__(self) -> None:
        if self.documents not in SPLITTERS:
            known = ", ".join(SPLITTERS)
            raise InputError(f"documents: '{self.documents}'{closest(self.documents, SPLITTERS)}; expected {known}")
        formats = sorted(set(FORMATS.values()))
        if self.format is not None and self.format not in formats:
            expected = ", ".join(formats)
            raise InputError(f"format: '{self.format}'{closest(self.format, formats)}; expected {expected}")
        if not isinstance(self.held_out, str) and not 0 <= self.held_out < 1:
            raise InputError(f"held_out: {self.held_out}; expected a fraction from 0 to below 1, or a path")


class Corpus(Protocol):
    """An opened corpus, which may be read any number of times."""

    @property
    def size(self) -> int:
        """Bytes to read, 0 if unknown."""

    def pieces(self, count: Count) -> Iterator[Piece]:
        """Yield the documents in their fixed order."""

    def fingerprint(self, cache: Path, count: Count) -> str:
        """A hash of everything that `pieces` depends on; `count` is called with the bytes read for it."""

    def check_unchanged(self) -> None:
        """Raise InputError if the content may have changed since the fingerprint was taken."""


class FileCorpus:
    """A corpus in files: `read(paths, count)` yields its documents, `description` says how it reads them."""

    def __init__(
        self, paths: list[Path], description: list[str], read: Callable[[list[Path], Count], Iterator[Piece]]
    ) -> None:
        self.paths = paths
        self._description = description
        self._read = read
        self._stamps = stamps(paths)
        self.size = sum(size for size, _ in self._stamps)

    def pieces(self, count: Count) -> Iterator[Piece]:
        return self._read(self.paths, count)

    def fingerprint(self, cache: Path, count: Count) -> str:
        return digest(["files", *self._description, *content_hashes(self.paths, cache, count)])

    def check_unchanged(self) -> None:
        for path, before, now in zip(self.paths, self._stamps, stamps(self.paths), strict=True):
            if before != now:
                raise InputError(f"{path}: changed while it was being read; expected a file at rest")


def open_corpus(source: CorpusSource, cache: Path | None = None) -> Corpus:
    """Find the corpus that `source.what` names. Standard input is first copied to `cache`, to be read more than once.

    Raises InputError if there is no such file (naming the closest in the folder), extra or data set.
    """
    in_folder = split_in_folder(source.what) if source.what.startswith(PREFIX) else None
    if source.what.startswith(PREFIX) and in_folder is None:
        return open_hub_corpus(source.what, source.field)
    if source.what == "python":
        return FileCorpus(python_files(), ["python"], read_python)
    if source.what == "-":
        paths = [_spool_standard_input((cache or cache_directory()) / "standard-input")]
    elif in_folder is not None:
        paths = _files_in(in_folder) if isinstance(in_folder, Path) else in_folder
    else:
        paths = find_files(source.what)
    formats = [source.format or format_of(path) or "text" for path in paths]

    def read_files(paths: list[Path], count: Count) -> Iterator[Piece]:
        for path, file_format in zip(paths, formats, strict=True):
            yield from read(path, file_format, source.field, source.documents, count)

    return FileCorpus(paths, [source.field, source.documents, *formats], read_files)


def training_texts(source: CorpusSource, cache: Path | None = None) -> Iterator[str]:
    """Yield the text to train on, in pieces of at most 64 Ki characters, without what is held out.

    For training a tokenizer. The division is the one that `prepare` makes. Raises InputError at the end if there is
    none, besides what reading raises.
    """
    corpus = open_corpus(source, cache)
    fraction = 0.0 if isinstance(source.held_out, str) else source.held_out
    split, empty = plan_split(corpus.pieces(_ignore), fraction, source.what), True
    for held_out, piece in divide(corpus.pieces(_ignore), split):
        if not held_out:
            empty = False
            yield piece.text
    if empty:
        raise empty_corpus(source.what)


def empty_corpus(what: str) -> InputError:
    """Return the error for a corpus without text."""
    return InputError(f"{what}: an empty corpus; expected at least one document that is not white space")


def thinned(texts: Iterable[str], enough: int = 2**27) -> Iterator[str]:
    """Yield `enough` characters and, of what follows, as small a part as they are of all so far: 600 million of 5 GB.

    For training a tokenizer that is as good as the whole, and comes from all over it.
    """
    seen = kept = 0
    for text in texts:
        seen += len(text)
        if kept < enough * (1 + math.log(max(seen / enough, 1.0))):
            kept += len(text)
            yield text


def find_files(what: str) -> list[Path]:
    """The files that a path, folder or glob stands for, sorted.

    A folder stands for the files below it with a known format, hidden ones excepted; a folder written by
    `Dataset.save_to_disk` for its Arrow files; one written by `DatasetDict.save_to_disk` for its split `train`.
    """
    path = Path(what).expanduser()
    if path.is_dir():
        return _files_in(path)
    if path.suffix in OTHER_ARCHIVES or ".tar" in path.suffixes:
        raise InputError(f"{what}: an archive of a kind that is not read; expected plain files, or .gz or .zst")
    if path.exists():
        return [path]
    if glob.has_magic(what):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise InputError(f"{what}: no file matches this pattern")
        return found
    if not path.parent.is_dir():
        raise InputError(f"{what}: no such file, nor a folder {path.parent}")
    near = closest(path.name, os.listdir(path.parent))
    raise InputError(f"{what}: no such file or folder{near}")


def _files_in(folder: Path) -> list[Path]:
    state, splits = folder / "state.json", folder / "dataset_dict.json"
    if state.exists():
        return [folder / file["filename"] for file in json.loads(state.read_text())["_data_files"]]
    if splits.exists():
        names = json.loads(splits.read_text())["splits"]
        if "train" not in names:
            raise InputError(f"{folder}: a data set without a split 'train'; give the folder of one of: {names}")
        return _files_in(folder / "train")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    known = [path for path in files if format_of(path)]
    if not known:
        hint = f"; for files of another name give a pattern such as '{folder}/**/*{files[0].suffix}'" if files else ""
        raise InputError(f"{folder}: no file of a known format ({', '.join(FORMATS)}, with .gz or .zst){hint}")
    return known


@functools.cache  # it can be read once only, but a run may open it twice: for the tokenizer and for the shards
def _spool_standard_input(folder: Path) -> Path:
    """Copy standard input to a file named by its content, so that it can be hashed and read again."""
    state = hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(folder / f"being-read-{os.getpid()}") as temporary, open(temporary, "wb") as file:
            while chunk := sys.stdin.buffer.read(CHUNK):
                state.update(chunk)
                file.write(chunk)
        path = folder / state.hexdigest()[:32]
        os.replace(folder / f"being-read-{os.getpid()}", path)
    except OSError as error:
        raise InputError(f"{folder}: standard input cannot be kept there ({error.strerror})") from None
    return path


def _ignore(read: int) -> None:
    pass
