"""A tokenizer of whole words: the most frequent ones, by brute force; all others are one token."""

import pydoc_data.topics
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from stemma.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from stemma.errors import InputError

TEXTS = [text.encode("ascii", "ignore").decode() for text in list(pydoc_data.topics.topics.values())[:40]]
# A word, a number or a run of signs, each with the blank before it; white space; a text begins as if behind a blank.
PATTERN = re.compile(r" ?[a-zA-Z]+| ?[0-9]+| ?[^\sa-zA-Z0-9]+|\s+?(?= ?\S)|\s+")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, "word", 800)


def words_of(text: str) -> list[str]:
    return [word.replace(" ", "▁") for word in PATTERN.findall(f" {text}")]


def test_the_most_frequent_words_are_kept(tokenizer: Tokenizer) -> None:
    counts = Counter(word for text in TEXTS for word in words_of(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    assert [tokenizer.token(index) for index in range(800)] == ["<pad>", "</s>", "<unk>", *ranked[:797]]
    assert (tokenizer.pad, tokenizer.separator, tokenizer.unknown) == (0, 1, 2)
    kept = set(ranked[:797])
    for text in TEXTS[:5]:
        expected = [word if word in kept else "<unk>" for word in words_of(text)]
        assert [tokenizer.token(index) for index in tokenizer.encode(text)] == expected


def test_known_words_come_back_as_they_were_and_others_are_marked(tokenizer: Tokenizer) -> None:
    text = "The object is a class, (the name\n   of it)"
    assert tokenizer.unknown not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.encode("the zyzzyva is")
    assert ids[1:2] == [tokenizer.unknown] and len(ids) == 3
    assert tokenizer.decode(ids, skip_special=False) == "the<unk> is"
    decoder = tokenizer.stream_decoder()
    assert "".join([decoder.push(index) for index in tokenizer.encode(text)] + [decoder.flush()]) == text


def test_goes_to_disk_and_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint == train_tokenizer(TEXTS, "word", 800).fingerprint
    assert again.has_whole_words and not train_tokenizer(TEXTS, "bpe", 300).has_whole_words
    for text in TEXTS[:3]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)


def test_lower_case_and_too_small_a_vocabulary() -> None:
    lowered = train_tokenizer(["A rose is a ROSE"] * 3, "word", 6, lowercase=True)
    assert [lowered.token(index) for index in range(3, 6)] == ["▁a", "▁rose", "▁is"]
    with pytest.raises(InputError, match=r"3 tokens .* at least 4 \(1 word; special tokens: 3\)"):
        train_tokenizer(["a"], "word", 3)
