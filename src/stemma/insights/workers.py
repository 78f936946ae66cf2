"""Independent jobs on all processors: one thread a job, so that results do not depend on how many run at once."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# What a job reports: its name, what it is doing, done and to do, and numbers to show.
Event = tuple[str, str, int, int, dict[str, float]]
Report = Callable[[Event], None]

_events: Any = None


class Interrupted(Exception):
    """A job was asked to stop and has saved what it had."""


@dataclass
class Reporter:
    """A display (see `training.objective.Display`) that hands on what it is told, for one job.

    Args:
        job: its name. report: takes the events. stage: what the job is doing.
    """

    job: str
    report: Report
    stage: str = ""
    _steps: int = field(default=0, repr=False)

    @contextmanager
    def preparing(self) -> Iterator[Callable[[str, int, int], None]]:
        """Run the block."""
        yield lambda stage, done, total: None

    @contextmanager
    def running(self, step: int, steps: int) -> Iterator[None]:
        """Tell that the training begins."""
        self._steps = steps
        self.report((self.job, self.stage, step, steps, {}))
        yield

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the state after an update."""
        self.report((self.job, self.stage, step, self._steps, dict(values)))

    def say(self, message: str) -> None:
        """Tell nothing: many jobs talk at once."""


def run_jobs(
    work: Callable[[Any, Report], Any], jobs: Sequence[Any], *, workers: int, on_event: Report, tick: Callable[[], None]
) -> list[Any]:
    """Return `work(job, report)` of all jobs, in their order, several at once, each in a process of its own.

    Args:
        work: a function of a module, picklable as are the jobs and results. on_event: takes what jobs report, here.
        tick: called a few times a second.
    Raises:
        Interrupted: SIGINT or SIGTERM came; the jobs in hand were told, and have saved what they had.
        what a job raised: the first failure; the others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    with ProcessPoolExecutor(workers, context, _begin, (events, os.getpid())) as pool:
        futures = [pool.submit(_work, work, job) for job in jobs]
        with _interruptible():
            try:
                _follow(futures, events, on_event, tick)
            except BaseException:
                for future in futures:
                    future.cancel()
                _signal(pool, signal.SIGTERM)
                wait(futures, timeout=60)
                raise
        return [future.result() for future in futures]


def _follow(futures: Sequence["Future[Any]"], events: Any, on_event: Report, tick: Callable[[], None]) -> None:
    left = set(futures)
    while left:
        end = time.monotonic() + 0.25
        while (seconds := end - time.monotonic()) > 0:
            try:
                on_event(events.get(timeout=seconds))
            except queue.Empty:
                break
        tick()
        for future in [future for future in left if future.done()]:
            future.result()
            left.remove(future)
    while True:
        try:
            on_event(events.get_nowait())
        except queue.Empty:
            return tick()


def _begin(events: Any, parent: int) -> None:
    """Prepare a worker: one thread, signals from its parent only, and no life after it."""
    global _events
    os.setpgrp()
    _events = events
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(work: Callable[[Any, Report], Any], job: Any) -> Any:
    try:
        return work(job, _events.put)
    except KeyboardInterrupt:
        raise Interrupted from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGINT and SIGTERM, which reach only this process, into an interruption of all."""

    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted

    try:
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are not ours to handle
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(pool: ProcessPoolExecutor, number: int) -> None:
    for process in list((pool._processes or {}).values()):
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)
