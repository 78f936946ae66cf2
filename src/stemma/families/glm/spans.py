"""Which stretches of a sample are taken out (Du et al. 2022, section 2; the procedures are those of the authors' code).

A sample is [CLS] document end [CLS] document end ...; a span is (first token, token after the last).
"""

import math
from functools import cache

import numpy as np

LONGEST = 39

Span = tuple[int, int]


@cache
def _length_probabilities(mean: float) -> np.ndarray:
    """Poisson(mean) restricted to 1 .. LONGEST."""
    numbers = range(1, LONGEST + 1)
    weights = np.array([math.exp(number * math.log(mean) - math.lgamma(number + 1)) for number in numbers])
    return weights / weights.sum()


def draw_lengths(total: int, rng: np.random.Generator, mean: float = 3.0) -> list[int]:
    """Draw lengths of spans until they sum up to at least `total`."""
    if total < 1:
        return []
    lengths = rng.choice(np.arange(1, LONGEST + 1), size=total, p=_length_probabilities(mean))
    return lengths[: int(np.searchsorted(lengths.cumsum(), total)) + 1].tolist()


def place_spans(lengths: list[int], length: int, offset: int, rng: np.random.Generator) -> list[Span]:
    """Place spans of these lengths, in this order, among `length` tokens from `offset` on.

    At least one token stays between two spans. The gaps before each are drawn as a multiset.
    """
    slack = length - sum(lengths) - len(lengths) + 1
    places = np.sort(rng.integers(slack + 1, size=len(lengths))).tolist()
    spans = []
    for place, span in zip(places, lengths, strict=True):
        spans.append((offset + place, offset + place + span))
        offset += span + 1
    return spans


def documents_of(sample: np.ndarray, beginning: int, end: int) -> list[tuple[int, int]]:
    """Return the (start, length) of what may be taken out of each document of a sample: neither [CLS] nor the end.

    A document that is cut at the sample's end keeps its last token.
    """
    ends = np.flatnonzero(sample == end).tolist()
    documents = []
    start = 0
    for stop in [*ends, len(sample)]:
        first = start + 1 if start < len(sample) and sample[start] == beginning else start
        length = stop - first
        documents.append((first, max(length - (stop == len(sample)), 0)))
        start = stop + 1
    return documents


def spread_spans(
    documents: list[tuple[int, int]], lengths: list[int], ratio: float, rng: np.random.Generator
) -> list[Span] | None:
    """Place spans of the given lengths in documents, from the shortest on; None if they do not all fit.

    Each but the longest takes spans up to `ratio` of its tokens, the longest the rest.
    """
    waiting = [lengths[index] for index in rng.permutation(len(lengths))]
    *others, longest = sorted(documents, key=lambda document: document[1])
    spans: list[Span] = []
    for offset, length in others:
        taken = _longest_beginning(waiting, int(length * ratio))
        spans += place_spans(waiting[:taken], length, offset, rng)
        waiting = waiting[taken:]
    offset, length = longest
    if sum(waiting) + max(len(waiting) - 1, 0) > length:
        return None
    return spans + place_spans(waiting, length, offset, rng)


def short_spans(
    documents: list[tuple[int, int]], total: int, rng: np.random.Generator, *, ratio: float, mean: float
) -> list[Span]:
    """Draw the token-level objective's spans: `total` tokens and a little more, spread over the documents.

    The authors drop a sample whose spans do not fit. Here other lengths are drawn, and in samples of tiny documents,
    which hardly ever hold them, for fewer tokens.
    """
    for attempt in range(64):
        spans = spread_spans(documents, draw_lengths(total, rng, mean), ratio, rng)
        if spans is not None:
            return spans
        if attempt % 8 == 7:
            total //= 2
    return []


def sentence_spans(
    sample: np.ndarray, ends_sentence: np.ndarray, beginning: int, end: int, rng: np.random.Generator, ratio: float
) -> list[Span]:
    """Draw whole sentences until they hold at least `ratio` of the sample.

    Args:
        ends_sentence: bool, of the sample's shape. What follows a document's last such token is no sentence, unless
            the sample ends there.
    """
    sentences = []
    start = 0
    for index, token in enumerate(sample.tolist()):
        if token in (beginning, end):
            start = index + 1
        elif ends_sentence[index]:
            sentences.append((start, index + 1))
            start = index + 1
    if start < len(sample):
        sentences.append((start, len(sample)))
    spans: list[Span] = []
    held = 0
    for index in rng.permutation(len(sentences)).tolist():
        if held >= int(ratio * len(sample)) and spans:
            break
        spans.append(sentences[index])
        held += spans[-1][1] - spans[-1][0]
    return spans


def _longest_beginning(lengths: list[int], most: int) -> int:
    """Return how many of the first `lengths` sum up to at most `most`."""
    return int(np.searchsorted(np.cumsum(lengths), most, side="right")) if lengths else 0
