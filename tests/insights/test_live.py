"""What is shown of a comparison: curves of characters, lines, and a table that follows the jobs."""

import io
import re
import time
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from stemma.insights import live as module
from stemma.insights.arms import ARMS, Scale
from stemma.insights.comparison_report import board_of
from stemma.insights.live import live, plain, sparkline
from stemma.insights.plan import Plan

PLAN = Plan("my.txt", "text", "file", None, "text", "label", ("gpt", "glm"), (1, 2), Scale(1, 32, 2, 300, 100, 2, 32))
MEASURES: dict[str, Any] = {"choice": 0.5, "blank_nll": 4.25, "bits_per_byte": 2.125}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([3.0], ""),
        ([2.0, 2.0, 2.0], "▁▁▁"),
        ([1.0, 2.0], "▁█"),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], "█▇▆▅▄▃▂▁"),
        ([-1.0, 0.0, -1.0], "▁█▁"),
    ],
)
def test_a_curve_of_characters(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_a_long_curve_is_thinned_out() -> None:
    falling = [1000.0 - step for step in range(1000)]
    assert sparkline(falling, 8) == "█▇▆▅▄▃▂▁"
    assert len(sparkline(falling)) == len(sparkline(falling[:24])) == 24
    assert len(sparkline(falling[:25])) == 24


def lines(monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> list[str]:
    """The lines that are printed without a terminal; each thing is told at its time in seconds."""
    console = Console(file=io.StringIO(), width=40, record=True)
    with plain(board_of(PLAN), console) as observer:
        for seconds, kind, *content in told:
            monkeypatch.setattr(module.time, "monotonic", lambda seconds=seconds: seconds)
            getattr(observer, kind)(*content)
            observer.tick()
    return console.export_text().splitlines()


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines(
        monkeypatch,
        [
            (
                100.0,
                "say",
                "text       my [bold] text: 3 documents, and much more than fits into a line of the console",
            ),
            (100.0, "event", ("gpt-1", "pretraining", 0, 1000, {})),
            (101.0, "event", ("gpt-1", "pretraining", 40, 1000, {"loss": 5.5})),  # too soon
            (101.0, "event", ("glm-1", "pretraining", 30, 1000, {"loss": 6.0})),
            (105.5, "event", ("gpt-1", "pretraining", 500, 1000, {"loss": 4.25})),
            (120.0, "event", ("gpt-1", "measuring", 0, 0, {})),
            (130.0, "event", ("gpt-1", "done", 1, 1, {})),
            (130.0, "measured", "gpt-1", {**MEASURES, "finetuned": {"test": 0.75}}),
            (131.0, "measured", "glm-1", MEASURES),
        ],
    )
    assert found == [
        "text       my [bold] text: 3 documents, and much more than fits into a line of the console",
        "gpt-1        pretraining 0/1,000",
        "glm-1        pretraining 30/1,000  loss 6.000",
        "gpt-1        pretraining 500/1,000  loss 4.250",
        "gpt-1        accuracy, fine-tuned 0.750  right piece of four 0.500  "
        "blanks: nats a token 4.250  bits per byte 2.125",
        "glm-1        right piece of four 0.500  blanks: nats a token 4.250  bits per byte 2.125",
    ]


def shown(plan: Plan, told: list[Any], width: int, height: int = 50) -> list[str]:
    """The lines of the table after all that was told, as they stand on a terminal."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, record=True
    )
    with live(board_of(plan), console) as observer:
        for kind, *content in told:
            getattr(observer, kind)(*content)
        observer.tick()
        console.export_text()  # what was drawn before; the last state is drawn at the end
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    (last,) = [number for number, line in enumerate(lines) if re.fullmatch(r"0:\d\d", line)][-1:]
    return lines[: last + 1]


TOLD: list[Any] = [
    ("say", "learning the tokenizer"),
    ("say", "text       my.txt: 3 documents"),
    *[("event", ("gpt-1", "pretraining", 20 * step, 1000, {"loss": 8.0 - step / 10})) for step in range(30)],
    ("measured", "glm-1", {**MEASURES, "finetuned": {"test": 0.75}}),
    ("event", ("glm-2", "fine-tuning from random weights", 5, 10, {"loss": 1.5})),
]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_before_during_and_after_jobs(width: int) -> None:
    found = shown(PLAN, TOLD, width)
    assert found[:2] == ["learning the tokenizer", "text       my.txt: 3 documents"]
    assert found[2].split() == ["framework", "seed", "loss", "curve", "class", "choice", "nats", "bits"]
    curve = sparkline([8.0 - step / 10 for step in range(30)], {80: 12}.get(width, 24))
    assert found[3].split() == ["GPT", "1", "pretraining", "58", "%", "5.100", curve]
    assert found[4].split() == ["GLM", "1", "done", "0.750", "0.500", "4.250", "2.125"]
    assert found[5].split() == ["GLM", "2", "from", "random", "50", "%", "1.500"]  # a later seed only when it has begun
    assert " ".join(found[6:]).startswith("class: accuracy after fine-tuning") and found[-1].startswith("0:0")
    assert max(map(len, found)) <= width and not any("…" in line for line in found)


def test_nothing_is_cut_off_for_the_longest_names() -> None:
    plan = replace(PLAN, arms=tuple(ARMS))
    told = [
        *[("event", (f"{arm}-{seed}", "pretraining", 1000, 1000, {"loss": 10.5})) for arm in ARMS for seed in (1, 2)],
        *[("measured", f"{arm}-1", {**MEASURES, "finetuned": {"test": 0.75}}) for arm in ARMS],
    ]
    found = shown(plan, told, 80)
    assert max(map(len, found)) <= 80 and not any("…" in line for line in found)
    for arm in ARMS:
        lines = [line.split()[1:] for line in found if line.split()[:1] == [arm]]
        assert lines == [
            ["1", "done", "10.500", "0.750", "0.500", "4.250", "2.125"],
            ["2", "pretraining", "100", "%", "10.500"],
        ]


def test_what_is_said_is_shown_at_once() -> None:
    """Before the jobs begin nothing ticks."""
    file = io.StringIO()
    with live(board_of(PLAN), Console(file=file, width=80, height=50, force_terminal=True)) as observer:
        observer.say("learning the tokenizer")
        end = time.monotonic() + 5
        while "learning" not in file.getvalue() and time.monotonic() < end:
            time.sleep(0.02)  # it is drawn four times a second
        assert "learning the tokenizer" in file.getvalue()


def test_a_low_terminal_hides_what_is_done_first() -> None:
    arms = tuple(ARMS)[:8]
    plan = replace(PLAN, arms=arms, seeds=(1, 2))
    told = [
        *[("measured", f"{arm}-1", {**MEASURES, "finetuned": {"test": 0.75}}) for arm in arms],
        *[("event", (f"{arm}-2", "pretraining", 1, 10, {"loss": 10.5})) for arm in arms],
    ]
    found = shown(plan, told, 80, height=20)
    rows = [line.split() for line in found if line.split()[:1] and line.split()[0] in arms]
    assert len(found) <= 20 and len(rows) == 12
    assert [row[0] for row in rows if row[1] == "2"] == list(arms)  # what runs is there
    assert any("and 4 more that are done" in line for line in found)
