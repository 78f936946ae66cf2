"""What words are drawn and found by: distributions by chi-square, code lengths by the optimum."""

import heapq

import numpy as np
import pytest
from scipy.stats import chisquare

from stemma.families.word2vec import kernels  # noqa: E402
from stemma.families.word2vec.model import keep_probabilities  # noqa: E402
from stemma.families.word2vec.sampling import (  # noqa: E402
    alias_table,
    hierarchical_softmax,
    huffman_paths,
    negative_sampling,
)

COUNTS = np.array([500, 200, 120, 60, 60, 30, 10, 5, 5, 1])


def test_alias_table_holds_the_distribution_exactly():
    probabilities = COUNTS / COUNTS.sum()
    probability, alias = alias_table(probabilities)
    shares = np.zeros(len(COUNTS))
    for word in range(len(COUNTS)):
        shares[word] += probability[word] / len(COUNTS)
        shares[alias[word]] += (1 - probability[word]) / len(COUNTS)
    np.testing.assert_allclose(shares, probabilities, atol=1e-7)


def test_noise_is_drawn_by_powers_of_counts_and_skips_the_word():
    outputs = negative_sampling(COUNTS, 5, 0.75)
    state, rows, labels = np.array([7], np.uint64), np.zeros(6, np.int64), np.zeros(6, np.float32)
    drawn = np.zeros(len(COUNTS))
    skipped = 0
    for _ in range(20_000):
        count = kernels.choose_outputs(
            2, outputs.negatives, outputs.probability, outputs.alias, *outputs[3:], state, rows, labels
        )
        assert rows[0] == 2 and labels[0] == 1 and not labels[1:count].any()
        np.add.at(drawn, rows[1:count], 1)
        skipped += 6 - count
    expected = COUNTS**0.75 / (COUNTS**0.75).sum() * 100_000
    assert drawn[2] == 0
    drawn[2] = skipped
    assert chisquare(drawn, expected).pvalue > 1e-3


def test_words_are_kept_as_word2vec_c_keeps_them():
    keep = keep_probabilities(COUNTS, 1e-2)
    frequency = COUNTS / COUNTS.sum()
    np.testing.assert_allclose(keep, np.minimum(1, (np.sqrt(frequency / 1e-2) + 1) * 1e-2 / frequency), rtol=1e-6)
    assert keep[-1] == 1 and (keep_probabilities(COUNTS, 0) == 1).all()
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, len(COUNTS), 100_000).astype(np.int32)
    state, sentence = np.array([3], np.uint64), np.zeros(1000, np.int32)
    kept, position = np.zeros(len(COUNTS)), 0
    while position < len(tokens):
        position, length = kernels.next_sentence(tokens, position, keep, state, sentence)
        kept += np.bincount(sentence[:length], minlength=len(COUNTS))
    offered = np.bincount(tokens, minlength=len(COUNTS))
    deviation = np.sqrt(offered * keep * (1 - keep)) + 1e-9
    assert (np.abs(kept - offered * keep) < 4 * deviation + 1e-6).all()


def test_sentences_end_at_ends_and_at_a_thousand_words():
    tokens = np.array([0, 1, -1, -1, 2, -1, *[3] * 1200], np.int32)
    state, sentence = np.array([0], np.uint64), np.zeros(kernels.LONGEST_SENTENCE, np.int32)
    position, lengths = 0, []
    while position < len(tokens):
        position, length = kernels.next_sentence(tokens, position, np.ones(4, np.float32), state, sentence)
        lengths.append(length)
    assert lengths == [2, 1, 1000, 200]


def test_random_numbers_are_splitmix64():
    state = np.array([1234567], np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # Vigna's reference, seed 1234567
    assert [int(kernels.next_random(state)) for _ in expected] == expected


@pytest.mark.parametrize("counts", [COUNTS, np.arange(300, 0, -1), np.array([2, 1]), np.array([1] * 37)])
def test_huffman_codes_are_optimal_and_free_of_prefixes(counts):
    offsets, nodes, labels = huffman_paths(counts)
    lengths = np.diff(offsets)
    heap = counts.tolist()
    heapq.heapify(heap)
    best = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        best += merged
        heapq.heappush(heap, merged)
    assert (lengths * counts).sum() == best
    assert abs((0.5 ** lengths.astype(float)).sum() - 1) < 1e-9  # Kraft: the tree is full
    assert (np.diff(lengths) >= 0).all()  # frequent words have short paths
    # Each word is found by its labels: from the root, the child on a side is the next node, or the word.
    paths = {tuple(labels[offsets[word] : offsets[word + 1]].tolist()) for word in range(len(counts))}
    assert len(paths) == len(counts)
    assert (nodes[offsets[:-1]] == len(counts) - 2).all() and nodes.min() == 0


def test_probabilities_of_the_tree_sum_to_one():
    outputs = hierarchical_softmax(COUNTS)
    generator = np.random.default_rng(0)
    scores = generator.normal(size=len(COUNTS))
    total = 0.0
    for word in range(len(COUNTS)):
        path = slice(outputs.offsets[word], outputs.offsets[word + 1])
        signs = 2 * outputs.labels[path].astype(float) - 1
        total += np.prod(1 / (1 + np.exp(-signs * scores[outputs.nodes[path]])))
    assert abs(total - 1) < 1e-12
