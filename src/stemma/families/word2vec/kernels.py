"""The compiled loops of word2vec. They run without Python's lock, and several threads write to the same vectors.

Random numbers are splitmix64, so that a seed decides every draw.
"""

from typing import NamedTuple

import numpy as np

from stemma.data.compiled import borrowed, kernel, prefetch

LONGEST_SENTENCE = 1000  # words after subsampling; what follows is the next sentence (word2vec.c)
LANES = 16  # the buffers' rows are padded with zeros to a multiple of this
FACTORS = 16  # probabilities multiplied before a logarithm is taken; so few cannot overflow float64
LARGEST = np.float32(40)  # scores are held within +-this; beyond, a gradient is below 1e-17
LOG2_E, LN_2 = np.float32(np.log2(np.e)), np.float32(np.log(2))
ONE, TWO = np.float32(1), np.float32(2)
TAYLOR = tuple(np.float32(1 / number) for number in (2, 6, 24, 120, 720))


class Buffers(NamedTuple):
    """What one thread works in; made once, outside of the loops. See `update_many` for the last five."""

    state: np.ndarray
    sentence: np.ndarray
    neighbours: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    upcoming: np.ndarray
    upcoming_labels: np.ndarray
    gradient: np.ndarray
    hidden: np.ndarray
    chosen: np.ndarray
    scores: np.ndarray
    wanted: np.ndarray
    factors: np.ndarray


def make_buffers(size: int, window: int, longest: int) -> Buffers:
    """Return buffers for vectors of `size` and at most `longest` output vectors a word."""
    padded = -(-size // LANES) * LANES
    pairs = 2 * window * longest
    return Buffers(
        state=np.zeros(1, np.uint64),
        sentence=np.zeros(LONGEST_SENTENCE, np.int32),
        neighbours=np.zeros(2 * window, np.int32),
        rows=np.zeros(longest, np.int64),
        labels=np.zeros(longest, np.float32),
        upcoming=np.zeros(longest, np.int64),
        upcoming_labels=np.zeros(longest, np.float32),
        gradient=np.zeros(size, np.float32),
        hidden=np.zeros((2 * window, padded), np.float32),
        chosen=np.zeros((longest + 3, padded), np.float32),
        scores=np.zeros(pairs, np.float32),
        wanted=np.zeros(pairs, np.float32),
        factors=np.zeros(pairs, np.float32),
    )


@kernel
def next_random(state):  # type: ignore[no-untyped-def]
    """Return 64 random bits; `state` uint64 [1]."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    bits = state[0]
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@kernel
def next_below(state, limit):  # type: ignore[no-untyped-def]
    """Return a random integer from 0 to below `limit` (at most 2^31)."""
    return np.int64(((next_random(state) >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))


@kernel
def next_sentence(tokens, position, keep, state, sentence):  # type: ignore[no-untyped-def]
    """Fill `sentence` with the words from `position` that are kept; return the position after, and how many."""
    length = 0
    while position < len(tokens) and length < len(sentence):
        word = tokens[position]
        position += 1
        if word < 0:
            if length:
                break
            continue
        if keep[word] < 1 and np.float32(next_random(state) >> np.uint64(40)) * np.float32(2.0**-24) >= keep[word]:
            continue
        sentence[length] = word
        length += 1
    return position, length


@kernel
def choose_outputs(word, negatives, probability, alias, offsets, nodes, turns, state, rows, labels):  # type: ignore[no-untyped-def]
    """Put the output vectors for `word`, and whether each should say yes, into `rows` and `labels`; return how many.

    The arguments from `negatives` to `turns` are those of `sampling.Outputs`. Noise that hits the word itself is
    skipped, not drawn again.
    """
    if negatives == 0:
        start, end = offsets[word], offsets[word + 1]
        for place in range(start, end):
            rows[place - start] = nodes[place]
            labels[place - start] = turns[place]
        return end - start
    rows[0] = word
    labels[0] = 1
    count = 1
    for _ in range(negatives):
        bits = next_random(state)
        drawn = np.int64(((bits >> np.uint64(32)) * np.uint64(len(alias))) >> np.uint64(32))
        if np.float32(bits & np.uint64(0xFFFFFF)) * np.float32(2.0**-24) >= probability[drawn]:
            drawn = np.int64(alias[drawn])
        if drawn != word:
            rows[count] = drawn
            labels[count] = 0
            count += 1
    return count


@kernel
def exponential(x):  # type: ignore[no-untyped-def]
    """Return e^x, float32, with a relative error of 2e-6; unlike the library's it is vectorised."""
    scaled = min(max(x, -LARGEST), LARGEST) * LOG2_E
    whole = np.int32(scaled + np.float32(64.5)) - np.int32(64)
    u = (scaled - np.float32(whole)) * LN_2
    series = ONE + u * (ONE + u * (TAYLOR[0] + u * (TAYLOR[1] + u * (TAYLOR[2] + u * (TAYLOR[3] + u * TAYLOR[4])))))
    return series * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)


