"""The log of metrics: one line a step, none of a future that a killed run had."""

import json
import sys

import pytest

from stemma.errors import InputError
from stemma.training.metrics import MetricsLog, cut_after


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_log_forgets_what_lies_behind_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 8):
            log.write(step, {"loss": 1.0 / step})
    with MetricsLog(path, step=4) as log:
        log.write(5, {"loss": 9.0})
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4, 5]
    assert read(path)[-1]["loss"] == 9.0 and read(path)[2]["loss"] == 1 / 3


@pytest.mark.parametrize("tail", [b'{"step": 3, "lo', b'{"step": 3, "loss": 1.0}', b"\xff\xfe\n", b"[]\n"])
def test_a_line_that_a_crash_cut_is_removed(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    cut_after(path, 10)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path / "metrics.jsonl", tensorboard=tmp_path / "events") as log:
        log.write(3, {"loss": 0.5, "event": "words are no scalar"})
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"stemma-lm\[wandb\]"):
        MetricsLog(tmp_path / "metrics.jsonl", wandb="project")


def test_weights_and_biases_gets_the_same_numbers(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    class Wandb:
        @staticmethod
        def init(**options):
            calls.append((options["project"], options["id"], options["resume"]))
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    with MetricsLog(tmp_path / "metrics.jsonl", wandb="mine", run="a/b") as log:
        log.write(1, {"loss": 2.0})
    assert calls == [("mine", "a-b", "allow"), (1, {"loss": 2.0}), "finished"]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    with pytest.raises(OSError, match=r"^/dev/full: No space left on device$"), MetricsLog(tmp_path / "log") as log:
        log._file.close()
        log._file = open("/dev/full", "w")  # noqa: SIM115 (closed by the log)
        log.write(1, {"loss": 1.0})
