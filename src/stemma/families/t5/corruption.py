"""Span corruption and its relatives (Raffel et al. 2020, section 3.3), as in t5/data/preprocessors.py of the reference.

Pure functions: what is noise, and how a text is written with its noise replaced. All randomness comes from `rng`.
"""

from collections.abc import Sequence

import numpy as np

from stemma.errors import InputError


def corrupted_lengths(length: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """Return the lengths of source and target, each with the token that ends it, of `length` tokens of text."""
    noise, spans = _span_counts(length, density, mean_span)
    return length - noise + spans + 1, noise + spans + 1


def raw_length(source: int, density: float = 0.15, mean_span: float = 3.0) -> int:
    """Return the most tokens of text whose corrupted source has at most `source` tokens (568 for 512)."""
    length = max(source - 1, 2)
    while corrupted_lengths(length + 1, density, mean_span)[0] <= source:
        length += 1
    return length


def segment_lengths(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Return int64 [segments] of positive numbers with sum `items`, every such sequence equally likely.

    The reference's way: of the items but the first, segments - 1 chosen at random begin a segment.
    """
    begins = np.arange(items - 1) < segments - 1
    rng.shuffle(begins)
    return np.bincount(np.concatenate([[0], np.cumsum(begins)]))


def span_noise(
    length: int, density: float, mean_span: float, rng: np.random.Generator, *, roll: bool = False
) -> np.ndarray:
    """Return bool [length], True in spans of noise: kept, noise, ..., never at the start, always at the end.

    Numbers of noise tokens and of spans follow from the length; the lengths of the spans are drawn.

    Args:
        roll: rotate by a random offset, so that all positions are noise equally often (the reference's `random_roll`).
    """
    total = max(length, 2)
    noise, spans = _span_counts(total, density, mean_span)
    lengths = np.stack([segment_lengths(total - noise, spans, rng), segment_lengths(noise, spans, rng)], axis=1)
    mask = np.tile([False, True], spans).repeat(lengths.flatten())[:length]
    return np.roll(mask, rng.integers(length)) if roll else mask


def token_noise(length: int, density: float, rng: np.random.Generator) -> np.ndarray:
    """Return bool [length], each True with probability `density`, independently."""
    return rng.random(length) < density


def suffix_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return bool [length], True from a point on that is uniform in 1 ... length - 1 (prefix language model)."""
    return np.arange(length) >= rng.integers(1, max(length, 2))


def with_sentinels(tokens: np.ndarray, replaced: np.ndarray, sentinels: Sequence[int]) -> np.ndarray:
    """Return the tokens with each run of replaced ones as one sentinel: the first run the first sentinel, and so on.

    Raises:
        InputError: more runs than sentinels.
    """
    first = replaced & ~np.concatenate([[False], replaced[:-1]])
    runs = int(first.sum())
    if runs > len(sentinels):
        raise InputError(f"objective: {runs} spans in {len(tokens)} tokens, but only {len(sentinels)} sentinels")
    result = tokens.copy()
    result[first] = sentinels[:runs]
    return result[~replaced | first]


def shuffled(tokens: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the tokens with those that are noise in random order among themselves."""
    result = tokens.copy()
    result[noise] = rng.permutation(tokens[noise])
    return result


def masked(
    tokens: np.ndarray, noise: np.ndarray, mask: int, *, random: float, choices: range, rng: np.random.Generator
) -> np.ndarray:
    """Return the tokens with noise replaced by `mask`, each with probability `random` by one of `choices` instead."""
    drawn = rng.integers(choices.start, choices.stop, len(tokens))
    replacements = np.where(rng.random(len(tokens)) < random, drawn, mask)
    return np.where(noise, replacements, tokens)


def _span_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Return how many of `length` tokens are noise, and how many spans they form; halves are rounded to even."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)
    return noise, min(spans, noise, length - noise)