@kernel
def judge(scores, labels, count, rate, factors):  # type: ignore[no-untyped-def]
    """Replace each score by rate * (label - sigmoid(score)); return the loss, the sum of -log sigmoid(+-score)."""
    for place in range(count):
        sign = TWO * labels[place] - ONE
        odds = exponential(-sign * scores[place])  # against the label
        scores[place] = sign * rate * odds / (ONE + odds)
        factors[place] = ONE + odds
    loss = 0.0
    for start in range(0, count, FACTORS):
        product = 1.0
        for place in range(start, min(start + FACTORS, count)):
            product *= factors[place]
        loss += np.log(product)
    return loss


@kernel
def update_one(hidden, row, count, rows, labels, outputs, rate, gradient):  # type: ignore[no-untyped-def]
    """Update output vectors one after the other for the vector `hidden[row]`; return the loss.

    `gradient` becomes what that vector should move by. (Rows are indexed, not taken as views, here and below: a view
    costs two atomic operations on its reference count.)
    """
    size = outputs.shape[1]
    loss, product = 0.0, 1.0
    for d in range(size):
        gradient[d] = 0
    for place in range(count):
        output = rows[place]
        score = np.float32(0)
        for d in range(size):
            score += hidden[row, d] * outputs[output, d]
        sign = TWO * labels[place] - ONE
        odds = exponential(-sign * score)
        step = sign * rate * odds / (ONE + odds)
        product *= ONE + odds
        if place % FACTORS == FACTORS - 1:
            loss += np.log(product)
            product = 1.0
        for d in range(size):
            gradient[d] += step * outputs[output, d]
        for d in range(size):
            outputs[output, d] += step * hidden[row, d]
    return loss + np.log(product)


@kernel
def add_scaled(target, to, scales, first, stride, sources, count):  # type: ignore[no-untyped-def]
    """Add `count` rows of `sources` to `target[to]`, each times its scale, at `first`, `first + stride`, ... ."""
    size = target.shape[1]
    place = 0
    while place + 6 <= count:
        at = first + place * stride
        a, b, c = scales[at], scales[at + stride], scales[at + 2 * stride]
        e, f, g = scales[at + 3 * stride], scales[at + 4 * stride], scales[at + 5 * stride]
        for d in range(size):
            one = a * sources[place, d] + b * sources[place + 1, d] + c * sources[place + 2, d]
            two = e * sources[place + 3, d] + f * sources[place + 4, d] + g * sources[place + 5, d]
            target[to, d] += one + two
        place += 6
    if place + 4 <= count:
        at = first + place * stride
        a, b, c, e = scales[at], scales[at + stride], scales[at + 2 * stride], scales[at + 3 * stride]
        for d in range(size):
            target[to, d] += (
                a * sources[place, d]
                + b * sources[place + 1, d]
                + c * sources[place + 2, d]
                + e * sources[place + 3, d]
            )
        place += 4
    if place + 2 <= count:
        at = first + place * stride
        a, b = scales[at], scales[at + stride]
        for d in range(size):
            target[to, d] += a * sources[place, d] + b * sources[place + 1, d]
        place += 2
    if place < count:
        a = scales[first + place * stride]
        for d in range(size):
            target[to, d] += a * sources[place, d]


