"""What a person sees: plain lines where there is no terminal, a bar where there is one."""

import io

import pytest
from rich.console import Console

from stemma.training import progress
from stemma.training.progress import ConsoleDisplay, describe, duration, quantity

VALUES = {
    "loss": 3.14159,
    "bits_per_byte": 2.0,
    "tokens_per_second": 12_345.0,
    "utilisation": 0.424,
    "learning_rate": 3e-4,
}


def test_numbers_in_words():
    assert describe(VALUES) == "loss 3.1416  held-out 2.000 bits/byte  12.3k tokens/s  MFU 42 %  lr 3.00e-04"
    assert describe({"loss": 1.0}) == "loss 1.0000"
    assert [quantity(number) for number in (950, 12_345, 2_615_424, 300e9, 1.5e15)] == [
        "950",
        "12.3k",
        "2.62M",
        "300G",
        "1,500T",
    ]
    assert [duration(seconds) for seconds in (7, 750, 11_110)] == ["0:07", "12:30", "3:05:10"]


def test_without_a_terminal_there_is_a_line_every_few_seconds(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    display = ConsoleDisplay(Console(file=out, width=40))
    with display.running(100, 300):
        for step in range(101, 120):
            clock[0] += 1.0
            display.step(step, VALUES)
        display.say("held-out loss 1.0 and a long line [that] is neither wrapped nor read as markup")
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == ["step 105/300", "step 110/300", "step 115/300"]
    assert lines[0].endswith("3:15 left")  # 195 updates at one a second
    assert lines[-1].endswith("[that] is neither wrapped nor read as markup")


@pytest.mark.parametrize("width", [60, 200])
def test_on_a_terminal_a_bar_and_below_it_the_numbers(width):
    out = io.StringIO()
    display = ConsoleDisplay(Console(file=out, width=width, force_terminal=True))
    with display.running(100, 300):
        display.step(150, VALUES)
        display.say("above the bar")
    shown = out.getvalue()
    assert "150/300" in shown and "50%" in shown and "loss 3.1416" in shown and "above the bar" in shown


def test_preparation_names_its_stages():
    out = io.StringIO()
    with ConsoleDisplay(Console(file=out)).preparing() as report:
        report("hashing", 10, 100)
        report("hashing", 20, 100)
        report("tokenising", 0, 0)
    assert out.getvalue().splitlines() == ["hashing ...", "tokenising ..."]
    terminal = io.StringIO()
    with ConsoleDisplay(Console(file=terminal, force_terminal=True, width=80)).preparing() as report:
        report("hashing", 50, 100)
    assert "hashing" in terminal.getvalue() and "50%" in terminal.getvalue()
