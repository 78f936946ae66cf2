"""Phrases, against the score's formula and word2phrase's rule that what was joined is not joined again."""

from collections import Counter

import numpy as np
import pytest

from stemma.data import word_corpora
from stemma.data.corpora import CorpusSource
from stemma.data.phrases import count_pairs, join_phrases
from stemma.data.word_corpora import END, WordOptions, prepare_words


def joined(tmp_path, text, min_count, threshold):
    """Join once; return the text again."""
    words = list(dict.fromkeys(text.split()))
    lines = [[words.index(word) for word in line.split()] for line in text.split("\n")]
    tokens = np.array([token for line in lines for token in [*line, END]], np.int32)
    counts = np.bincount(tokens[tokens >= 0], minlength=len(words))
    names = join_phrases(tokens, words, counts, min_count, threshold, tmp_path / "joined.bin")
    result = np.fromfile(tmp_path / "joined.bin", np.int32).tolist()
    return " ".join("\n" if token == END else names[token] for token in result).replace(" \n ", "\n").strip()


@pytest.mark.parametrize("block", [1, 2, 3, 1000])
def test_score_and_joining(tmp_path, monkeypatch, block):
    monkeypatch.setattr(word_corpora, "BLOCK", block)
    text = "new york is big\nold york is new york\nnew york new\nyork"
    # new york: (3 - 1) / (4 * 5) * 13 = 1.3; york is: (2 - 1) / (5 * 2) * 13 = 1.3; york new: 1 - 1 = 0
    expected = "new_york is big\nold york_is new_york\nnew_york new\nyork"
    assert joined(tmp_path, text, 1, 1.29) == expected
    assert joined(tmp_path, text, 1, 1.31) == text
    # with min_count 3 only "new" and "york" are frequent enough: (3 - 3) / ... = 0
    assert joined(tmp_path, text, 3, -0.5) == text.replace("new york", "new_york")


def test_every_other_pair_of_a_run(tmp_path):
    assert joined(tmp_path, "a a a a a", 1, 0.1) == "a_a a_a a"


def test_pairs_are_counted_across_blocks_and_not_across_sentences(monkeypatch):
    monkeypatch.setattr(word_corpora, "BLOCK", 5)
    generator = np.random.default_rng(0)
    tokens = generator.integers(-1, 4, 200).astype(np.int32)
    pairs, counts = count_pairs(tokens, np.array([True, True, True, False]), 4)
    expected = Counter(
        (a, b) for a, b in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True) if {a, b} <= {0, 1, 2}
    )
    assert {(p // 4, p % 4): n for p, n in zip(pairs.tolist(), counts.tolist(), strict=True)} == expected


def test_passes_make_longer_phrases(tmp_path):
    (tmp_path / "t.txt").write_text("x new york times y\n" * 3 + "new a york b times c\n" * 2)
    options = WordOptions(min_count=1, phrases=[1.5, 1.5])
    corpus = prepare_words(CorpusSource(str(tmp_path / "t.txt")), options, tmp_path / "cache")
    assert any(word.count("_") >= 2 for word in corpus.words)
    assert corpus.counts.sum() == corpus.read == (corpus.tokens >= 0).sum()
