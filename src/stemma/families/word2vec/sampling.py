"""What a word is predicted by: noise words from an alias table, or the path to it in a Huffman tree."""

from typing import NamedTuple

import numpy as np

from stemma.data.compiled import kernel


class Outputs(NamedTuple):
    """The output vectors that belong to a word; kernels take it as a whole.

    Args:
        negatives: how many noise words, 0 for the tree.
        probability, alias: alias table of the noise, float32 and int32 [words] (empty for the tree).
        offsets: where the path of each word begins, int64 [words + 1] (empty for noise).
        nodes, labels: the paths from the root: inner node, int32, and 1 where the path turns to code 0, float32.
    """

    negatives: int
    probability: np.ndarray
    alias: np.ndarray
    offsets: np.ndarray
    nodes: np.ndarray
    labels: np.ndarray


def negative_sampling(counts: np.ndarray, negatives: int, exponent: float) -> Outputs:
    """Return noise by count ** exponent; `counts` int64 [words]."""
    weights = counts.astype(np.float64) ** exponent
    probability, alias = alias_table(weights / weights.sum())
    return Outputs(negatives, probability, alias, np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))


def hierarchical_softmax(counts: np.ndarray) -> Outputs:
    """Return the paths of a Huffman tree; `counts` int64 [words], falling."""
    offsets, nodes, labels = huffman_paths(np.ascontiguousarray(counts))
    return Outputs(0, np.empty(0, np.float32), np.empty(0, np.int32), offsets, nodes, labels)


@kernel
def alias_table(probabilities):  # type: ignore[no-untyped-def]
    """Return (probability, alias): draw a word evenly, keep it with its probability, else take its alias (Vose 1991).

    Two reads a draw from 8 bytes a word, where word2vec.c has a table of 400 MB that misses the cache at each.
    """
    words = len(probabilities)
    scaled = probabilities * words
    probability = np.ones(words, np.float32)
    alias = np.arange(words).astype(np.int32)
    small = np.empty(words, np.int64)
    large = np.empty(words, np.int64)
    smalls = larges = 0
    for word in range(words):
        if scaled[word] < 1:
            small[smalls] = word
            smalls += 1
        else:
            large[larges] = word
            larges += 1
    while smalls and larges:
        smalls -= 1
        poor, rich = small[smalls], large[larges - 1]
        probability[poor] = scaled[poor]
        alias[poor] = rich
        scaled[rich] -= 1 - scaled[poor]
        if scaled[rich] < 1:
            larges -= 1
            small[smalls] = rich
            smalls += 1
    return probability, alias


@kernel
def huffman_paths(counts):  # type: ignore[no-untyped-def]
    """Return (offsets, nodes, labels) of a Huffman tree over falling `counts`, by two queues."""
    words = len(counts)
    weight = np.empty(max(2 * words - 1, 1), np.int64)
    weight[:words] = counts
    parent = np.zeros(max(2 * words - 1, 1), np.int64)
    code = np.zeros(max(2 * words - 1, 1), np.int8)
    leaf, node = words - 1, words
    for new in range(words, 2 * words - 1):
        total = 0
        for bit in range(2):
            if leaf >= 0 and (node == new or weight[leaf] < weight[node]):
                taken = leaf
                leaf -= 1
            else:
                taken = node
                node += 1
            parent[taken] = new
            code[taken] = bit
            total += weight[taken]
        weight[new] = total
    root = 2 * words - 2
    offsets = np.zeros(words + 1, np.int64)
    for word in range(words):
        length, place = 0, word
        while place != root:
            length += 1
            place = parent[place]
        offsets[word + 1] = offsets[word] + length
    nodes = np.empty(offsets[words], np.int32)
    labels = np.empty(offsets[words], np.float32)
    for word in range(words):
        place, at = word, offsets[word + 1] - 1
        while place != root:
            labels[at] = 1 - code[place]
            place = parent[place]
            nodes[at] = place - words
            at -= 1
    return offsets, nodes, labels
