"""Words as ids, against a dictionary and a counter."""

from collections import Counter

import numpy as np
import pytest

from stemma.data import word_corpora
from stemma.data.corpora import CorpusSource
from stemma.data.word_corpora import END, WordOptions, prepare_words, read_vocabulary, write_vocabulary
from stemma.errors import InputError

TEXT = "the cat  saw\tthe dog\nThe dog saw a bird\n\n\nthe end </s> the cat"


def sentences(corpus):
    """The ids as words, a list a sentence."""
    found = [[]]
    for token in corpus.tokens.tolist():
        if token == END:
            found.append([])
        else:
            found[-1].append(corpus.words[token])
    return [sentence for sentence in found if sentence]


def prepare(tmp_path, text=TEXT, **options):
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    return prepare_words(CorpusSource(str(path)), WordOptions(**options), tmp_path / "cache")


def test_words_by_falling_count_then_by_first_coming(tmp_path):
    corpus = prepare(tmp_path, min_count=1)
    assert corpus.words == ["the", "cat", "saw", "dog", "The", "a", "bird", "end"]
    assert corpus.counts.tolist() == [4, 2, 2, 2, 1, 1, 1, 1]
    assert sentences(corpus) == [
        ["the", "cat", "saw", "the", "dog"],
        ["The", "dog", "saw", "a", "bird"],
        ["the", "end"],
        ["the", "cat"],
    ]
    assert corpus.read == 14 and isinstance(corpus.tokens, np.memmap)
    assert not ((corpus.tokens[1:] == END) & (corpus.tokens[:-1] == END)).any()


def test_rare_words_are_left_out_of_sentences(tmp_path):
    corpus = prepare(tmp_path, min_count=2, lowercase=True)
    assert corpus.words == ["the", "cat", "saw", "dog"] and corpus.counts.tolist() == [5, 2, 2, 2]
    assert sentences(corpus) == [["the", "cat", "saw", "the", "dog"], ["the", "dog", "saw"], ["the"], ["the", "cat"]]
    assert prepare(tmp_path, min_count=1, max_words=2).words == ["the", "cat"]


def test_documents_end_sentences_and_long_ones_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(word_corpora, "BLOCK", 7)  # so that every array is worked on in parts
    words = [f"w{number % 977}" for number in range(60_000)]  # several pieces of a document
    for name, part in (("a", words[:50_000]), ("b", words[50_000:])):
        (tmp_path / f"{name}.txt").write_text(" ".join(part))
    monkeypatch.setattr(word_corpora, "BLOCK", 1009)
    corpus = prepare_words(CorpusSource(str(tmp_path / "*.txt")), WordOptions(min_count=1), tmp_path / "cache")
    assert [len(sentence) for sentence in sentences(corpus)] == [50_000, 10_000]
    assert dict(zip(corpus.words, corpus.counts.tolist(), strict=True)) == Counter(words)
    assert [word for sentence in sentences(corpus) for word in sentence] == words


def test_the_cache_is_used_again(tmp_path, monkeypatch):
    first = prepare(tmp_path, min_count=1)
    monkeypatch.setattr(word_corpora, "_read", None)
    assert prepare(tmp_path, min_count=1).words == first.words
    with pytest.raises(TypeError):
        prepare(tmp_path, min_count=2)


def test_vocabulary_file(tmp_path):
    words = ["a", "New York", "naïve", b"\xff\xfe".decode(errors="surrogateescape")]
    write_vocabulary(tmp_path / "v.txt", words, np.array([4, 3, 2, 1]))
    read, counts = read_vocabulary(tmp_path / "v.txt")
    assert read == words and counts.tolist() == [4, 3, 2, 1]
    (tmp_path / "v.txt").write_text("a 3\nb\n")
    with pytest.raises(InputError, match="v.txt, line 2: expected a word"):
        read_vocabulary(tmp_path / "v.txt")


def test_no_word_is_frequent_enough(tmp_path):
    with pytest.raises(InputError, match="no word occurs 9 times"):
        prepare(tmp_path, min_count=9)
    assert not list((tmp_path / "cache" / "words").iterdir())
