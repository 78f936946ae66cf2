"""A tokenised corpus in the cache: what its files are, and how they are opened.

    <cache>/corpora/<key>/corpus.json           written last: what there is; without it the corpus is not complete
    <cache>/corpora/<key>/block-00000/          the tokens of the first block of text, and so on; each appears whole
        block.json                              counts of each split: tokens, documents, bytes
        train.tokens, held_out.tokens           uint16 (vocabulary <= 65,536) or uint32, little-endian
        train.documents, held_out.documents     int64: where each document starts among the tokens of all blocks
        train.bytes, held_out.bytes             int64: where it starts among the UTF-8 bytes of all blocks

Every document is stored as: separator, its tokens. A document may reach over blocks.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stemma.data.content_hashes import digest
from stemma.data.token_arrays import FileArray

SPLITS = ("train", "held_out")


class Counts(NamedTuple):
    """How much there is of something tokenised."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """The sum."""
        return Counts(*map(sum, zip(self, other, strict=True)))


@dataclass(frozen=True)
class TokenizedSplit:
    """One side of a tokenised corpus: `separator document separator document ...` as one long array of tokens."""

    tokens: FileArray
    document_starts: FileArray
    """int64 [documents]: where the separator of each document stands among the tokens."""
    byte_starts: FileArray
    """int64 [documents]: where each document starts in the text, in UTF-8 bytes."""
    bytes: int
    """UTF-8 bytes of the text, before any normalisation by the tokenizer."""
    separator: int
    vocabulary: int
    fingerprint: str

    @property
    def documents(self) -> int:
        """The number of documents."""
        return len(self.document_starts)

    @property
    def document_bytes(self) -> np.ndarray:
        """int64 [documents]: raw UTF-8 bytes of each document."""
        return np.diff(np.asarray(self.byte_starts), append=np.int64(self.bytes))

    def bounds(self, index: int) -> tuple[int, int]:
        """Where a document's tokens begin, with its separator, and end."""
        last = index + 1 == self.documents
        return int(self.document_starts[index]), len(self.tokens) if last else int(self.document_starts[index + 1])


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus in the cache, ready to train on."""

    directory: Path
    train: TokenizedSplit
    held_out: TokenizedSplit
    division: str
    """How the text was divided, in words."""
    fingerprint: str

    @property
    def summary(self) -> str:
        """One line for the user."""
        return f"train: {_in_words(self.train)}; held out: {_in_words(self.held_out)} ({self.division})"


def load_corpus(directory: Path) -> TokenizedCorpus | None:
    """Open a complete corpus; None if it is not there, or a block is missing or of another size than written."""
    content = _read_json(directory / "corpus.json")
    if content is None:
        return None
    folders = [directory / f"block-{index:05d}" for index in range(content["blocks"])]
    if any(read_counts(folder, content["dtype"]) is None for folder in folders):
        return None

    def open_split(name: str) -> TokenizedSplit:
        return TokenizedSplit(
            tokens=FileArray([folder / f"{name}.tokens" for folder in folders], content["dtype"]),
            document_starts=FileArray([folder / f"{name}.documents" for folder in folders], "<i8"),
            byte_starts=FileArray([folder / f"{name}.bytes" for folder in folders], "<i8"),
            bytes=content[name]["bytes"],
            separator=content["separator"],
            vocabulary=content["vocabulary"],
            fingerprint=digest([directory.name, name]),
        )

    return TokenizedCorpus(
        directory, open_split("train"), open_split("held_out"), content["division"], fingerprint=directory.name
    )


def read_counts(folder: Path, dtype: str) -> dict[str, Counts] | None:
    """The counts of a block; None if it is not there or not whole."""
    content = _read_json(folder / "block.json")
    if content is None:
        return None
    counts = {name: Counts(**content[name]) for name in SPLITS}
    try:
        for name, count in counts.items():
            if (folder / f"{name}.tokens").stat().st_size != count.tokens * np.dtype(dtype).itemsize:
                return None
            for kind in "documents", "bytes":
                if (folder / f"{name}.{kind}").stat().st_size != count.documents * 8:
                    return None
    except OSError:
        return None
    return counts


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content


def _in_words(split: TokenizedSplit) -> str:
    return f"{split.documents:,} documents, {len(split.tokens):,} tokens, {split.bytes:,} bytes"
