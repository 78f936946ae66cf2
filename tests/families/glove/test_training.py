"""AdaGrad's steps against glove.c's formulas in float64, the cost, and that the same comes out stopped or not."""

import numpy as np
import pytest

from stemma.families.chunks import Progress  # noqa: E402
from stemma.families.glove import training  # noqa: E402
from stemma.families.glove.cooccurrence import RECORD  # noqa: E402
from stemma.families.glove.model import GloVe, GloVeConfig  # noqa: E402

WORDS, SIZE = 12, 19


@pytest.fixture
def records():
    generator = np.random.default_rng(0)
    pairs = generator.permutation(WORDS * WORDS)[:90]
    records = np.zeros(len(pairs), RECORD)
    records["first"], records["second"] = pairs // WORDS, pairs % WORDS
    records["count"] = generator.gamma(0.5, 40, len(pairs)) + 0.1
    return records


def reference(records, config, model, rate):
    """glove.c's inner loop, in float64; returns the mean cost."""
    w, c, b, d = (a.astype(np.float64) for a in (model.vectors, model.contexts, model.biases, model.context_biases))
    gw, gc, gb, gd = (a.astype(np.float64) for a in model.squares)
    costs = []
    for first, second, count in records.tolist():
        error = w[first] @ c[second] + b[first] + d[second] - np.log(count)
        weighted = error if count > config.x_max else (count / config.x_max) ** config.exponent * error
        costs.append(0.5 * weighted * error)
        limit = config.gradient_limit
        step_w = np.clip(weighted * c[second], -limit, limit) * rate
        step_c = np.clip(weighted * w[first], -limit, limit) * rate
        w[first] -= step_w / np.sqrt(gw[first])
        c[second] -= step_c / np.sqrt(gc[second])
        gw[first] += step_w**2
        gc[second] += step_c**2
        step = weighted
        if config.bias_learning_rate == "paper":
            step = np.clip(weighted, -limit, limit) * rate
        b[first] -= step / np.sqrt(gb[first])
        d[second] -= step / np.sqrt(gd[second])
        gb[first] += step**2
        gd[second] += step**2
    return np.mean(costs), [w, c, b, d, gw, gc, gb, gd]


@pytest.mark.parametrize("bias", ["reference", "paper"])
@pytest.mark.parametrize("limit", [100.0, 0.01])
@pytest.mark.parametrize("count", [1, 90])
def test_steps_are_those_of_glove_c(records, bias, limit, count):
    config = GloVeConfig(dimensions=SIZE, x_max=20, bias_learning_rate=bias, gradient_limit=limit)
    model = GloVe.initial(WORDS, config, 3)
    cost, expected = reference(records[:count], config, model, 0.05)
    progress = training.train(records[:count], config, model, epochs=1)
    assert progress.losses == [pytest.approx(cost, rel=1e-5)]
    found = [model.vectors, model.contexts, model.biases, model.context_biases, *model.squares]
    for array, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, right, rtol=2e-5, atol=2e-6)


def test_the_cost_falls_to_what_the_products_can_reach(records):
    config = GloVeConfig(dimensions=SIZE, x_max=20)
    model = GloVe.initial(WORDS, config, 3)
    progress = training.train(records, config, model, epochs=600)
    assert all(later < earlier for earlier, later in zip(progress.losses, progress.losses[1:30], strict=False))
    assert progress.losses[-1] < 1e-3 * progress.losses[0]
    scores = model.vectors @ model.contexts.T + model.biases[:, None] + model.context_biases
    error = scores[records["first"], records["second"]] - np.log(records["count"])
    assert np.abs(error[records["count"] > 20]).max() < 0.2
    np.testing.assert_array_equal(model.sums, model.vectors + model.contexts)


def test_a_broken_record_changes_nothing(records):
    config = GloVeConfig(dimensions=SIZE)
    whole, broken = GloVe.initial(WORDS, config, 1), GloVe.initial(WORDS, config, 1)
    training.train(records, config, whole, epochs=1)
    more = np.concatenate([records[:5], records[:1], records[5:]])
    more["count"][5] = np.inf
    losses = training.train(more, config, broken, epochs=1).losses
    np.testing.assert_array_equal(whole.vectors, broken.vectors)
    assert np.isfinite(losses).all()


def test_one_thread_gives_the_same_bits_stopped_or_not(records, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 25)
    config = GloVeConfig(dimensions=SIZE)
    whole, parts = GloVe.initial(WORDS, config, 1), GloVe.initial(WORDS, config, 1)
    losses = training.train(records, config, whole, epochs=5).losses
    progress = Progress()
    for end in (3, 8, 9, 100):
        training.train(records, config, parts, epochs=5, progress=progress, stop=lambda end=end: progress.chunk >= end)
    assert progress.losses == losses and progress.chunk == progress.total == 20
    np.testing.assert_array_equal(whole.vectors, parts.vectors)
    np.testing.assert_array_equal(whole.squares[1], parts.squares[1])
    threads = GloVe.initial(WORDS, config, 1)
    np.testing.assert_allclose(training.train(records, config, threads, epochs=5, threads=3).losses, losses, rtol=0.2)
