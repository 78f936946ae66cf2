"""Whole trainings: words of a topic find each other, every mode; the same bits, stopped or not."""

import numpy as np
import pytest

from stemma.data.word_corpora import END, WordCorpus  # noqa: E402
from stemma.families.chunks import Progress  # noqa: E402
from stemma.families.word2vec import training  # noqa: E402
from stemma.families.word2vec.model import Word2VecConfig, initial_vectors  # noqa: E402

TOPICS, TOPIC = 4, 8


@pytest.fixture(scope="module")
def corpus():
    """Sentences of 10 words of one topic each; 32 words."""
    generator = np.random.default_rng(0)
    lines = [[*(generator.integers(0, TOPIC, 10) + TOPIC * generator.integers(TOPICS)), END] for _ in range(2500)]
    tokens = np.array(lines, np.int32).ravel()
    counts = np.bincount(tokens[tokens >= 0], minlength=TOPICS * TOPIC)
    return WordCorpus([f"w{number}" for number in range(TOPICS * TOPIC)], counts, tokens, int(counts.sum()))


def run(corpus, config, epochs=3, **options):
    inputs, outputs = initial_vectors(len(corpus.words), config, 1)
    progress = training.train(corpus, config, inputs, outputs, epochs=epochs, **options)
    return inputs, outputs, progress


MODES = [
    {"architecture": architecture, "output": output} | extra
    for architecture, extras in {
        "skip-gram": [{"mode": "fast"}, {"mode": "exact"}],
        "cbow": [{"cbow_gradient": "exact"}, {"cbow_gradient": "reference"}],
    }.items()
    for output in ("negative", "hierarchical")
    for extra in extras
]


@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(options.values()))
def test_words_of_a_topic_find_each_other(corpus, options):
    config = Word2VecConfig(dimensions=16, subsample=0, window=3, **options)
    rate = 0.05 if options["output"] == "hierarchical" else 0.3  # a corpus this small needs large steps
    inputs, _, progress = run(corpus, config, learning_rate=rate)
    # What is to be learned: the topic, so that 8 of 32 words remain. Each update helps the next prediction of the same
    # word a little, so that the loss may be slightly below their entropy.
    assert progress.losses[-1] < progress.losses[0]
    if options["output"] == "hierarchical":
        assert np.log(TOPIC) - 0.05 < progress.losses[-1] < np.log(TOPIC) + 0.35
    directions = inputs / np.linalg.norm(inputs, axis=1, keepdims=True)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, -1)
    nearest = cosines.argsort(axis=1)[:, ::-1][:, : TOPIC - 1]
    topic = np.arange(len(inputs)) // TOPIC
    assert (topic[nearest] == topic[:, None]).mean() > 0.95


def test_the_first_loss_is_that_of_a_coin_for_each_output(corpus):
    """Output vectors begin at zero: every label is a coin; a tree of 32 equal words has five."""
    config = Word2VecConfig(dimensions=16, output="hierarchical", subsample=0)
    flat = WordCorpus(corpus.words, np.full(32, 7), corpus.tokens[:2000], 0)
    _, _, progress = run(flat, config, epochs=1, learning_rate=1e-6)
    assert progress.losses[0] == pytest.approx(5 * np.log(2), rel=1e-4)


def test_one_thread_gives_the_same_bits_stopped_or_not(corpus):
    config = Word2VecConfig(dimensions=16)
    inputs, outputs, whole = run(corpus, config)
    again = run(corpus, config)
    assert (inputs == again[0]).all() and (outputs == again[1]).all() and whole.losses == again[2].losses
    parts = [*initial_vectors(len(corpus.words), config, 1)]
    progress = Progress()
    for end in (2, 4, 100):  # three chunks an epoch: inside of epochs
        training.train(corpus, config, *parts, epochs=3, progress=progress, stop=lambda end=end: progress.chunk >= end)
        assert progress.chunk == min(end, progress.total)
    assert progress.total == 9
    assert (inputs == parts[0]).all() and (outputs == parts[1]).all() and whole.losses == progress.losses
    assert not (run(corpus, config, seed=2)[0] == inputs).all()


def test_threads_learn_the_same(corpus):
    config = Word2VecConfig(dimensions=16, subsample=0)
    one, two = (run(corpus, config, threads=threads, learning_rate=0.1)[2].losses for threads in (1, 3))
    np.testing.assert_allclose(two, one, rtol=0.05)


def test_an_error_in_a_thread_is_raised(corpus):
    def report(progress):
        raise RuntimeError("from a thread")

    with pytest.raises(RuntimeError, match="from a thread"):
        run(corpus, Word2VecConfig(dimensions=16), threads=2, report=report)


def test_chunks_end_with_sentences():
    tokens = np.array([1, 1, END, 1, 1, 1, 1, 1, END, 1, 1, 1, 1, 1, 1, 1, 1], np.int32)
    assert training.chunk_borders(tokens, size=4, seek=6) == [0, 9, 13, 17]
    assert training.chunk_borders(tokens[:0]) == [0]


def test_rate_falls_linearly_with_the_words(corpus, monkeypatch):
    from stemma.families.word2vec import kernels

    rates = []
    monkeypatch.setattr(kernels, "train_skip_gram", lambda *arguments: rates.append(float(arguments[7])) or (0.0, 1))
    run(corpus, Word2VecConfig(dimensions=16), epochs=2, learning_rate=0.5)
    borders = training.chunk_borders(corpus.tokens)[:-1]
    starts = [epoch * len(corpus.tokens) + border for epoch in range(2) for border in borders]
    np.testing.assert_allclose(rates, [0.5 * (1 - start / (2 * len(corpus.tokens))) for start in starts], rtol=1e-6)
