"""Corpora tokenised once, in parallel, to the memory-mapped shards that `tokenized_corpus` describes.

They lie in the cache under a key of content and tokenizer. The tokenizer's own threads do the work, a batch of text
after the other, so that the shards are the same bytes whatever the number of threads.
"""

import fcntl
import itertools
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stemma.data.content_hashes import digest
from stemma.data.corpora import Corpus, CorpusSource, empty_corpus, open_corpus
from stemma.data.documents import Piece
from stemma.data.splits import divide, plan_split
from stemma.data.tokenized_corpus import SPLITS, Counts, TokenizedCorpus, TokenizedSplit, load_corpus, read_counts
from stemma.errors import InputError
from stemma.files import cache_directory, write_whole

__all__ = ["CorpusSource", "Progress", "TokenizedCorpus", "TokenizedSplit", "prepare"]

VERSION = 1  # of the format and of how text is divided; part of the key
BLOCK_BYTES = 1 << 25  # of text: what is lost of a tokenisation that is interrupted
BATCH_BYTES = 1 << 22  # of text given to the tokenizer at once; it needs about 50 times as much memory

# Called with a stage ("hashing", "reading", "tokenising"), and the bytes done and to do (0: unknown).
Progress = Callable[[str, int, int], None]


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocabulary(self) -> int: ...
    @property
    def separator(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_batch(self, texts: list[str], /) -> list[list[int]]: ...


def prepare(
    source: CorpusSource,
    tokenizer: Encoder,
    cache: Path | None = None,
    progress: Progress | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> TokenizedCorpus:
    """Return the tokenised corpus from the cache, tokenising it first where that has not been done.

    The shards are the same bytes whatever the number of threads, and a tokenisation that was interrupted goes on
    after its last complete block. Of several processes that ask for the same corpus one does the work.
    Raises InputError for text that cannot be read, a corpus without text and a cache that cannot be written.
    """
    cache = cache or cache_directory()
    report = progress or (lambda stage, done, total: None)
    corpora = [open_corpus(source, cache)]
    if isinstance(source.held_out, str):
        corpora.append(open_corpus(replace(source, what=source.held_out), cache))
    hashing = _Meter(report, "hashing", sum(corpus.size for corpus in corpora))
    contents = [corpus.fingerprint(cache, hashing) for corpus in corpora]
    fraction = "separate" if isinstance(source.held_out, str) else repr(float(source.held_out))
    key = digest([str(VERSION), str(block_bytes), tokenizer.fingerprint, str(tokenizer.separator), fraction, *contents])
    directory = cache / "corpora" / key
    found = load_corpus(directory)
    if found is not None:
        return found
    with _alone_in(directory):
        if load_corpus(directory) is None:
            stream, division = _divided(source, corpora, report)
            blocks, totals = _tokenise(stream, tokenizer, directory, block_bytes)
            _check(source, corpora, totals, directory)
            content = {
                "version": VERSION,
                "dtype": _dtype(tokenizer),
                "vocabulary": tokenizer.vocabulary,
                "separator": tokenizer.separator,
                "tokenizer": tokenizer.fingerprint,
                "contents": contents,
                "source": asdict(source),
                "division": division,
                "blocks": blocks,
                **{name: count._asdict() for name, count in totals.items()},
            }
            with _cache_errors(directory), write_whole(directory / "corpus.json") as temporary:
                _write_json(temporary, content)
    found = load_corpus(directory)
    if found is None:
        raise InputError(f"{directory}: the shards were changed while they were written; expected nobody else there")
    return found


def _divided(source: CorpusSource, corpora: list[Corpus], report: Progress) -> tuple[Iterator[tuple[bool, Piece]], str]:
    """The stream of (whether it is held out, piece), and how it was divided in words."""
    corpus, *separate = corpora
    fraction = 0.0 if isinstance(source.held_out, str) else source.held_out
    split = plan_split(corpus.pieces(_Meter(report, "reading", corpus.size)), fraction, source.what)
    meter = _Meter(report, "tokenising", sum(part.size for part in corpora))
    stream = divide(corpus.pieces(meter), split)
    for held_out in separate:
        stream = itertools.chain(stream, ((True, piece) for piece in held_out.pieces(meter)))
    return stream, f"from {source.held_out}" if separate else split.description


def _tokenise(
    stream: Iterator[tuple[bool, Piece]], tokenizer: Encoder, directory: Path, block_bytes: int
) -> tuple[int, dict[str, Counts]]:
    """Write all blocks that are not there yet; return their number, and what they hold together."""
    before = dict.fromkeys(SPLITS, Counts())
    index = -1
    for index, block in _blocks(stream, block_bytes):
        folder = directory / f"block-{index:05d}"
        counts = read_counts(folder, _dtype(tokenizer))
        if counts is None:
            shutil.rmtree(folder, ignore_errors=True)
            counts = _write_block(folder, block, tokenizer, before)
        else:
            for _ in block:  # read over what an interrupted run has done: a hundred times faster than to tokenise
                pass
        before = {name: before[name].plus(counts[name]) for name in SPLITS}
    return index + 1, before


class Sized(NamedTuple):
    """A piece with what decides where it is stored."""

    block: int
    held_out: bool
    piece: Piece
    bytes: int


def _blocks(stream: Iterable[tuple[bool, Piece]], block_bytes: int) -> Iterator[tuple[int, Iterator[Sized]]]:
    """Group the stream into blocks of about `block_bytes`, numbered from 0; each must be used up before the next."""

    def sized() -> Iterator[Sized]:
        block = within = 0
        for held_out, piece in stream:
            size = len(piece.text) if piece.text.isascii() else len(piece.text.encode())
            yield Sized(block, held_out, piece, size)
            within += size
            if within >= block_bytes:
                block, within = block + 1, 0

    return itertools.groupby(sized(), key=lambda item: item.block)


def _write_block(
    folder: Path, block: Iterator[Sized], tokenizer: Encoder, before: dict[str, Counts]
) -> dict[str, Counts]:
    """Tokenise a block and write it; return its counts."""
    typecode = "H" if _dtype(tokenizer) == "<u2" else "I"
    parts = {name: _BlockSplit(before[name], array(typecode)) for name in SPLITS}
    for batch in _batches(block):
        _encode(batch, tokenizer, parts)
    counts = {name: part.counts for name, part in parts.items()}
    with _cache_errors(folder), write_whole(folder) as temporary:
        temporary.mkdir()
        for name, part in parts.items():
            np.asarray(part.tokens).astype(_dtype(tokenizer), copy=False).tofile(temporary / f"{name}.tokens")
            np.asarray(part.starts).astype("<i8", copy=False).tofile(temporary / f"{name}.documents")
            np.asarray(part.byte_starts).astype("<i8", copy=False).tofile(temporary / f"{name}.bytes")
        _write_json(temporary / "block.json", {name: part._asdict() for name, part in counts.items()})
    return counts


def _encode(batch: list[Sized], tokenizer: Encoder, parts: dict[str, "_BlockSplit"]) -> None:
    """On its own, so that the lists of tokens of one batch are gone before the next are made."""
    encoded = tokenizer.encode_batch([item.piece.text for item in batch])
    for item, tokens in zip(batch, encoded, strict=True):
        parts[SPLITS[item.held_out]].add(item, tokens, tokenizer.separator)


@dataclass
class _BlockSplit:
    """What one block holds of one split; `before` counts what the blocks before it hold."""

    before: Counts
    tokens: "array[int]"
    starts: "array[int]" = field(default_factory=lambda: array("q"))
    byte_starts: "array[int]" = field(default_factory=lambda: array("q"))
    bytes: int = 0

    def add(self, item: Sized, tokens: list[int], separator: int) -> None:
        if item.piece.starts:
            self.starts.append(self.before.tokens + len(self.tokens))
            self.byte_starts.append(self.before.bytes + self.bytes)
            self.tokens.append(separator)
        self.tokens.extend(tokens)
        self.bytes += item.bytes

    @property
    def counts(self) -> Counts:
        return Counts(len(self.tokens), len(self.starts), self.bytes)


def _batches(block: Iterable[Sized]) -> Iterator[list[Sized]]:
    batch: list[Sized] = []
    size = 0
    for item in block:
        batch.append(item)
        size += item.bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check(source: CorpusSource, corpora: list[Corpus], totals: dict[str, Counts], directory: Path) -> None:
    """Raise InputError if there is nothing on one side, or the corpus changed while it was read."""
    if not totals["train"].documents:
        raise empty_corpus(source.what)
    if not totals["held_out"].documents and source.held_out != 0:
        raise InputError(f"{source.held_out}: nothing held out; expected at least one document that is not white space")
    try:
        for corpus in corpora:
            corpus.check_unchanged()
    except InputError:
        for block in directory.glob("block-*"):  # they are not those of the content in the key
            shutil.rmtree(block)
        raise


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Create the folder and wait until no other process works in it. Removes what a killed one left half-written."""
    with _cache_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / "lock", "w")  # noqa: SIM115 (held open while the block runs)
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back by the system even if the process is killed
    with lock:
        for leftover in directory.glob(".*.tmp"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
        yield


@contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: the cache cannot be written ({error.strerror or error}); STEMMA_CACHE names the folder to use"
        ) from None


class _Meter:
    """Adds up bytes read, and reports them under the name of a stage."""

    def __init__(self, report: Progress, stage: str, total: int) -> None:
        self._report, self._stage, self._total = report, stage, total
        self._done = 0

    def __call__(self, read: int) -> None:
        self._done += read
        self._report(self._stage, self._done, self._total)


def _dtype(tokenizer: Encoder) -> str:
    return "<u2" if tokenizer.vocabulary <= 1 << 16 else "<u4"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
