"""What a person sees of a run: a table with curves on a terminal, lines elsewhere."""

import io

import pytest
from rich.console import Console

from stemma.alignment.curves import CurvesDisplay

VALUES = {"reward": 0.25, "kl": 1.5, "entropy": 3.0, "clip_fraction": 0.1, "tokens_per_second": 100.0, "other": 9.0}


def shown(terminal: bool) -> str:
    file = io.StringIO()
    display = CurvesDisplay(Console(file=file, force_terminal=terminal, width=120))
    with display.running(0, 2):
        display.step(1, VALUES)
        display.say("a line")
        display.step(2, {**VALUES, "reward": 0.75})
    return file.getvalue()


def test_a_table_with_curves():
    screen = shown(terminal=True).split("step 2/2")[-1]
    row = next(line for line in screen.splitlines() if "reward" in line)
    assert row.split()[:4] == ["reward", "0.250", "0.750", "▁█"]
    assert "nats of a response to the reference" in screen and "other" not in screen


@pytest.mark.parametrize("part", ["a line", "step 2/2  reward 0.75  KL 1.5  entropy 3  clipped 0.1"])
def test_plain_lines(part):
    assert part in shown(terminal=False)
