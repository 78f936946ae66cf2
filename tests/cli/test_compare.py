"""`stemma compare`: what its options come to."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stemma.cli import main
from stemma.errors import Diverged, InputError
from stemma.insights.comparison_report import command_of
from stemma.insights.plan import Plan


@pytest.fixture
def plan_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    """Return the plan that a command comes to; nothing is trained."""
    plans: list[Plan] = []

    def planned(plan: Plan, out: Path, **options: object) -> None:
        plans.append(plan)
        raise InputError("planned")

    monkeypatch.setattr("stemma.insights.compare.compare", planned)

    def call(command: str) -> Plan:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit):
            main()
        return plans.pop()

    return call


def test_the_command_in_the_report_makes_the_same_comparison(plan_of: Callable[[str], Plan]) -> None:
    for command in (
        "stemma compare",
        "stemma compare --text 'my texts/*.jsonl' --field body --documents line --frameworks gpt,glm --steps 7",
        "stemma compare --text my.txt --labels 'my labels.csv' --label-text 'the text' --label-column y --budget 30",
    ):
        plan = plan_of(command)
        assert plan_of(command_of(plan)) == plan
    assert plan.text == "my.txt" and plan.label_text == "the text"
    assert plan_of("stemma compare --frameworks gpt,gpt,glm").arms == ("gpt", "glm")
    other = replace(plan, text="$HOME; rm *")
    assert plan_of(command_of(other)) == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--text -", "--text -: every training reads the text by itself; expected a file, which they all can"),
        ("--frameworks gpt,brt", "--frameworks: no framework 'brt' (did you mean 'bert'?), expected some of gpt"),
    ],
)
def test_a_mistake_is_one_line(options: str, message: str, stemma: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = stemma("compare", *options.split())
    assert code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize("verb", [("compare",), ("reproduce", "glm-shuffling")])
@pytest.mark.parametrize("error", [Diverged("the loss is not finite"), ChildProcessError("a worker died")])
def test_a_run_that_breaks_is_one_line_and_exit_code_1(
    verb: tuple[str, ...],
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    stemma: Callable[..., tuple[int, str, str]],
) -> None:
    def breaks(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("stemma.insights.compare.compare", breaks)
    monkeypatch.setattr("stemma.insights.reproduce.reproduce", breaks)
    code, said, told = stemma(*verb)
    assert code == 1 and told.strip() == f"error: {error}" and "error" not in said
