"""How often words come together, counted within a bound on memory, and put into random order.

A hash table is written out as a sorted run whenever it is full; the runs are merged; the merged pairs are dealt out to
files at random and each file is shuffled in memory, which makes every order equally likely.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from stemma.data.word_corpora import blocks
from stemma.errors import InputError
from stemma.families.glove.model import GloVeConfig

RUN = np.dtype([("pair", "<i8"), ("count", "<f8")])
RECORD = np.dtype([("first", "<i4"), ("second", "<i4"), ("count", "<f4")])
FIRST_SLOTS = 1 << 16  # of the hash table, which then grows
FULL = 0.6  # of the slots; more makes long searches
BYTES_A_SLOT = 48  # the slot itself, and what sorting a full table for writing takes
SMALLEST_MEMORY = 16e6


def write_records(
    tokens: np.ndarray,
    words: int,
    config: GloVeConfig,
    path: Path,
    *,
    memory: float = 2e9,
    seed: int = 1,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> None:
    """Count which words come together in `tokens` and write the counts as `RECORD`s in random order.

    Args:
        tokens: int32 ids and `END`, may be memory-mapped. memory: bytes to use at most, about.
    Raises:
        InputError: no two words come together, or the memory is too little.
    """
    if memory < SMALLEST_MEMORY:
        raise InputError(f"memory: {memory:g} bytes; expected at least {SMALLEST_MEMORY:g}")
    slots = 1 << int(np.log2(memory / BYTES_A_SLOT))
    with TemporaryDirectory(dir=path.parent, prefix=".cooccurrence-", suffix=".tmp") as name:
        folder = Path(name)
        runs = count_pairs(tokens, words, config, folder, slots, lambda done: report("counting", done, len(tokens)))
        pairs = sum(map(len, runs))
        if not pairs:
            raise InputError("no two words come together in this text; expected sentences of several words")
        report("shuffling", 0, 0)
        merged = merge_runs(runs, max(int(memory / 4 / RUN.itemsize / len(runs)), 1024))
        records = (_records(block, words, config.symmetric) for block in merged)
        files = int(2 * pairs * RECORD.itemsize / (memory / 4)) + 1
        _shuffle(records, path, folder, files, np.random.default_rng(seed))


def count_pairs(
    tokens: np.ndarray,
    words: int,
    config: GloVeConfig,
    folder: Path,
    slots: int,
    report: Callable[[int], None] = lambda done: None,
) -> list[np.ndarray]:
    """Count the pairs of words in a hash table of at most `slots` (a power of two); return sorted runs of `RUN`.

    A pair is left * words + right; with a symmetric window smaller * words + larger, and the count is that of one
    direction (a word beside itself counts twice: once in each). Runs but the last are memory-mapped in `folder`.
    """
    from stemma.families.glove import kernels

    runs: list[np.ndarray] = []
    pairs, counts = kernels.empty_table(min(FIRST_SLOTS, slots))
    used, done = 0, 0
    before = np.empty(0, np.int32)
    for block in blocks(tokens):
        chain = np.concatenate([before, block])
        place = len(before)
        while place < len(chain):
            limit = int(FULL * len(pairs)) - 2 * config.window
            place, used = kernels.count_block(
                chain,
                place,
                words,
                config.window,
                config.symmetric,
                config.distance_weighting,
                pairs,
                counts,
                used,
                limit,
            )
            if place == len(chain):
                break
            if len(pairs) < slots:
                pairs, counts = kernels.larger_table(pairs, counts)
            else:
                file = folder / f"run-{len(runs)}.bin"
                _sorted_run(pairs, counts).tofile(file)
                runs.append(np.memmap(file, RUN, "r"))
                pairs[:], counts[:], used = kernels.EMPTY, 0, 0
        before = chain[-config.window :]
        done += len(block)
        report(done)
    runs.append(_sorted_run(pairs, counts))
    return [run for run in runs if len(run)]


def merge_runs(runs: Sequence[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Yield sorted runs as one, in parts, the counts of a pair added up; `length`: what is read of a run at once."""
    starts = [0] * len(runs)
    while any(start < len(run) for start, run in zip(starts, runs, strict=True)):
        heads = [np.array(run[start : start + length]) for start, run in zip(starts, runs, strict=True)]
        # What is not read yet comes after the last pair of its run's head: up to the first such pair all is there.
        unread = [start + length < len(run) for start, run in zip(starts, runs, strict=True)]
        bounds = [head["pair"][-1] for head, more in zip(heads, unread, strict=True) if more]
        ends = [np.searchsorted(head["pair"], min(bounds), "right") if bounds else len(head) for head in heads]
        together = np.concatenate([head[:end] for head, end in zip(heads, ends, strict=True)])
        starts = [start + int(end) for start, end in zip(starts, ends, strict=True)]
        pairs, where = np.unique(together["pair"], return_inverse=True)
        merged = np.empty(len(pairs), RUN)
        merged["pair"], merged["count"] = pairs, np.bincount(where, together["count"], len(pairs))
        yield merged


def _sorted_run(pairs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    taken = np.flatnonzero(pairs >= 0)
    taken = taken[np.argsort(pairs[taken])]
    run = np.empty(len(taken), RUN)
    run["pair"], run["count"] = pairs[taken], counts[taken]
    return run


def _records(run: np.ndarray, words: int, symmetric: bool) -> np.ndarray:
    """Return the records of a part of the pairs, in a symmetric window those of both directions."""
    records = np.empty(len(run), RECORD)
    records["first"], records["second"] = run["pair"] // words, run["pair"] % words
    records["count"] = run["count"]
    if not symmetric:
        return records
    other = records[records["first"] != records["second"]]
    turned = other.copy()
    turned["first"], turned["second"] = other["second"], other["first"]
    return np.concatenate([records, turned])


def _shuffle(
    records: Iterator[np.ndarray], path: Path, folder: Path, files: int, generator: np.random.Generator
) -> None:
    dealt = [open(folder / f"deal-{number}.bin", "wb") for number in range(files)]  # noqa: SIM115 (closed below)
    try:
        for block in records:
            to = generator.integers(files, size=len(block))
            for number, file in enumerate(dealt):
                block[to == number].tofile(file)
    finally:
        for file in dealt:
            file.close()
    with open(path, "wb") as out:
        for file in dealt:
            generator.permutation(np.fromfile(file.name, RECORD)).tofile(out)
