"""From words to the tokens of a model: where each word's pieces stand."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stemma.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Pieces:
    """The tokens of a sentence.

    Args:
        tokens: ids, without special tokens. first, last: int [words], the pieces of each word, half-open; first == last
            where the tokenizer leaves nothing of a word.
    """

    tokens: list[int]
    first: np.ndarray
    last: np.ndarray


def retokenise(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer) -> list[Pieces]:
    """Tokenise the words of each sentence joined by blanks, and find each word's pieces by their characters.

    A word has the tokens that hold any of its characters; a token may be that of two words. A token of white space
    alone is no word's.
    """
    encoded = tokenizer.encode_with_offsets([" ".join(words) for words in sentences])
    return [_aligned(words, *one) for words, one in zip(sentences, encoded, strict=True)]


def _aligned(words: Sequence[str], tokens: list[int], offsets: list[tuple[int, int]]) -> Pieces:
    sizes = np.array([len(word) for word in words])
    ends = np.cumsum(sizes + 1) - 1  # behind each word stands a blank
    starts = ends - sizes
    places = np.array(offsets, np.int64).reshape(-1, 2)
    # Offsets rise, so that a word's tokens are those between the first that ends behind its start and the first that
    # starts at its end or behind.
    first = np.searchsorted(places[:, 1], starts, side="right")
    last = np.searchsorted(places[:, 0], ends, side="left")
    return Pieces(tokens, first, np.maximum(first, last))
