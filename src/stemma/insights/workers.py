"""Independent jobs on all processors: one thread a job, so that results do not depend on how many run at once."""

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# What a job reports: its name, what it is doing, done and to do, and numbers to show.
Event = tuple[str, str, int, int, dict[str, float]]
Report = Callable[[Event], None]

_KILLED = " (killed: too little memory? Try fewer --workers)"


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
    """Return `work(job, report)` of all jobs, in their order, several at once in processes of their own.

    Args:
        work: a function of a module, picklable as are the jobs and results. on_event: takes what jobs report, here.
        tick: called a few times a second.
    Raises:
        Interrupted: SIGINT or SIGTERM came; the jobs in hand were told, and have saved what they had. A second signal
            ends them at once.
        ChildProcessError: a worker died. What a job raised: the first failure. The others are stopped in both cases.
    """
    context = multiprocessing.get_context("spawn")
    todo, news = context.Queue(), context.Queue()
    for numbered in enumerate(jobs):
        todo.put(numbered)
    processes = [
        context.Process(target=_serve, args=(work, todo, news, os.getpid())) for _ in range(min(workers, len(jobs)))
    ]
    for _ in processes:
        todo.put(None)
    results: dict[int, Any] = {}
    with _caught_signals() as signals:
        try:
            with _held_back():
                for process in processes:
                    process.start()
            while len(results) < len(jobs):
                working, heard = any(process.is_alive() for process in processes), False
                for kind, content in _waiting(news):
                    heard = True
                    if kind == "event":
                        on_event(content)
                    elif kind == "failure":
                        raise content
                    else:
                        results[content[0]] = content[1]
                if signals:
                    raise Interrupted
                tick()
                dead = next((process for process in processes if process.exitcode), None)
                if dead is not None and len(results) < len(jobs):
                    raise ChildProcessError(
                        f"a worker died with exit code {dead.exitcode}{_KILLED if dead.exitcode == -9 else ''}; "
                        "what is finished is kept, and the same command goes on from there"
                    )
                if not working and not heard:
                    raise ChildProcessError(f"the workers ended with {len(results)} of {len(jobs)} jobs done")
        except BaseException:
            _stop(processes, news, signals)
            raise
    for process in processes:
        process.join()
    return [results[number] for number in range(len(jobs))]


def _waiting(news: Any) -> Iterator[tuple[str, Any]]:
    """Yield what comes within a quarter of a second."""
    end = time.monotonic() + 0.25
    while (seconds := end - time.monotonic()) > 0:
        try:
            yield news.get(timeout=seconds)
        except queue.Empty:
            return


def _serve(work: Callable[[Any, Report], Any], todo: Any, news: Any, parent: int) -> None:
    """Do jobs until there are no more: on one thread, with signals from the parent only, and no life after it."""

    speaking, asked = False, False

    def end(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        if not speaking:
            sys.exit(0)

    def say(kind: str, content: Any) -> None:
        nonlocal speaking
        speaking = True  # an exception in the middle of it could leave the queue locked
        news.put((kind, content))
        speaking = False
        if asked:
            sys.exit(0)

    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.getLogger("stemma").setLevel(logging.ERROR)  # many jobs would say the same
    warnings.simplefilter("ignore", UserWarning)
    while (numbered := todo.get()) is not None:
        number, job = numbered
        try:
            result = work(job, lambda event: say("event", event))
            pickle.dumps(result)  # the queue would drop one that cannot be pickled
            say("result", (number, result))
        except Exception as error:
            say("failure", _portable(error))
            return


def _portable(error: Exception) -> Exception:
    """Return an exception that reaches another process, with a note that says where it happened."""
    note = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _stop(processes: Sequence[Any], news: Any, signals: Sequence[int], patience: float = 60.0) -> None:
    """Ask the workers to save and end; end those that do not, and all if a signal comes meanwhile."""
    running = [process for process in processes if process.pid is not None]
    known, end = len(signals), time.monotonic() + patience
    for process in running:
        process.terminate()
    while any(process.is_alive() for process in running) and len(signals) == known and time.monotonic() < end:
        for _ in _waiting(news):  # what nobody reads would hold them up
            pass
    for process in running:
        process.kill()
        process.join()


@contextmanager
def _held_back() -> Iterator[None]:
    """Keep SIGINT, which a terminal sends to all, from processes that start in the block, until they are ready for it;
    this one gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Give the SIGINTs and SIGTERMs that came while the block runs. They raise nothing: in the middle of a message of a
    worker an exception would garble all later ones."""
    caught: list[int] = []
    try:
        before = {
            number: signal.signal(number, lambda number, frame: caught.append(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
    except ValueError:  # not the main thread: signals are not ours to handle
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
