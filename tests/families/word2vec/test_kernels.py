"""The updates, against finite differences of the loss and a plain float64 rendering of word2vec.c's loops."""

import numpy as np
import pytest

from stemma.families.word2vec import kernels, sampling  # noqa: E402

WORDS, SIZE, RATE = 9, 21, 0.1
COUNTS = np.array([40, 30, 20, 15, 10, 8, 5, 3, 2])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def weights():
    generator = np.random.default_rng(1)
    return generator.normal(size=(2, WORDS, SIZE)).astype(np.float32) * 0.7


def loss_of(inputs, outputs, words, rows, labels):
    """Sum over neighbours and output vectors of -log of the probability of the label, float64."""
    scores = inputs[words] @ outputs[rows].T
    return np.logaddexp(0, -(2 * labels - 1) * scores).sum()


@pytest.mark.parametrize(
    "words, rows", [([3, 5, 1], [2, 4, 7, 0]), ([4, 4], [1, 1, 6]), ([0], [8]), ([1] * 5, [2] * 7)]
)
def test_all_at_once_is_the_gradient(weights, words, rows):
    inputs, outputs = weights.astype(np.float64)
    labels = np.array([1] + [0] * (len(rows) - 1), np.float32)
    numeric = []
    for array in (inputs, outputs):
        gradient = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            value = array[place]
            array[place] = value + 1e-5
            above = loss_of(inputs, outputs, words, rows, labels)
            array[place] = value - 1e-5
            gradient[place] = (above - loss_of(inputs, outputs, words, rows, labels)) / 2e-5
            array[place] = value
        numeric.append(gradient)
    new_inputs, new_outputs = weights.copy()
    buffers = kernels.make_buffers(SIZE, 5, 8)
    loss = kernels.update_many(
        np.array(words, np.int32),
        new_inputs,
        np.array(rows),
        labels,
        new_outputs,
        (len(words), len(rows)),
        np.float32(RATE),
        *buffers[-5:],
    )
    assert loss == pytest.approx(loss_of(inputs, outputs, words, rows, labels), rel=1e-6)
    np.testing.assert_allclose((inputs - new_inputs) / RATE, numeric[0], atol=3e-5)
    np.testing.assert_allclose((outputs - new_outputs) / RATE, numeric[1], atol=3e-5)


def reference(tokens, weights, outputs_of, cbow, exact):
    """word2vec.c's loops for windows of one word, hierarchical softmax, in float64."""
    inputs, outputs = weights.astype(np.float64)
    loss = 0.0
    for centre, word in enumerate(tokens):
        path = slice(outputs_of.offsets[word], outputs_of.offsets[word + 1])
        around = [tokens[place] for place in (centre - 1, centre + 1) if 0 <= place < len(tokens)]
        for group in [around] if cbow else [[neighbour] for neighbour in around]:
            hidden = inputs[group].mean(axis=0)
            error = np.zeros(SIZE)
            for node, label in zip(outputs_of.nodes[path], outputs_of.labels[path], strict=True):
                score = hidden @ outputs[node]
                loss += np.logaddexp(0, -(2 * label - 1) * score)
                step = (label - sigmoid(score)) * RATE
                error += step * outputs[node]
                outputs[node] += step * hidden
            for neighbour in group:
                inputs[neighbour] += error / len(group) if exact else error
    return loss, inputs, outputs


@pytest.mark.parametrize("architecture, exact", [("skip-gram", True), ("cbow", True), ("cbow", False)])
def test_one_after_the_other_is_word2vec_c(weights, architecture, exact):
    tokens = np.array([0, 3, 1, 8, 0, 2, 2, 5, 4, 7, 6, 1], np.int32)
    outputs_of = sampling.hierarchical_softmax(COUNTS)
    cbow = architecture == "cbow"
    loss, inputs, outputs = reference(tokens.tolist(), weights, outputs_of, cbow, exact)
    new_inputs, new_outputs = weights.copy()
    run = kernels.train_cbow if cbow else kernels.train_skip_gram
    keep = np.ones(WORDS, np.float32)
    buffers = kernels.make_buffers(SIZE, 1, 8)
    found, predictions = run(
        tokens, keep, 1, outputs_of, new_inputs, new_outputs, exact, np.float32(RATE), np.uint64(5), buffers
    )
    assert predictions == (len(tokens) if cbow else 2 * len(tokens) - 2)
    assert found == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(new_inputs, inputs, atol=2e-5)
    np.testing.assert_allclose(new_outputs, outputs, atol=2e-5)


@pytest.mark.parametrize("score", [-60.0, -16.0, -3.3, 0.0, 1e-3, 2.5, 17.0, 60.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_loss_and_step_of_a_score(score, label):
    scores, labels = np.array([score], np.float32), np.array([label], np.float32)
    loss = kernels.judge(scores, labels, 1, np.float32(1), np.zeros(1, np.float32))
    held = np.clip(score, -40, 40)
    assert loss == pytest.approx(np.logaddexp(0, -(2 * label - 1) * held), rel=1e-5, abs=1e-7)
    assert scores[0] == pytest.approx(label - sigmoid(held), rel=1e-5, abs=1e-9)


def test_losses_of_many_scores_do_not_overflow():
    scores = np.full(1000, -39.0, np.float32)
    loss = kernels.judge(scores, np.ones(1000, np.float32), 1000, np.float32(1), np.zeros(1000, np.float32))
    assert loss == pytest.approx(39_000, rel=1e-6)


def test_windows_are_uniform():
    state = np.array([9], np.uint64)
    drawn = np.bincount([kernels.next_below(state, 5) for _ in range(50_000)], minlength=5)
    assert len(drawn) == 5 and np.abs(drawn / 50_000 - 0.2).max() < 0.01
