"""Jobs in processes of their own: results, events, failures, and that nothing outlives an interruption."""

import multiprocessing.process
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stemma.insights.workers import Reporter, run_jobs

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def jobs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the jobs, under a name by which workers find it."""
    monkeypatch.syspath_prepend(str(HERE))
    import jobs  # type: ignore[import-not-found]

    return jobs


def run(work: Any, todo: list[Any], workers: int = 2, events: list[Any] | None = None) -> list[Any]:
    heard: list[Any] = [] if events is None else events
    return run_jobs(work, todo, workers=workers, on_event=heard.append, tick=lambda: None)


def test_results_come_in_the_order_of_the_jobs_and_events_arrive(jobs: Any) -> None:
    events: list[Any] = []
    ticks: list[float] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found = run_jobs(
        jobs.square, [*range(7)], workers=2, on_event=events.append, tick=lambda: ticks.append(time.monotonic())
    )
    assert found == [0, 1, 4, 9, 16, 25, 36]
    assert ticks
    for number in range(7):
        own = [event for event in events if event[0] == f"job-{number}"]
        assert own == [
            (f"job-{number}", "working", 0, 1, {}),
            (f"job-{number}", "working", 1, 1, {"loss": number / 2}),
        ]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.slow
def test_a_worker_has_one_thread_and_a_group_of_its_own(jobs: Any, tmp_path: Path) -> None:
    found = run(jobs.surroundings, [str(tmp_path)] * 3, workers=2)
    assert len({process for process, *_ in found} - {os.getpid()}) == 2
    assert [rest for _, *rest in found] == [[1, "false", True]] * 3


def test_warnings_of_jobs_are_not_printed(jobs: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(jobs.warn, [1, 2], workers=1) == [1, 2]
    assert capfd.readouterr().err == ""


def test_no_jobs_need_no_workers(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(jobs.square, [], workers=8) == []


@pytest.mark.slow
def test_no_more_workers_than_jobs(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = multiprocessing.process.BaseProcess.start
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", lambda self: (started.append(1), start(self)))
    assert run(jobs.square, [3], workers=8) == [9]
    assert len(started) == 1


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("error", ValueError, "no good"),
        pytest.param(
            "cannot be unpickled", RuntimeError, "Unhappy.*no good because of the weather", marks=pytest.mark.slow
        ),
        pytest.param("cannot be pickled", RuntimeError, "ValueError.*no good", marks=pytest.mark.slow),
        pytest.param("result cannot be pickled", Exception, "pickle", marks=pytest.mark.slow),
        pytest.param(
            "killed",
            ChildProcessError,
            r"a worker died with exit code -9 \(killed: too little memory",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "told to end", ChildProcessError, "the workers ended with 0 of 1 jobs done", marks=pytest.mark.slow
        ),
    ],
)
def test_a_failure_comes_up_and_ends_the_others(jobs: Any, kind: str, error: type[Exception], message: str) -> None:
    started = time.monotonic()
    todo = [kind] if kind == "told to end" else [kind, "long"]
    with pytest.raises(error, match=message) as caught:
        run(jobs.fail, todo)
    assert time.monotonic() - started < 30  # not after the long job
    if kind == "error":
        assert any("in fail" in note for note in caught.value.__notes__)  # where in the worker it happened


def alive(folder: Path) -> list[int]:
    """The workers that said that they run, and do."""
    found = []
    for path in folder.glob("*.running"):
        process = int(path.stem)
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(process)
    return found


def wait(condition: Any, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@pytest.fixture
def comparison(tmp_path: Path) -> Iterator[Any]:
    """comparison(kind): a process with two long jobs, that are under way or just begin."""
    running: list[subprocess.Popen[str]] = []

    def start(kind: str, under_way: bool = True) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "jobs.py"), kind, str(tmp_path)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        running.append(process)
        if not under_way:
            return process
        assert wait((tmp_path / "started").exists), "the jobs do not start"
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for left in alive(tmp_path):
        os.kill(left, signal.SIGKILL)


on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@on_linux
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("saves", signal.SIGTERM),
        pytest.param("saves", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("sleeps", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("talks", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_interrupts_all_jobs_within_seconds(
    comparison: Any, tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    process = comparison(kind)
    assert len(alive(tmp_path)) == 2
    sent = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 20
    assert process.returncode == 1 and errors.strip().endswith("Interrupted")
    assert (tmp_path / "interrupted").exists() and not alive(tmp_path)
    assert len(list(tmp_path.glob("*.saved"))) == (2 if kind == "saves" else 0)


def children(process: int) -> list[int]:
    """Processes whose parent is the given one, but for multiprocessing's own."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


@on_linux
@pytest.mark.slow
def test_an_interruption_from_the_terminal_while_workers_start(comparison: Any, tmp_path: Path) -> None:
    """It reaches the whole group, in which workers are while they import: they have nothing to say about it."""
    process = comparison("sleeps", under_way=False)
    assert wait(lambda: len(children(process.pid)) == 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.count("Traceback") == 1 and errors.strip().endswith("Interrupted")
    assert not alive(tmp_path)


@on_linux
@pytest.mark.slow
def test_a_second_signal_ends_what_does_not_listen(comparison: Any, tmp_path: Path) -> None:
    process = comparison("stuck")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None  # it waits for its jobs to save
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 1 and not alive(tmp_path)


@on_linux
@pytest.mark.slow
def test_a_killed_parent_leaves_no_children(comparison: Any, tmp_path: Path) -> None:
    process = comparison("sleeps")
    process.kill()
    process.communicate()
    assert wait(lambda: not alive(tmp_path), 20)


@pytest.mark.slow
def test_outside_the_main_thread(jobs: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(run(jobs.square, [2, 3])))
    thread.start()
    thread.join(60)
    assert found == [4, 9]


def test_a_reporter_hands_on_what_a_training_tells() -> None:
    events: list[Any] = []
    reporter = Reporter("gpt-1", events.append, "pretraining")
    with reporter.preparing() as prepare:
        prepare("tokenising", 1, 2)
    with reporter.running(3, 10):
        reporter.step(4, {"loss": 2.5})
    reporter.say("nothing")
    assert events == [("gpt-1", "pretraining", 3, 10, {}), ("gpt-1", "pretraining", 4, 10, {"loss": 2.5})]
