"""Jobs for the tests of workers, and a comparison of them that a test can interrupt from outside."""

import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import torch

from stemma.insights.workers import Interrupted, Report, run_jobs
from stemma.training.interrupts import Interrupts


def square(number: int, report: Report) -> int:
    """Report its two steps; later numbers are faster."""
    report((f"job-{number}", "working", 0, 1, {}))
    time.sleep(0.05 / (1 + number))
    report((f"job-{number}", "working", 1, 1, {"loss": number / 2}))
    return number**2


def surroundings(folder: str, report: Report) -> tuple[int, int, str | None, bool]:
    """Return the worker's process, its threads, and whether it has a process group of its own; wait for a second
    worker, so that each gets a job."""
    (Path(folder) / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return os.getpid(), torch.get_num_threads(), os.environ.get("TOKENIZERS_PARALLELISM"), os.getpgrp() == os.getpid()


def warn(number: int, report: Report) -> int:
    """Say what a person need not read from each of many jobs."""
    warnings.warn("some inputs are cut", stacklevel=1)
    return number


class Unhappy(Exception):
    """An exception with an argument that it does not hand on, so that it cannot be unpickled."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} because of {why}")


def fail(kind: str, report: Report) -> str:
    """Fail in one of several ways."""
    if kind == "error":
        raise ValueError("no good")
    if kind == "cannot be unpickled":
        raise Unhappy("no good", "the weather")
    if kind == "cannot be pickled":
        error = ValueError("no good")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error
    if kind == "result cannot be pickled":
        return threading.Lock()  # type: ignore[return-value]
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "told to end":
        os.kill(os.getpid(), signal.SIGTERM)
    if kind == "long":
        time.sleep(60)
    return kind


def patient(job: tuple[str, str], report: Report) -> None:
    """A long job that leaves its process in a folder, and on an interruption saves something.

    Kinds: "saves" as a training does, "sleeps" and ends at once, "talks" a lot, "stuck" does not listen.
    """
    kind, folder = job
    (Path(folder) / f"{os.getpid()}.running").touch()
    report((kind, "working", 0, 1, {}))
    if kind == "saves":
        with Interrupts() as interrupts:
            while interrupts.received is None:
                time.sleep(0.01)
        time.sleep(0.3)
        (Path(folder) / f"{os.getpid()}.saved").touch()
        raise Interrupted
    if kind == "stuck":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        if kind == "talks":
            report((kind, "working", 0, 1, {"loss": 1.0}))
        time.sleep(0.001)


def main(kind: str, folder: str) -> None:
    """Run two long jobs; leave in the folder how they ended."""

    def tick() -> None:
        if len(list(Path(folder).glob("*.running"))) == 2:
            (Path(folder) / "started").touch()

    try:
        run_jobs(patient, [(kind, folder)] * 2, workers=2, on_event=lambda event: None, tick=tick)
    except Interrupted:
        (Path(folder) / "interrupted").touch()
        raise


if __name__ == "__main__":
    from jobs import main as run  # type: ignore[import-not-found]  # under a name by which workers find its jobs

    run(*sys.argv[1:])
