"""Corpora of pairs, a text and what is to be written for it: tokenised once, as memory-mapped arrays in the cache.

<cache>/pairs/<key>/pairs.json                       written last: what there is
<cache>/pairs/<key>/{train,held_out}.{source,target}.tokens    uint16 or uint32, all texts one behind the other
<cache>/pairs/<key>/{train,held_out}.{source,target}.ends      int64: where each text ends among them
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stemma.data.content_hashes import content_hashes, digest
from stemma.data.parallel_texts import parallel_lines
from stemma.data.python_corpus import python_files, python_pairs
from stemma.data.splits import is_held_out
from stemma.data.token_arrays import FileArray
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.files import write_whole

VERSION = 1  # of the format and of how pairs are divided; part of the key
SPLITS = ("train", "held_out")
_AT_ONCE = 8192  # pairs given to the tokenizer

# Called with a stage, and what of it is done and to do (0: unknown).
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ParallelSource:
    """A description of such a corpus.

    Args:
        what: two files of lines with a comma between, "train.de,train.en" (also .gz, .zst), of which the n-th lines
            belong together; or "python": what the standard library defines, and the first lines of its docstrings.
        held_out: the share of the pairs, chosen by a hash of the source, that is not trained on; or another corpus.
    Raises:
        InputError: not two files, or a share that is none.
    """

    what: str
    held_out: float | str

    def __post_init__(self) -> None:
        for what in (self.what, self.held_out):
            if isinstance(what, str):
                self._files(what)
        if not isinstance(self.held_out, str) and not 0 <= self.held_out < 1:
            raise InputError(f"data.held_out: {self.held_out}; expected a share from 0 to below 1, or two files")

    def pairs(self) -> Iterator[tuple[bool, str, str]]:
        """Yield whether a pair is held out, its source and its target.

        Raises:
            InputError: files that cannot be read, or of unequal numbers of lines.
        """
        for source, target in self._read(self.what):
            held_out = not isinstance(self.held_out, str) and is_held_out(source, self.held_out)
            yield held_out, source, target
        if isinstance(self.held_out, str):
            for source, target in self._read(self.held_out):
                yield True, source, target

    def training_texts(self) -> Iterator[str]:
        """Yield all texts that are trained on, of both sides: what one tokenizer for both learns from."""
        for held_out, *texts in self.pairs():
            if not held_out:
                yield from texts

    def fingerprint(self, cache: Path) -> str:
        """Return a hash of everything that `pairs` depends on."""
        wholes = [what for what in (self.what, self.held_out) if isinstance(what, str)]
        paths = [path for what in wholes for path in (python_files() if what == "python" else self._files(what))]
        return digest([str(VERSION), str(self.held_out), *wholes, *content_hashes(paths, cache, lambda read: None)])

    def _read(self, what: str) -> Iterator[tuple[str, str]]:
        return python_pairs(python_files()) if what == "python" else parallel_lines(*self._files(what))

    @staticmethod
    def _files(what: str) -> list[Path]:
        files = [Path(name.strip()).expanduser() for name in what.split(",")]
        if what != "python" and len(files) != 2:
            raise InputError(
                f"data: '{what}'; expected two files of lines with a comma between, such as train.de,train.en"
            )
        return files


class Texts:
    """Texts as ids: number i is `texts[i]`, int64 [length], without anything round it."""

    def __init__(self, tokens: FileArray, ends: np.ndarray) -> None:
        self.tokens, self._ends = tokens, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(self._ends[index - 1]) if index else 0
        return self.tokens.read(start, int(self._ends[index])).astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [texts]."""
        return np.diff(self._ends, prepend=0)


@dataclass(frozen=True)
class ParallelSplit:
    """One side of a division: pairs of texts as ids. bytes: of the targets in UTF-8."""

    sources: Texts
    targets: Texts
    bytes: int
    fingerprint: str

    @property
    def documents(self) -> int:
        """The number of pairs."""
        return len(self.targets)

    @property
    def tokens(self) -> FileArray:
        """The tokens of the targets."""
        return self.targets.tokens


@dataclass(frozen=True)
class ParallelCorpus:
    """A corpus in the cache, ready to train on."""

    train: ParallelSplit
    held_out: ParallelSplit

    @property
    def summary(self) -> str:
        """One line for the user."""
        train, held_out = (
            f"{split.documents:,} pairs of {len(split.sources.tokens):,} and {len(split.targets.tokens):,} tokens"
            for split in (self.train, self.held_out)
        )
        return f"train: {train}; held out: {held_out}"


def prepare_pairs(source: ParallelSource, tokenizer: Tokenizer, cache: Path, report: Report) -> ParallelCorpus:
    """Return the corpus from the cache, tokenising it first where that has not been done.

    Raises:
        InputError: see `ParallelSource.pairs`; or no pair to train on.
    """
    key = digest([source.fingerprint(cache), tokenizer.fingerprint])
    directory = cache / "pairs" / key
    if not (directory / "pairs.json").is_file():
        try:
            with write_whole(directory) as temporary:
                temporary.mkdir()
                _write(source, tokenizer, temporary, report)
        except OSError as error:
            if not (directory / "pairs.json").is_file():  # unless another process was faster
                raise InputError(f"{directory}: pairs cannot be kept there ({error.strerror})") from None
    content = json.loads((directory / "pairs.json").read_text())
    return ParallelCorpus(*(_split(directory, name, content) for name in SPLITS))


def _split(directory: Path, name: str, content: dict[str, Any]) -> ParallelSplit:
    sources, targets = (
        Texts(
            FileArray([directory / f"{name}.{side}.tokens"], content["dtype"]),
            np.fromfile(directory / f"{name}.{side}.ends", "<i8"),
        )
        for side in ("source", "target")
    )
    return ParallelSplit(sources, targets, content["bytes"][name], digest([directory.name, name]))


class _Side:
    """The files of one side of a split, to which texts are appended."""

    def __init__(self, stack: ExitStack, directory: Path, name: str, dtype: str) -> None:
        self.dtype, self.end = dtype, 0
        self._tokens, self._ends = (
            stack.enter_context((directory / f"{name}.{kind}").open("wb")) for kind in ("tokens", "ends")
        )

    def add(self, rows: list[list[int]]) -> None:
        np.array([token for row in rows for token in row], self.dtype).tofile(self._tokens)
        (self.end + np.cumsum([len(row) for row in rows], dtype="<i8")).tofile(self._ends)
        self.end += sum(map(len, rows))


def _write(source: ParallelSource, tokenizer: Tokenizer, directory: Path, report: Report) -> None:
    dtype = "<u2" if tokenizer.vocabulary <= 1 << 16 else "<u4"
    targets = dict.fromkeys(SPLITS, 0)  # bytes
    pairs, done = source.pairs(), 0
    with ExitStack() as stack:
        sides = {
            name: [_Side(stack, directory, f"{name}.{side}", dtype) for side in ("source", "target")] for name in SPLITS
        }
        while some := list(islice(pairs, _AT_ONCE)):
            for name in SPLITS:
                chosen = [texts for held_out, *texts in some if held_out == (name == "held_out")]
                targets[name] += sum(len(target.encode(errors="surrogatepass")) for _, target in chosen)
                for place, side in enumerate(sides[name]):
                    side.add(tokenizer.encode_batch([texts[place] for texts in chosen]))
            done += len(some)
            report("tokenising pairs", done, 0)
    if not all(side.end for side in sides["train"]):
        raise InputError(f"data.source: {source.what}: no pair to train on that has a text on both sides")
    (directory / "pairs.json").write_text(json.dumps({"dtype": dtype, "bytes": targets}))
