"""Words and their pieces: by characters, in every kind of tokenizer."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tokenizer_of

from stemma.finetuning.tagging import word_pieces
from stemma.probing.retokenise import retokenise

SENTENCE = ["the", "quick", "brown", "fox", ",", "unfoxed", "jumps", "over", "Zürich", "’s", "123", "dogs", "."]


@pytest.mark.parametrize("family", ["bert", "gpt", "t5"])
def test_pieces_are_those_of_each_word_by_itself(family: str) -> None:
    tokenizer = tokenizer_of(family)
    (pieces,) = retokenise([SENTENCE], tokenizer)
    assert pieces.tokens == tokenizer.encode(" ".join(SENTENCE))
    (alone,) = word_pieces([SENTENCE], tokenizer)
    for word, first, last in zip(alone, pieces.first, pieces.last, strict=True):
        # Blanks that are pieces of their own are no word's.
        assert pieces.tokens[first:last] == [piece for piece in word if tokenizer.token(piece) not in ("Ġ", "▁")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=6).filter(lambda word: word.split() == [word]), min_size=1, max_size=6))
@pytest.mark.parametrize("family", ["bert", "gpt", "t5"])
def test_every_word_that_leaves_anything_has_pieces_of_its_own(family: str, words: list[str]) -> None:
    try:
        (pieces,) = retokenise([words], tokenizer_of(family))
    except Exception as error:  # half of a surrogate pair
        assert "surrogate" in str(error)
        return
    assert np.all(pieces.first <= pieces.last) and pieces.last[-1] <= len(pieces.tokens)
    assert np.all(pieces.first[1:] >= pieces.last[:-1] - 1)  # neighbours share one piece at most
    if family == "gpt":  # bytes: nothing is lost, and nothing shared
        assert np.all(pieces.first < pieces.last) and np.all(pieces.first[1:] >= pieces.last[:-1])


def test_a_word_of_which_nothing_is_left_has_no_piece() -> None:
    (pieces,) = retokenise([["the", "\x01", "fox"]], tokenizer_of("bert"))
    assert (pieces.last - pieces.first).tolist() == [1, 0, len(pieces.tokens) - 1]


def test_an_empty_list_of_sentences() -> None:
    found: Any = retokenise([], tokenizer_of("gpt"))
    assert found == []
