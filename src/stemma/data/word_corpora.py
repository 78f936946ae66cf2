"""Corpora of words: text read once, as a vocabulary and one memory-mapped array of word ids.

Words are what stands between white space; a line end, and the end of a document, ends a sentence. Neither the text nor
the ids need fit in memory, only the dictionary of different words does.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stemma.data.content_hashes import digest
from stemma.data.corpora import Corpus, CorpusSource, open_corpus
from stemma.errors import InputError
from stemma.files import cache_directory, write_whole

VERSION = 1  # of the format and of how text is divided; part of the key
END = -1  # in the array of ids: the end of a sentence
SENTENCE_END = " </s> "  # what stands for a line end while words are numbered; in a text it is one, as in word2vec.c
BLOCK = 1 << 22  # ids worked on at once

# Called with a stage, and what of it is done and to do (0: unknown).
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WordOptions:
    """What of a text becomes words.

    Args:
        min_count: rarer words are left out, before windows are formed. max_words: at most so many, the frequent ones.
        lowercase: fold all text to small letters.
        phrases: thresholds of passes that join words to phrases (see phrases.py), such as [200, 100].
    """

    min_count: int = 5
    max_words: int | None = None
    lowercase: bool = False
    phrases: Sequence[float] = ()


@dataclass(frozen=True)
class WordCorpus:
    """A corpus as ids.

    Args:
        words: by falling count, earlier in the text first among equals. counts: int64 [words].
        tokens: int32, memory-mapped; ids of words, and `END` after each sentence. read: words of the text, rare ones
            too, phrases counted once.
    """

    words: list[str]
    counts: np.ndarray
    tokens: np.ndarray
    read: int


def prepare_words(
    source: CorpusSource, options: WordOptions, cache: Path | None = None, report: Report | None = None
) -> WordCorpus:
    """Return the corpus from the cache, after reading the text where that has not been done.

    Raises:
        InputError: text that cannot be read, or no word that is frequent enough.
    """
    cache = cache or cache_directory()
    report = report or (lambda stage, done, total: None)
    corpus = open_corpus(source, cache)
    content = corpus.fingerprint(cache, lambda read: None)
    wanted = [options.min_count, options.max_words, options.lowercase, list(options.phrases)]
    directory = cache / "words" / digest([str(VERSION), content, json.dumps(wanted)])
    if not (directory / "words.json").is_file():
        try:
            with write_whole(directory) as temporary:
                temporary.mkdir()
                _read(corpus, source.what, options, temporary, report)
        except OSError as error:
            if not (directory / "words.json").is_file():  # unless another process was faster
                raise InputError(f"{directory}: words cannot be kept there ({error.strerror})") from None
    return _load(directory)


def write_vocabulary(path: Path, words: Sequence[str], counts: np.ndarray) -> None:
    """Write a line a word: the word, a blank, its count."""
    lines = (f"{word} {count}\n" for word, count in zip(words, counts.tolist(), strict=True))
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(lines)


def read_vocabulary(path: Path) -> tuple[list[str], np.ndarray]:
    """Read what `write_vocabulary` wrote: words and int64 counts.

    Raises:
        InputError: no such file, or a line of another form.
    """
    try:
        lines = path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    words, counts = [], []
    for number, line in enumerate(lines[:-1], start=1):
        word, _, count = line.rpartition(" ")
        if not word or not count.isdigit():
            raise InputError(f"{path}, line {number}: expected a word, a blank and its count")
        words.append(word)
        counts.append(int(count))
    return words, np.array(counts, np.int64)


def blocks(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a long array in parts that fit in memory."""
    for start in range(0, len(tokens), BLOCK):
        yield np.asarray(tokens[start : start + BLOCK])


class _Numbers(dict[str, int]):
    """Gives every word that is looked up a number, in the order of their first coming."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


def _read(corpus: Corpus, name: str, options: WordOptions, directory: Path, report: Report) -> None:
    raw = directory / "raw.bin"
    words = _number_words(corpus, raw, options.lowercase, report)
    tokens = _map(raw)
    counts = _count(tokens, len(words))
    for number, threshold in enumerate(options.phrases, start=1):
        from stemma.data.phrases import join_phrases

        report(f"joining phrases, pass {number}", 0, 0)
        joined = directory / f"joined-{number}.bin"
        words = join_phrases(tokens, words, counts, options.min_count, threshold, joined)
        tokens = _map(joined)
        counts = _count(tokens, len(words))
        raw.unlink()
        raw = joined
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= options.min_count][: options.max_words]
    if not len(order):
        raise InputError(f"{name}: no word occurs {options.min_count} times; expected more text or a lower min_count")
    ids = np.full(len(words) + 1, END - 1, np.int32)
    ids[order] = np.arange(len(order), dtype=np.int32)
    ids[END] = END
    with open(directory / "tokens.bin", "wb") as file:
        for block in blocks(tokens):
            kept = ids[block]
            kept = kept[kept >= END]
            if len(kept):
                again = (kept[1:] == END) & (kept[:-1] == END)
                kept[np.concatenate([[True], ~again])].tofile(file)
    raw.unlink()
    write_vocabulary(directory / "vocabulary.txt", [words[index] for index in order], counts[order])
    (directory / "words.json").write_text(json.dumps({"read": int(counts.sum())}))


def _number_words(corpus: Corpus, path: Path, lowercase: bool, report: Report) -> list[str]:
    """Write the text as numbers of words in the order of their first coming; return the words."""
    numbers = _Numbers({SENTENCE_END.strip(): 0})  # so that it becomes `END`, below
    done = 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        report("reading words", done, corpus.size)

    with open(path, "wb") as file:
        for piece in corpus.pieces(count):
            text = piece.text.lower() if lowercase else piece.text
            found = text.replace("\n", SENTENCE_END).split()
            if piece.starts:
                found.insert(0, SENTENCE_END.strip())
            ids = np.fromiter(map(numbers.__getitem__, found), np.int32, len(found))
            (ids - 1).tofile(file)
    corpus.check_unchanged()
    return list(numbers)[1:]


def _count(tokens: np.ndarray, words: int) -> np.ndarray:
    counts = np.zeros(words, np.int64)
    for block in blocks(tokens):
        counts += np.bincount(block[block != END], minlength=words)
    return counts


def _map(path: Path) -> np.ndarray:
    """Map an array of int32; an empty file cannot be mapped."""
    return np.memmap(path, np.int32, "r") if path.stat().st_size else np.empty(0, np.int32)


def _load(directory: Path) -> WordCorpus:
    description: dict[str, Any] = json.loads((directory / "words.json").read_text())
    words, counts = read_vocabulary(directory / "vocabulary.txt")
    return WordCorpus(words, counts, _map(directory / "tokens.bin"), description["read"])