@kernel
def update_many(words, inputs, rows, labels, outputs, sizes, rate, hidden, chosen, scores, wanted, factors):  # type: ignore[no-untyped-def]
    """Update for all neighbours `words` of a word and its output vectors at once; return the loss.

    All scores are taken before any vector moves: with H the neighbours' vectors and O the output vectors,
    G = rate * (labels - sigmoid(H O^T)), H moves by G O and O by G^T H. `sizes` are how many rows H and O have; the
    last five arguments are buffers.
    """
    size, padded = inputs.shape[1], hidden.shape[1]
    hidden_count, output_count = sizes
    for row in range(hidden_count):
        word = words[row]
        for d in range(size):
            hidden[row, d] = inputs[word, d]
    for row in range(output_count):
        output = rows[row]
        for d in range(size):
            chosen[row, d] = outputs[output, d]
    # Two rows by three columns of H O^T at a time keep six sums in registers. Rows and columns beyond the last are
    # computed in vain.
    for row in range(0, hidden_count, 2):
        first, second = row * output_count, (row + 1) * output_count
        for column in range(0, output_count, 3):
            a = b = c = e = f = g = np.float32(0)
            for d in range(padded):
                a += hidden[row, d] * chosen[column, d]
                b += hidden[row, d] * chosen[column + 1, d]
                c += hidden[row, d] * chosen[column + 2, d]
                e += hidden[row + 1, d] * chosen[column, d]
                f += hidden[row + 1, d] * chosen[column + 1, d]
                g += hidden[row + 1, d] * chosen[column + 2, d]
            scores[first + column] = a
            scores[second + column] = e
            if column + 1 < output_count:
                scores[first + column + 1] = b
                scores[second + column + 1] = f
            if column + 2 < output_count:
                scores[first + column + 2] = c
                scores[second + column + 2] = g
        for column in range(output_count):
            wanted[first + column] = labels[column]
            wanted[second + column] = labels[column]
    loss = judge(scores, wanted, hidden_count * output_count, rate, factors)
    stride = np.int64(1)
    for row in range(hidden_count):
        add_scaled(inputs, np.int64(words[row]), scores, row * output_count, stride, chosen, output_count)
    for column in range(output_count):
        add_scaled(outputs, rows[column], scores, column, output_count, hidden, hidden_count)
    return loss


