"""Phrases: pairs of words that come together more often than their counts let expect become one word.

Mikolov et al. 2013, "Distributed Representations of Words and Phrases and their Compositionality", section 4, as in
word2phrase.c; several passes with falling thresholds join longer phrases.
"""

from pathlib import Path

import numpy as np

from stemma.data.compiled import kernel
from stemma.data.word_corpora import END, blocks

JOINT = "_"


def join_phrases(
    tokens: np.ndarray, words: list[str], counts: np.ndarray, min_count: int, threshold: float, path: Path
) -> list[str]:
    """Write `tokens` (int32, `END` between sentences) to `path` with phrases as single ids; return the words with them.

    A pair is a phrase if (count(ab) - min_count) / (count(a) count(b)) * all words is above the threshold and both
    words come `min_count` times. From left to right; what has become part of a phrase is in no other of this pass.
    """
    pairs, together = count_pairs(tokens, counts >= min_count, len(words))
    first, second = pairs // len(words), pairs % len(words)
    scores = (together - min_count) / counts[first] / counts[second] * counts.sum()
    chosen = scores > threshold
    phrases = pairs[chosen]
    # A phrase may be spelt as a word that is there already: then it is that word.
    known = {word: index for index, word in enumerate(words)}
    words = list(words)
    ids = np.empty(len(phrases), np.int32)
    for number, (left, right) in enumerate(zip(first[chosen], second[chosen], strict=True)):
        phrase = words[left] + JOINT + words[right]
        if phrase not in known:
            known[phrase] = len(words)
            words.append(phrase)
        ids[number] = known[phrase]
    pending = END
    with open(path, "wb") as file:
        for block in blocks(tokens):
            joined = np.empty(len(block) + 1, np.int32)
            length, pending = join_block(block, phrases, ids, len(counts), pending, joined)
            joined[:length].tofile(file)
        if pending != END:
            np.array([pending], np.int32).tofile(file)
    return words


def count_pairs(tokens: np.ndarray, frequent: np.ndarray, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of neighbours that are both `frequent` (bool [words]), as first * words + second, and counts.

    Both are int64 [pairs], sorted by pair; what is held in memory are the different pairs.
    """
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    last = np.array([END], np.int32)
    for block in blocks(tokens):
        chain = np.concatenate([last, block])
        last = chain[-1:]
        usable = np.append(frequent, False)[chain]  # `END` looks up the last entry
        both = usable[:-1] & usable[1:]
        new, new_counts = np.unique(chain[:-1][both].astype(np.int64) * words + chain[1:][both], return_counts=True)
        everything = np.concatenate([pairs, new])
        pairs, where = np.unique(everything, return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts, new_counts]), len(pairs)).astype(np.int64)
    return pairs, counts


@kernel
def join_block(tokens, phrases, ids, words, pending, joined):  # type: ignore[no-untyped-def]
    """Write the tokens to `joined` with phrases replaced; return how many, and the last word if it may join the next.

    `pending` is that word of the block before, or `END`; `phrases` are sorted pairs and `ids` what they become.
    """
    length = 0
    for token in tokens:
        if pending != -1:
            if token != -1:
                pair = np.int64(pending) * words + token
                place = np.searchsorted(phrases, pair)
                if place < len(phrases) and phrases[place] == pair:
                    joined[length] = ids[place]
                    length += 1
                    pending = -1
                    continue
            joined[length] = pending
            length += 1
        if token == -1:
            joined[length] = -1
            length += 1
        pending = token
    return length, pending
