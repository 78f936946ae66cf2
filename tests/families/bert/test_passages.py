"""Pairs of sentences and full sentences, against the published algorithm and against the text they are cut from."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from stemma.errors import InputError
from stemma.families.bert.passages import (
    FullSentences,
    Passage,
    SentencePairs,
    held_out_passages,
    plan_pairs,
    truncate_pair,
)
from stemma.families.bert.tokens import LONGEST_SENTENCE, BERTTokens

from .corpora import CLS, FIRST, MASK, SEP, unique_tokens

MakeSplit = Callable[[Sequence[Sequence[int]]], object]


def pairs_by_the_book(
    lengths: list[int], most: int, short: float, rng: np.random.Generator
) -> list[tuple[list[int], list[int], bool, int]]:
    """The procedure of create_pretraining_data.py, over the numbers of sentences: (A, true B, is random, B's length).

    A chunk of sentences is collected one by one; of a chunk with a random B, the sentences after A are put back.
    """
    target = most
    if rng.random() < short:
        target = rng.integers(2, most, endpoint=True)
    pairs, waiting = [], list(range(len(lengths)))
    while waiting:
        chunk = [waiting.pop(0)]
        while waiting and sum(lengths[sentence] for sentence in chunk) < target:
            chunk.append(waiting.pop(0))
        size_of_a = 1 if len(chunk) == 1 else int(rng.integers(1, len(chunk) - 1, endpoint=True))
        a, b = chunk[:size_of_a], chunk[size_of_a:]
        is_random = not b or rng.random() < 0.5
        if is_random:
            waiting = b + waiting
        pairs.append((a, b, is_random, int(target) - sum(lengths[sentence] for sentence in a)))
    return pairs


@pytest.mark.parametrize("most", [2, 13, 61])
def test_pairs_are_planned_as_published(most: int) -> None:
    lengths_drawn = np.random.default_rng(0)
    kinds = set()
    for seed in range(300):
        lengths = lengths_drawn.integers(1, 20, size=lengths_drawn.integers(1, 25)).tolist()
        bounds = np.cumsum([0, *lengths])
        planned = plan_pairs(bounds, most, 0.3, np.random.default_rng(seed))
        expected = pairs_by_the_book(lengths, most, 0.3, np.random.default_rng(seed))
        assert len(planned) == len(expected)
        for ours, (a, b, is_random, wanted) in zip(planned, expected, strict=True):
            assert (ours.start, ours.middle) == (bounds[a[0]], bounds[a[-1] + 1])
            assert ours.stop == bounds[[*a, *b][-1] + 1]
            assert (ours.is_random, ours.wanted) == (is_random, wanted)
            kinds.add((is_random, bool(b)))
    assert (True, False) in kinds and (most < 20 or kinds == {(True, True), (True, False), (False, True)})


def shortened_one_by_one(a: list[int], b: list[int], most: int) -> tuple[int, int]:
    """Lengths after `truncate_seq_pair`: the longer one loses a token, B where they are equal."""
    left = [len(a), len(b)]
    while sum(left) > most:
        left[0 if left[0] > left[1] else 1] -= 1
    return left[0], left[1]


def test_truncation_takes_tokens_from_the_longer_text_at_both_ends() -> None:
    rng = np.random.default_rng(0)
    from_front, taken = 0, 0
    for _ in range(500):
        a, b = np.arange(rng.integers(1, 60)), 100 + np.arange(rng.integers(1, 60))
        most = int(rng.integers(2, 60))
        short_a, short_b = truncate_pair(a, b, most, rng)
        assert (len(short_a), len(short_b)) == shortened_one_by_one(a.tolist(), b.tolist(), most)
        for short, text in ((short_a, a), (short_b, b)):
            assert (np.diff(short) == 1).all()
            if len(short):
                from_front += short[0] - text[0]
                taken += len(text) - len(short)
    assert taken > 3000 and stats.binomtest(int(from_front), int(taken), 0.5).pvalue > 1e-3
    assert [text.tolist() for text in truncate_pair(np.arange(3), np.arange(4), 7, rng)] == [[0, 1, 2], [0, 1, 2, 3]]


@pytest.fixture
def corpus(make_split: MakeSplit) -> tuple[object, list[list[int]], BERTTokens]:
    """60 documents of 1 to 400 tokens in sentences of 1 to 15."""
    rng = np.random.default_rng(1)
    lengths = [rng.integers(1, 16, size=rng.integers(1, 50)).tolist() for _ in range(60)]
    documents, tokens = unique_tokens(lengths)
    return make_split(documents), documents, tokens


def texts_of(passage: Passage) -> list[np.ndarray]:
    """Cut a passage at its special tokens, checking where they stand and which segment is which."""
    tokens = passage.tokens
    ends = np.flatnonzero(tokens == SEP)
    assert tokens[0] == CLS and ends[-1] == len(tokens) - 1 and (tokens == CLS).sum() == 1
    assert (passage.segments == (np.arange(len(tokens)) > ends[0])).all()
    return [part[part >= FIRST] for part in np.split(tokens, ends)][: len(ends)]


LENGTH = 64


def test_pairs_are_made_of_whole_neighbouring_sentences(corpus: tuple) -> None:
    split, documents, tokens = corpus
    document_of = {token: number for number, document in enumerate(documents) for token in document}
    ends = np.array([text == " ." for text in tokens.texts])
    pairs = SentencePairs(split, LENGTH, seed=0, tokens=tokens)
    room = sum(-(-len(document) // (LENGTH - 3)) for document in documents)
    assert len(pairs) == room
    randoms, truncated, others = 0, 0, Counter()
    for index in range(3 * len(pairs)):
        passage = pairs.sequence(index)
        a, b = texts_of(passage)
        assert len(passage.tokens) <= LENGTH and len(a) and len(b)
        assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
        (document,), (other,) = {document_of[x] for x in a}, {document_of[x] for x in b}
        assert (document != other) == passage.is_random
        if len(passage.tokens) < LENGTH:  # nothing was truncated
            assert ends[a[-1]] and ends[b[-1]] and (a[0] == FIRST or ends[a[0] - 1]) and ends[b[0] - 1]
            assert passage.is_random or b[0] == a[-1] + 1
        else:
            truncated += 1
            assert passage.is_random or b[0] > a[-1]
        randoms += passage.is_random
        if passage.is_random:
            others[other] += 1
    assert 0 < truncated < 3 * len(pairs)
    assert len(others) == len(documents)  # random texts come from everywhere
    assert 0.4 < randoms / (3 * len(pairs)) < 0.65


def test_every_document_is_as_likely_to_give_the_random_text(make_split: MakeSplit) -> None:
    """However long it is; and never the one that A is from."""
    documents, tokens = unique_tokens([[5] * 2, [5] * 40, [5] * 2, [5] * 10, [5] * 300])
    pairs = SentencePairs(make_split(documents), LENGTH, seed=0, tokens=tokens)
    drawn: dict[int, Counter] = {document: Counter() for document in range(5)}
    firsts = np.array([document[0] for document in documents])
    for index in range(40 * len(pairs)):
        passage = pairs.sequence(index)
        if passage.is_random:
            a, b = texts_of(passage)
            here, there = (int(np.searchsorted(firsts, text[0], side="right")) - 1 for text in (a, b))
            drawn[here][there] += 1
    for here, counts in drawn.items():
        assert set(counts) == set(range(5)) - {here}
        assert stats.chisquare([counts[there] for there in counts]).pvalue > 1e-3


def test_short_documents_and_shares(make_split: MakeSplit) -> None:
    """A document of one sentence has no true continuation: the share of random pairs is above one half."""
    documents, tokens = unique_tokens([[6]] * 40)
    pairs = SentencePairs(make_split(documents), LENGTH, seed=0, tokens=tokens)
    assert all(pairs.sequence(index).is_random for index in range(len(pairs)))
    # Long documents of many sentences: one half. A true continuation takes more of the text than a random one, which
    # must not make it rarer or more frequent.
    documents, tokens = unique_tokens([[6] * 3000, [6] * 3000])
    split = make_split(documents)
    randoms = []
    for seed in range(6):
        pairs = SentencePairs(split, LENGTH, seed, tokens)
        randoms += [pairs.sequence(index).is_random for index in range(2 * len(pairs))]
    assert len(randoms) > 7000 and 0.48 < np.mean(randoms) < 0.52


def test_a_tenth_of_the_pieces_is_cut_short(make_split: MakeSplit) -> None:
    documents, tokens = unique_tokens([[2] * 20_000, [2] * 20_000])
    split = make_split(documents)
    lengths = {}
    for short in (0.0, 0.1, 1.0):
        pairs = SentencePairs(split, LENGTH, seed=3, tokens=tokens, short=short)
        lengths[short] = np.array([len(pairs.sequence(index).tokens) for index in range(len(pairs))])
    # Sentences of 2 tokens overshoot the 61 by one: all full but the last of each piece.
    assert (lengths[0.0] == LENGTH).mean() > 0.85
    assert stats.kstest(lengths[1.0], lambda x: np.clip((x - 4) / (LENGTH - 4), 0, 1)).statistic < 0.15
    share = ((lengths[0.0] == LENGTH).mean() - (lengths[0.1] == LENGTH).mean()) / (lengths[0.0] == LENGTH).mean()
    # Pieces cut short give more pairs than others, but each piece has its fixed number in an epoch.
    assert 0.05 < share < 0.16


@pytest.mark.parametrize("kind", ["pairs", "full", "separate"])
def test_a_passage_is_a_function_of_seed_and_index(kind: str, corpus: tuple) -> None:
    split, _, tokens = corpus

    def make(seed: int, length: int = LENGTH) -> SentencePairs | FullSentences:
        if kind == "pairs":
            return SentencePairs(split, length, seed, tokens)
        return FullSentences(split, length, seed, tokens, kind == "separate")

    sequences, again, other = make(5), make(5), make(6)
    order = np.random.default_rng(0).permutation(2 * len(sequences)).tolist()
    shuffled = {index: again.sequence(index).tokens.tolist() for index in order}
    straight = [sequences.sequence(index).tokens.tolist() for index in range(2 * len(sequences))]
    assert straight == [shuffled[index] for index in range(len(straight))]
    assert straight[: len(sequences)] != straight[len(sequences) :]
    assert straight != [other.sequence(index).tokens.tolist() for index in range(len(straight))]
    fingerprints = {make(5).fingerprint, make(6).fingerprint, make(5, 65).fingerprint, sequences.fingerprint}
    assert len(fingerprints) == 3 and again.fingerprint == sequences.fingerprint


@pytest.mark.parametrize("kind", ["pairs", "full", "separate"])
def test_all_of_the_text_is_read(kind: str, corpus: tuple) -> None:
    split, documents, tokens = corpus
    sequences = (
        SentencePairs(split, LENGTH, 0, tokens)
        if kind == "pairs"
        else FullSentences(split, LENGTH, 0, tokens, kind == "separate")
    )
    seen: Counter = Counter()
    epochs = 20
    for index in range(epochs * len(sequences)):
        seen.update(sequences.sequence(index).tokens.tolist())
    counts = np.array([seen[token] for document in documents for token in document])
    assert counts.min() > 0
    # Every text token about once an epoch; the rest of the room is special tokens and what did not fit.
    assert 0.7 * epochs < counts.mean() < (1.1 if kind == "pairs" else 1.0) * epochs


def test_one_document_has_no_wrong_continuations(make_split: MakeSplit) -> None:
    documents, tokens = unique_tokens([[5] * 40, []])
    with pytest.raises(InputError, match="the corpus has only one"):
        SentencePairs(make_split(documents), LENGTH, 0, tokens)
    with pytest.raises(InputError, match="hold no pair"):
        SentencePairs(make_split(documents), 4, 0, tokens)


def test_documents_without_text_are_passed_over(make_split: MakeSplit) -> None:
    documents, tokens = unique_tokens([[], [5] * 40, [], [], [5], [7] * 30, []])
    pairs = SentencePairs(make_split(documents), LENGTH, 0, tokens)
    assert {int(pairs.sequence(index).tokens[1]) >= FIRST for index in range(5 * len(pairs))} == {True}


def test_full_sentences_fill_the_row(corpus: tuple) -> None:
    split, documents, tokens = corpus
    ends = np.array([text == " ." for text in tokens.texts])
    starts = {document[0] for document in documents}
    sequences = FullSentences(split, LENGTH, 0, tokens, separate=False)
    assert len(sequences) == len(split.tokens) // (LENGTH - 2)
    lengths, crossing = [], 0
    for index in range(3 * len(sequences)):
        passage = sequences.sequence(index)
        assert passage.starts == (0,) and passage.is_random is None and not passage.segments.any()
        parts = [part[part >= FIRST] for part in np.split(passage.tokens, np.flatnonzero(passage.tokens == SEP))][:-1]
        assert passage.tokens[0] == CLS and passage.tokens[-1] == SEP and (passage.tokens == CLS).sum() == 1
        for number, part in enumerate(parts):
            assert (np.diff(part) == 1).all() and ends[part[-1]]
            assert part[0] in starts or (number == 0 and ends[part[0] - 1])
        crossing += len(parts) > 1
        lengths.append(len(passage.tokens))
    assert crossing > 0 and max(lengths) <= LENGTH
    # At most a sentence of up to 15 tokens has no room.
    assert min(lengths) > LENGTH - 16


def test_documents_that_stand_apart_each_have_their_special_tokens(corpus: tuple) -> None:
    split, documents, tokens = corpus
    sequences = FullSentences(split, LENGTH, 0, tokens, separate=True)
    document_of = {token: number for number, document in enumerate(documents) for token in document}
    numbers = Counter()
    for index in range(3 * len(sequences)):
        passage = sequences.sequence(index)
        assert LENGTH - 18 < len(passage.tokens) <= LENGTH
        parts = np.split(passage.tokens, passage.starts[1:])
        for part in parts:
            assert part[0] == CLS and part[-1] == SEP and (part[1:-1] >= FIRST).all() and len(part) > 2
            assert len({document_of[token] for token in part[1:-1].tolist()}) == 1
        numbers[len(parts)] += 1
    assert len(numbers) > 2


def test_text_without_sentences_is_cut_to_fit(make_split: MakeSplit) -> None:
    tokens = BERTTokens(CLS, SEP, MASK, SEP, ["", "", "", *[" word"] * 500])
    documents = [list(range(3, 300)), list(range(300, 503))]
    for length in (LENGTH, 20):
        for separate in (False, True):
            sequences = FullSentences(make_split(documents), length, 0, tokens, separate)
            for index in range(len(sequences)):
                assert 4 < len(sequences.sequence(index).tokens) <= length
    assert min(length, LONGEST_SENTENCE) == 20
    with pytest.raises(InputError, match="smaller than one sequence: 12 tokens to train on"):
        FullSentences(make_split([list(range(3, 14))]), LENGTH, 0, tokens, False)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("length", [16, 64])
def test_held_out_text_is_read_once(pairs: bool, length: int, corpus: tuple) -> None:
    split, documents, tokens = corpus
    ends = np.array([text == " ." for text in tokens.texts])
    single = 0
    for document, passages in zip(documents, held_out_passages(split, length, tokens, pairs), strict=True):
        read: list[int] = []
        for passage in passages:
            assert len(passage.tokens) <= length and passage.is_random is None
            texts = texts_of(passage)
            assert len(texts) <= 1 + pairs
            single += len(texts) == 1
            assert ends[texts[0][-1]] or len(texts[0]) == length - 2 - pairs  # cut only if one sentence fills it
            read += np.concatenate(texts).tolist()
        assert read == document
    assert single > 0
