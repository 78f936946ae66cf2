"""Texts of different lengths and a WordPiece vocabulary of BERT's size for them, without a download."""

import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from stemma.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

VOCABULARY = 30522
LEARNED = 8192  # of them; the others are [unused0] and so on, so that the output layer has BERT's size


def running_text() -> str:
    """Return the words of the help topics that ship with Python, in small letters: half a megabyte of English."""
    from pydoc_data.topics import topics

    return " ".join(re.findall("[a-z]+", "\n".join(topics.values()).lower()))


def draw_texts(count: int, seed: int, data: Path | None = None) -> list[str]:
    """Return the first lines of a file, or stretches of the help topics about as long as SST-2's training examples.

    Numbers of words are drawn from a gamma distribution with mean 9.4 and deviation 8.1, from 1 to 52: many short
    phrases, some long sentences.
    """
    if data is not None:
        lines = [line.strip() for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [lines[number % len(lines)] for number in range(count)]
    rng = np.random.default_rng(seed)
    words = running_text().split()
    lengths = np.clip(rng.gamma(1.35, 7.0, count).round().astype(int), 1, 52)
    starts = rng.integers(len(words) - 52, size=count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def wordpiece() -> Tokenizer:
    """Return a tokenizer with `VOCABULARY` ids, learned from the help topics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the text has too few repetitions
        learned = train_tokenizer([running_text()], "wordpiece", LEARNED, lowercase=True)
    names = [learned.token(index) for index in range(learned.vocabulary)]
    names += [f"[unused{number}]" for number in range(VOCABULARY - len(names))]
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        return load_tokenizer(folder)
