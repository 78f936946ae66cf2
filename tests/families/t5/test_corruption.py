"""Span corruption: the reference's lengths and worked examples, and the distribution of what is drawn."""

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest

from stemma.errors import InputError
from stemma.families.t5.corruption import (
    corrupted_lengths,
    masked,
    raw_length,
    segment_lengths,
    shuffled,
    span_noise,
    suffix_noise,
    token_noise,
    with_sentinels,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Source length: raw length and lengths of source and target, by the reference's random_spans_helper.
LENGTHS = {64: (70, 64, 14), 128: (141, 128, 29), 256: (284, 256, 58), 512: (568, 512, 114), 1024: (1137, 1024, 229)}


@pytest.mark.parametrize(("source", "expected"), LENGTHS.items())
def test_lengths_are_those_of_the_reference(source, expected):
    raw, source_length, target_length = expected
    assert raw_length(source) == raw
    assert corrupted_lengths(raw) == (source_length, target_length)
    noise = span_noise(raw, 0.15, 3.0, rng())
    tokens, sentinels = np.arange(raw) + 1000, range(999, 899, -1)
    assert len(with_sentinels(tokens, noise, sentinels)) + 1 == source_length
    assert len(with_sentinels(tokens, ~noise, sentinels)) + 1 == target_length


def test_rounding_in_double_is_the_reference_rounding_in_single_but_for_halves():
    """The reference rounds in Python where it plans lengths, in float32 where it draws; only halves can differ."""
    for length in range(2, 3000):
        noise = round(length * 0.15)
        single = int(np.round(np.float32(length) * np.float32(0.15)))
        assert noise == single or (length * 15 % 100 == 50 and abs(noise - single) == 1)
        assert round(noise / 3.0) == int(np.round(np.float32(noise) / np.float32(3.0)))


def test_with_one_span_the_last_tokens_are_the_noise():
    noise = span_noise(10, 0.15, 3.0, rng())
    assert noise.tolist() == [False] * 8 + [True] * 2
    tokens, sentinels = np.array(list(range(10, 20))), [99, 98]
    assert with_sentinels(tokens, noise, sentinels).tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 99]
    assert with_sentinels(tokens, ~noise, sentinels).tolist() == [99, 18, 19]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 17, 141, 568])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 2.0), (0.9, 1.0), (0.01, 10.0)])
def test_noise_alternates_and_has_its_numbers(length, density, mean):
    total = max(length, 2)
    count = min(max(round(total * density), 1), total - 1)
    for seed in range(20):
        noise = span_noise(length, density, mean, rng(seed))
        assert noise.shape == (length,) and not noise[0]
        if length > 1:
            assert noise[-1] and noise.sum() == count
        spans = int((np.diff(noise.astype(int)) == 1).sum())
        assert spans == (min(max(round(count / mean), 1), count, total - count) if length > 1 else 0)


@pytest.mark.parametrize(("items", "segments"), [(7, 3), (6, 1), (5, 5), (6, 4)])
def test_all_segmentations_are_equally_likely(items, segments):
    generator, draws = rng(1), 4000
    found = Counter(tuple(segment_lengths(items, segments, generator).tolist()) for _ in range(draws))
    cuts = combinations(range(1, items), segments - 1)
    possible = {tuple(np.diff([0, *cut, items]).tolist()) for cut in cuts}
    assert set(found) == possible and len(possible) == comb(items - 1, segments - 1)
    expected = draws / len(possible)
    statistic = sum((count - expected) ** 2 / expected for count in found.values())
    freedom = len(possible) - 1
    assert statistic <= freedom + 4 * (2 * freedom) ** 0.5  # chi-square: mean + 4 standard deviations


def test_masks_are_the_product_of_two_independent_segmentations():
    """Length 9, 4 noise tokens in 2 spans: C(3,1) * C(4,1) masks, all equally likely."""
    generator, draws = rng(2), 6000
    found = Counter(span_noise(9, 4 / 9, 2.0, generator).tobytes() for _ in range(draws))
    assert len(found) == 12
    statistic = sum((count - draws / 12) ** 2 / (draws / 12) for count in found.values())
    assert statistic <= 11 + 4 * 22**0.5


def test_rolled_noise_is_uniform_over_positions():
    generator, draws = rng(3), 6000
    counts = sum(span_noise(10, 0.15, 3.0, generator, roll=True).astype(int) for _ in range(draws))
    # each position is noise with probability 0.2
    assert np.abs(counts / draws - 0.2).max() < 5 * (0.16 / draws) ** 0.5


def test_token_noise_is_independent_with_its_density():
    noise = np.stack([token_noise(50, 0.15, generator) for generator in map(rng, range(2000))])
    assert abs(noise.mean() - 0.15) < 5 * (0.1275 / noise.size) ** 0.5
    pairs = (noise[:, 1:] & noise[:, :-1]).mean()
    assert abs(pairs - 0.0225) < 5 * (0.0225 / noise.size) ** 0.5


def test_suffix_begins_anywhere_but_at_the_ends():
    generator, draws = rng(4), 5000
    starts = Counter(int(np.argmax(suffix_noise(6, generator))) for _ in range(draws))
    assert sorted(starts) == [1, 2, 3, 4, 5]
    assert all(abs(count - draws / 5) < 5 * (draws * 0.16) ** 0.5 for count in starts.values())
    noise = suffix_noise(6, generator)
    assert (np.diff(noise.astype(int)) >= 0).all() and noise[-1]


def test_runs_become_sentinels_in_order():
    tokens = np.array([5, 6, 7, 8, 9, 10])
    replaced = np.array([True, True, False, True, False, True])
    assert with_sentinels(tokens, replaced, [99, 98, 97]).tolist() == [99, 7, 98, 9, 97]
    assert with_sentinels(tokens, ~replaced, [99, 98, 97]).tolist() == [5, 6, 99, 8, 98, 10]
    assert with_sentinels(tokens, np.zeros(6, bool), []).tolist() == tokens.tolist()
    with pytest.raises(InputError, match="3 spans in 6 tokens, but only 2 sentinels"):
        with_sentinels(tokens, replaced, [99, 98])


def test_shuffling_and_masking_touch_the_noise_only():
    tokens = np.arange(100, 200)
    noise = token_noise(100, 0.5, rng())
    moved = shuffled(tokens, noise, rng())
    assert (moved[~noise] == tokens[~noise]).all() and sorted(moved[noise]) == tokens[noise].tolist()
    assert (moved != tokens).any()
    replaced = masked(tokens, noise, 7, random=0.0, choices=range(3, 9), rng=rng())
    assert (replaced[~noise] == tokens[~noise]).all() and (replaced[noise] == 7).all()
    random = masked(np.full(20_000, 50), np.ones(20_000, bool), 7, random=0.1, choices=range(10, 20), rng=rng())
    assert set(random) == {7, *range(10, 20)} and abs((random != 7).mean() - 0.1) < 0.011
