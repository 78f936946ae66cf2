"""Lock-free training in threads: numbered chunks of work, taken in order.

What a chunk does, its learning rate and its random numbers depend on its number only, so one thread gives the same bits
each time; several threads write to the same vectors without locks (Recht et al. 2011, "Hogwild!") and do not.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Progress:
    """How far a training is: the next chunk of the whole training, and the sums of the epoch that it is in.

    Args:
        total: chunks of all epochs. losses: mean loss of each whole epoch.
        loss, items: sums over the chunks of the present epoch, in float64.
    """

    chunk: int = 0
    total: int = 0
    losses: list[float] = field(default_factory=list)
    loss: float = 0.0
    items: int = 0

    @property
    def mean_loss(self) -> float | None:
        """The mean loss of the present epoch, else of the last one."""
        if self.items:
            return self.loss / self.items
        return self.losses[-1] if self.losses else None


def available_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunk_seed(seed: int, number: int) -> np.uint64:
    """Return a seed for the random numbers of one chunk."""
    return np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]


def train_epochs(
    make_worker: Callable[[], Callable[[int], tuple[float, int]]],
    chunks: int,
    epochs: int,
    threads: int,
    progress: Progress,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> None:
    """Do all chunks of all epochs from `progress.chunk` on, and keep `progress` up to date.

    Args:
        make_worker: called once a thread in each epoch; what it returns does the chunk of a number (0 <= number <
            chunks * epochs) and returns the sum of its losses and their number. chunks: of one epoch.
        report: called after a chunk and after an epoch, by one thread at a time.
        stop: asked before each chunk; when it says so, the chunks that were begun are finished.
    """
    lock, failed = threading.Lock(), threading.Event()
    progress.total = chunks * epochs

    def work(end: int) -> None:
        worker = make_worker()
        while True:
            with lock:
                if stop() or failed.is_set() or progress.chunk >= end:
                    return
                number = progress.chunk
                progress.chunk += 1
            try:
                loss, items = worker(number)
            except BaseException:
                failed.set()
                raise
            with lock:
                progress.loss += loss
                progress.items += items
                report(progress)

    with ThreadPoolExecutor(threads) as pool:
        for epoch in range(progress.chunk // chunks, epochs):
            end = (epoch + 1) * chunks
            for done in [pool.submit(work, end) for _ in range(threads)]:
                done.result()
            if progress.chunk < end:
                return
            progress.losses.append(progress.loss / max(progress.items, 1))
            progress.loss, progress.items = 0.0, 0
            report(progress)
