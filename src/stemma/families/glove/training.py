"""Training of GloVe: AdaGrad over shuffled counts, in chunks by lock-free threads."""

from collections.abc import Callable

import numpy as np

from stemma.families.chunks import Progress, train_epochs
from stemma.families.glove.model import GloVe, GloVeConfig

CHUNK = 1 << 16  # records


def train(
    records: np.ndarray,
    config: GloVeConfig,
    model: GloVe,
    *,
    epochs: int = 25,
    learning_rate: float = 0.05,
    threads: int = 1,
    progress: Progress | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train the model in place; return the progress, whose losses are means of f(x) (w.c + b + b' - log x)^2 / 2.

    Args:
        records: `cooccurrence.RECORD`s in random order, may be memory-mapped.
        progress, report, stop: see `train_epochs`.
    Raises:
        InputError: Numba is not installed.
    """
    from stemma.families.glove import kernels

    chunks = -(-len(records) // CHUNK)
    parameters = model.vectors, model.contexts, model.biases, model.context_biases
    rate, limit = np.float32(learning_rate), np.float32(config.gradient_limit)
    paper = config.bias_learning_rate == "paper"
    bias_rate, bias_limit = (rate, limit) if paper else (np.float32(1), np.float32(np.inf))

    def work(number: int) -> tuple[float, int]:
        start = number % chunks * CHUNK
        chunk = records[start : start + CHUNK]
        counts = chunk["count"].astype(np.float32)
        weights = np.minimum((counts / np.float32(config.x_max)) ** np.float32(config.exponent), np.float32(1))
        first, second = np.ascontiguousarray(chunk["first"]), np.ascontiguousarray(chunk["second"])
        return kernels.train_records(
            first, second, np.log(counts), weights, parameters, model.squares, rate, limit, bias_rate, bias_limit
        )

    progress = progress or Progress()
    train_epochs(lambda: work, chunks, epochs, threads, progress, report, stop)
    return progress