@kernel
def train_skip_gram(tokens, keep, window, outputs_of, inputs, outputs, exact, rate, seed, buffers):  # type: ignore[no-untyped-def]
    """Train on the words of `tokens` (int32), in place; return (sum of losses, predictions).

    `outputs_of`: `sampling.Outputs`. `exact`: update after each pair, with noise of its own.
    """
    tokens, keep, inputs, outputs = borrowed(tokens), borrowed(keep), borrowed(inputs), borrowed(outputs)
    negatives = outputs_of.negatives
    probability, alias = borrowed(outputs_of.probability), borrowed(outputs_of.alias)
    offsets, nodes, turns = borrowed(outputs_of.offsets), borrowed(outputs_of.nodes), borrowed(outputs_of.labels)
    state, sentence = borrowed(buffers.state), borrowed(buffers.sentence)
    rows, labels = borrowed(buffers.rows), borrowed(buffers.labels)
    upcoming, upcoming_labels = borrowed(buffers.upcoming), borrowed(buffers.upcoming_labels)
    output_count = upcoming_count = np.int64(0)
    hidden, gradient = borrowed(buffers.hidden), borrowed(buffers.gradient)
    neighbours, chosen = borrowed(buffers.neighbours), borrowed(buffers.chosen)
    scores, wanted, factors = borrowed(buffers.scores), borrowed(buffers.wanted), borrowed(buffers.factors)
    size = inputs.shape[1]
    state[0] = seed
    loss, predictions, position = 0.0, 0, 0
    while position < len(tokens):
        position, length = next_sentence(tokens, position, keep, state, sentence)
        if length and not exact:
            upcoming_count = choose_outputs(
                sentence[0], negatives, probability, alias, offsets, nodes, turns, state, upcoming, upcoming_labels
            )
        for centre in range(length):
            word = sentence[centre]
            if not exact:  # the next word's output vectors are fetched from memory while this one's are worked on
                rows, upcoming = upcoming, rows
                labels, upcoming_labels = upcoming_labels, labels
                output_count = upcoming_count
                if centre + 1 < length:
                    upcoming_count = choose_outputs(
                        sentence[centre + 1],
                        negatives,
                        probability,
                        alias,
                        offsets,
                        nodes,
                        turns,
                        state,
                        upcoming,
                        upcoming_labels,
                    )
                    for place in range(upcoming_count):
                        for d in range(0, size, LANES):  # a cache line
                            prefetch(outputs, upcoming[place], d)
            radius = 1 + next_below(state, window)
            count = np.int64(0)  # a literal 0 would be compiled for twice, below
            for place in range(max(centre - radius, 0), min(centre + radius + 1, length)):
                if place != centre:
                    neighbours[count] = sentence[place]
                    count += 1
            predictions += count
            if exact:
                for place in range(count):
                    neighbour = neighbours[place]
                    output_count = choose_outputs(
                        word, negatives, probability, alias, offsets, nodes, turns, state, rows, labels
                    )
                    loss += update_one(inputs, neighbour, output_count, rows, labels, outputs, rate, gradient)
                    for d in range(size):
                        inputs[neighbour, d] += gradient[d]
            elif count:
                sizes = count, output_count
                loss += update_many(
                    neighbours, inputs, rows, labels, outputs, sizes, rate, hidden, chosen, scores, wanted, factors
                )
    return loss, predictions


@kernel
def train_cbow(tokens, keep, window, outputs_of, inputs, outputs, exact, rate, seed, buffers):  # type: ignore[no-untyped-def]
    """Train on the words of `tokens` (int32), in place; return (sum of losses, predictions).

    `outputs_of`: `sampling.Outputs`. `exact`: the true gradient of the mean.
    """
    tokens, keep, inputs, outputs = borrowed(tokens), borrowed(keep), borrowed(inputs), borrowed(outputs)
    negatives = outputs_of.negatives
    probability, alias = borrowed(outputs_of.probability), borrowed(outputs_of.alias)
    offsets, nodes, turns = borrowed(outputs_of.offsets), borrowed(outputs_of.nodes), borrowed(outputs_of.labels)
    state, sentence = borrowed(buffers.state), borrowed(buffers.sentence)
    rows, labels = borrowed(buffers.rows), borrowed(buffers.labels)
    hidden, gradient = borrowed(buffers.hidden), borrowed(buffers.gradient)
    size = inputs.shape[1]
    state[0] = seed
    loss, predictions, position = 0.0, 0, 0
    while position < len(tokens):
        position, length = next_sentence(tokens, position, keep, state, sentence)
        for centre in range(length):
            radius = 1 + next_below(state, window)
            start, end = max(centre - radius, 0), min(centre + radius + 1, length)
            count = end - start - 1
            if count == 0:
                continue
            share = np.float32(1) / np.float32(count)
            for d in range(size):
                hidden[0, d] = 0
            for place in range(start, end):
                if place != centre:
                    neighbour = sentence[place]
                    for d in range(size):
                        hidden[0, d] += inputs[neighbour, d]
            for d in range(size):
                hidden[0, d] *= share
            output_count = choose_outputs(
                sentence[centre], negatives, probability, alias, offsets, nodes, turns, state, rows, labels
            )
            loss += update_one(hidden, 0, output_count, rows, labels, outputs, rate, gradient)
            predictions += 1
            if exact:
                for d in range(size):
                    gradient[d] *= share
            for place in range(start, end):
                if place != centre:
                    neighbour = sentence[place]
                    for d in range(size):
                        inputs[neighbour, d] += gradient[d]
    return loss, predictions
