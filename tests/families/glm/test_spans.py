"""What is taken out of a sample: the distributions of the authors' procedures."""

import math
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

from stemma.families.glm.spans import (
    documents_of,
    draw_lengths,
    place_spans,
    sentence_spans,
    short_spans,
    spread_spans,
)

CLS, END = 101, 0


def within(count: int, probability: float, draws: int) -> bool:
    """Whether a count is within five standard deviations of its mean."""
    return abs(count - draws * probability) <= 5 * math.sqrt(draws * probability * (1 - probability)) + 1


def test_lengths_are_poisson_from_1_to_39() -> None:
    rng = np.random.default_rng(0)
    lengths = draw_lengths(60_000, rng)
    found = Counter(lengths)
    # The numbers of the published description, and the definition: Poisson(3) without 0, renormalised.
    for length, probability in zip(range(1, 7), (0.1572, 0.2358, 0.2358, 0.1768, 0.1061, 0.0531), strict=True):
        assert 3**length * math.exp(-3) / math.factorial(length) / (1 - math.exp(-3)) == pytest.approx(
            probability, abs=1e-4
        )
        assert within(found[length], probability, len(lengths))
    assert np.mean(lengths) == pytest.approx(3.157, abs=0.05)
    assert min(lengths) == 1 and max(lengths) <= 39
    assert max(draw_lengths(20_000, rng, mean=60.0)) == 39


def test_lengths_reach_the_total_and_no_further_than_the_last() -> None:
    rng = np.random.default_rng(1)
    for total in (1, 2, 5, 76):
        for _ in range(200):
            lengths = draw_lengths(total, rng)
            assert sum(lengths) >= total > sum(lengths[:-1])
    assert draw_lengths(0, rng) == []


def test_places_are_drawn_as_a_multiset() -> None:
    """Against all equally probable draws: spans of 1 and 2 in 6 tokens leave 2 free places, so 3 * 3 draws."""
    expected: Counter[tuple] = Counter()
    for draws in product(range(3), repeat=2):
        first, second = sorted(draws)
        expected[((10 + first, 11 + first), (12 + second, 14 + second))] += 1
    rng = np.random.default_rng(2)
    found = Counter(tuple(place_spans([1, 2], 6, 10, rng)) for _ in range(9000))
    assert found.keys() == expected.keys()
    assert all(within(found[spans], count / 9, 9000) for spans, count in expected.items())


def test_spans_that_fill_the_document_have_one_place() -> None:
    assert place_spans([2, 3], 6, 1, np.random.default_rng(0)) == [(1, 3), (4, 7)]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ([CLS, 5, 6, 7, END], [(1, 3), (5, 0)]),  # whole
        ([CLS, 5, 6, 7, 8], [(1, 3)]),  # cut: keeps its last token
        ([CLS, 5, 6, END, CLS, 7, 8, 9], [(1, 2), (5, 2)]),
        ([CLS, END, CLS, 7], [(1, 0), (3, 0)]),
    ],
)
def test_documents_of_a_sample(sample: list[int], expected: list[tuple[int, int]]) -> None:
    assert documents_of(np.array(sample), CLS, END) == expected


def test_short_documents_take_up_to_the_ratio_and_the_longest_the_rest() -> None:
    rng = np.random.default_rng(3)
    documents = [(1, 100), (103, 40), (145, 20)]  # up to 6 tokens in the second, 3 in the third
    for _ in range(300):
        lengths = draw_lengths(24, rng)
        spans = spread_spans(documents, lengths, 0.15, rng)
        assert spans is not None
        assert sorted(stop - start for start, stop in spans) == sorted(lengths)
        ordered = sorted(spans)
        assert all(second[0] > first[1] for first, second in pairwise(ordered))  # a token between them
        for offset, length in documents:
            inside = [span for span in spans if offset <= span[0] < offset + length]
            assert all(stop <= offset + length for _, stop in inside)
            if length < 100:
                assert sum(stop - start for start, stop in inside) <= int(0.15 * length)
        assert all(any(offset <= start < offset + length for offset, length in documents) for start, _ in spans)


def test_spans_that_do_not_fit() -> None:
    rng = np.random.default_rng(4)
    assert spread_spans([(1, 3)], [2, 2], 0.15, rng) is None
    assert spread_spans([(1, 5)], [2, 2], 0.15, rng) is not None
    # Tiny documents hold nothing: fewer tokens are taken out rather than the sample lost.
    spans = short_spans([(1, 2)] * 30, 15, rng, ratio=0.15, mean=3.0)
    assert sum(stop - start for start, stop in spans) <= 2


def test_token_level_statistics_of_512_tokens() -> None:
    """The reference, run over random samples: 24.5 spans, .148 to .162 (here and there more) and .1517 on average."""
    rng = np.random.default_rng(5)
    drawn = [short_spans([(1, 510)], int(0.15 * 512), rng, ratio=0.15, mean=3.0) for _ in range(2000)]
    shares = np.array([sum(stop - start for start, stop in spans) / 512 for spans in drawn])
    assert np.mean([len(spans) for spans in drawn]) == pytest.approx(24.5, abs=0.3)
    assert shares.mean() == pytest.approx(0.1517, abs=0.0005)
    assert shares.min() == pytest.approx(76 / 512) and shares.max() < 0.175


def sentences(sample: list[int], ends: set[int], ratio: float, seed: int) -> list[tuple[int, int]]:
    array = np.array(sample)
    ends_sentence = np.isin(array, list(ends))
    return sentence_spans(array, ends_sentence, CLS, END, np.random.default_rng(seed), ratio)


def test_sentences_are_whole_and_reach_the_ratio() -> None:
    #          [CLS] sentence   sentence   no end   eos [CLS] sentence  cut
    sample = [CLS, 5, 6, 50, 7, 8, 9, 50, 10, 11, END, CLS, 12, 13, 50, 14, 15]
    every = {(1, 4), (4, 8), (12, 15), (15, 17)}
    drawn = [sentences(sample, {50}, 0.15, seed) for seed in range(3000)]
    assert {span for spans in drawn for span in spans} == every
    for spans in drawn:
        assert sum(stop - start for start, stop in spans) >= 2  # int(.15 * 17)
        assert sum(stop - start for start, stop in spans[:-1]) < 2
    assert all(within(sum(spans[0] == span for spans in drawn), 0.25, 3000) for span in every)
    assert set(sentences(sample, {50}, 0.5, 0)) <= every and len(sentences(sample, {50}, 1.0, 0)) == 4


def test_a_sample_without_sentences() -> None:
    assert sentences([CLS, 5, END], {50}, 0.15, 0) == []
