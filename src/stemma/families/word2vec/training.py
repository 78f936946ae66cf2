"""Training of word2vec: chunks of about 10,000 words, the learning rate falling linearly with the words read."""

from collections.abc import Callable

import numpy as np

from stemma.data.word_corpora import END, WordCorpus
from stemma.families.chunks import Progress, chunk_seed, train_epochs
from stemma.families.word2vec.model import Word2VecConfig, keep_probabilities

CHUNK = 10_000  # words at one learning rate, as in word2vec.c
SEEK = 1_000  # how far beyond that a chunk may go on to end with its sentence
SMALLEST_RATE = 1e-4  # of the first one
SKIP_GRAM_RATE = 0.025
# The true gradient of a mean is smaller, by the number of its words, than what word2vec.c gives each of them. On
# WikiText-2 (2M words, 5 epochs, 100 dimensions) WordSim-353 / MEN / SimLex-999 / analogies are .42 / .40 / .19 / 5.4 %
# with it at a rate of 0.2, .21 / .24 / .15 / 2.9 % at 0.05; with the reference's .39 / .37 / .18 / 5.8 % at 0.05.
CBOW_RATES = {"exact": 0.2, "reference": 0.05}


def train(
    corpus: WordCorpus,
    config: Word2VecConfig,
    inputs: np.ndarray,
    outputs: np.ndarray,
    *,
    epochs: int = 5,
    learning_rate: float | None = None,
    threads: int = 1,
    seed: int = 1,
    progress: Progress | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train float32 `inputs` and `outputs` [words, dimensions] in place; return the progress.

    Its losses are means over the predictions. A prediction is a pair of words in skip-gram, a word in CBOW; its loss is
    the sum over its output vectors, in nats.

    Args:
        learning_rate: the first one, which falls linearly to 1e-4 of it; default 0.025 (skip-gram), 0.2 (CBOW) or 0.05
            (CBOW with the reference's gradient).
        progress: of an earlier call, to go on from there; with one thread the result is the same as without a stop.
        report, stop: see `train_epochs`.
    Raises:
        InputError: Numba is not installed.
    """
    from stemma.families.word2vec import kernels, sampling

    if config.output == "negative":
        chosen = sampling.negative_sampling(corpus.counts, config.negatives, config.exponent)
        longest = config.negatives + 1
    else:
        chosen = sampling.hierarchical_softmax(corpus.counts)
        longest = int(np.diff(chosen.offsets).max())
    keep = keep_probabilities(corpus.counts, config.subsample)
    borders = chunk_borders(corpus.tokens)
    chunks, total = len(borders) - 1, epochs * len(corpus.tokens)
    skip_gram = config.architecture == "skip-gram"
    default_rate = SKIP_GRAM_RATE if skip_gram else CBOW_RATES[config.cbow_gradient]
    first_rate = default_rate if learning_rate is None else learning_rate
    run = kernels.train_skip_gram if skip_gram else kernels.train_cbow
    exact = config.mode == "exact" if skip_gram else config.cbow_gradient == "exact"

    def make_worker() -> Callable[[int], tuple[float, int]]:
        buffers = kernels.make_buffers(config.dimensions, config.window, longest)

        def work(number: int) -> tuple[float, int]:
            epoch, chunk = divmod(number, chunks)
            start, end = borders[chunk], borders[chunk + 1]
            left = 1 - (epoch * len(corpus.tokens) + start) / total
            rate = np.float32(first_rate * max(left, SMALLEST_RATE))
            tokens = np.array(corpus.tokens[start:end])
            draws = chunk_seed(seed, number)
            return run(tokens, keep, config.window, chosen, inputs, outputs, exact, rate, draws, buffers)

        return work

    progress = progress or Progress()
    train_epochs(make_worker, chunks, epochs, threads, progress, report, stop)
    return progress


def chunk_borders(tokens: np.ndarray, size: int = CHUNK, seek: int = SEEK) -> list[int]:
    """Return where chunks of `tokens` begin, and the end: after a sentence where one ends soon enough."""
    borders = [0]
    while borders[-1] + size < len(tokens):
        start = borders[-1] + size
        ends = np.flatnonzero(tokens[start : start + seek] == END)
        borders.append(start + int(ends[0]) + 1 if len(ends) else start)
    if borders[-1] < len(tokens):
        borders.append(len(tokens))
    return borders
