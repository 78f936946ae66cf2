"""The compiled loops of GloVe: counting pairs in a hash table, and AdaGrad on their counts."""

import numpy as np

from stemma.data.compiled import kernel

EMPTY = -1  # a free slot
MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing


def empty_table(slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash table: pairs, int64, and counts, float64 [slots]; `slots` is a power of two."""
    return np.full(slots, EMPTY, np.int64), np.zeros(slots, np.float64)


@kernel
def find_slot(pairs, pair):  # type: ignore[no-untyped-def]
    """Return the slot of a pair, or the free one where it belongs."""
    mask = len(pairs) - 1
    slot = np.int64((np.uint64(pair) * MIXER) >> np.uint64(24)) & mask
    while pairs[slot] != pair and pairs[slot] != EMPTY:
        slot = (slot + 1) & mask
    return slot


@kernel
def larger_table(pairs, counts):  # type: ignore[no-untyped-def]
    """Return a table of twice the size with the same content."""
    new_pairs, new_counts = np.full(2 * len(pairs), EMPTY, np.int64), np.zeros(2 * len(pairs), np.float64)
    for old in range(len(pairs)):
        if pairs[old] != EMPTY:
            slot = find_slot(new_pairs, pairs[old])
            new_pairs[slot] = pairs[old]
            new_counts[slot] = counts[old]
    return new_pairs, new_counts


@kernel
def count_block(tokens, place, words, window, symmetric, weighted, pairs, counts, used, limit):  # type: ignore[no-untyped-def]
    """Count each word from `place` with those before it in its sentence; return where it stopped, and slots used.

    It stops at the end, or before a word when more than `limit` slots are used.
    """
    while place < len(tokens) and used <= limit:
        right = tokens[place]
        if right >= 0:
            for distance in range(1, min(window, place) + 1):
                left = tokens[place - distance]
                if left < 0:
                    break
                count = 1 / distance if weighted else 1.0
                first, second = np.int64(left), np.int64(right)
                if symmetric:
                    first, second = min(first, second), max(first, second)
                    if first == second:
                        count *= 2
                pair = first * words + second
                slot = find_slot(pairs, pair)
                if pairs[slot] == EMPTY:
                    pairs[slot] = pair
                    used += 1
                counts[slot] += count
        place += 1
    return place, used


@kernel
def train_records(first, second, logs, weights, parameters, squares, rate, limit, bias_rate, bias_limit):  # type: ignore[no-untyped-def]
    """One AdaGrad step for each record, in order and in place; return (sum of costs, records).

    `first`, `second` int32, `logs` (of the counts) and `weights` float32 [records]; `parameters` and `squares` are
    (vectors, contexts, biases, context biases), float32. Records whose error is not finite are passed over.
    """
    vectors, contexts, biases, context_biases = parameters
    squares_v, squares_c, squares_b, squares_cb = squares
    cost, records = 0.0, 0
    for record in range(len(first)):
        i, j = first[record], second[record]
        error = biases[i] + context_biases[j] - logs[record]
        for d in range(vectors.shape[1]):
            error += vectors[i, d] * contexts[j, d]
        if not np.isfinite(error):
            continue
        weighted = weights[record] * error
        cost += 0.5 * weighted * error
        records += 1
        for d in range(vectors.shape[1]):
            step_v = min(max(weighted * contexts[j, d], -limit), limit) * rate
            step_c = min(max(weighted * vectors[i, d], -limit), limit) * rate
            vectors[i, d] -= step_v / np.sqrt(squares_v[i, d])
            contexts[j, d] -= step_c / np.sqrt(squares_c[j, d])
            squares_v[i, d] += step_v * step_v
            squares_c[j, d] += step_c * step_c
        step = min(max(weighted, -bias_limit), bias_limit) * bias_rate
        biases[i] -= step / np.sqrt(squares_b[i])
        context_biases[j] -= step / np.sqrt(squares_cb[j])
        squares_b[i] += step * step
        squares_cb[j] += step * step
    return cost, records
