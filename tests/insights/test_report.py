"""The page is whole, needs nothing else, hides no text's markup, and can be read back."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from stemma.errors import InputError
from stemma.evaluation.intervals import Interval
from stemma.insights.parts import Bars, Cell, Code, Curves, Paragraph, Report, Samples, Section, Series, Table, Verdict
from stemma.insights.report import read_report, render, rich_table, write_report

EVIL = "</script><b>bold & 'quoted'</b>"
TABLE = Table(
    ("framework", "accuracy"),
    (("GPT", Interval(0.83, 0.81, 0.85)), ("BERT", Cell(0.5, note="told the length", best=True))),
    notes=("chance 0.25",),
)
REPORT = Report(
    "compare",
    "What `stemma` found.",
    (
        Section("Results & more", (TABLE, Paragraph("One.\n\nTwo."))),
        Section(
            "Charts",
            (
                Curves((Series("GPT", (1, 2, 4), (3.0, 2.0, 1.5), (2.9, 1.9, 1.4), (3.1, 2.1, 1.6)),), log_x=True),
                Bars(("accuracy",), ("GPT", "BERT"), ((Interval(0.8, 0.7, 0.9), None),)),
            ),
        ),
        Section("Texts", (Samples((("one", "The [MASK] sat", (("GPT", EVIL),)),)), Code("stemma compare --x '<y>'"))),
        Section("Claim", (Verdict("it holds", "undecided", Interval(0.1, -0.1, 0.3)),)),
    ),
)
VOID = {"meta", "path", "use", "rect", "br"}


class Balance(HTMLParser):
    """Collects the text, and complains about tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(report: Report) -> Balance:
    page = Balance()
    page.feed(render(report))
    assert page.open == []
    return page


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = parsed(REPORT)
    assert all(link.startswith("#") for link in page.links)
    assert "0.830 ± 0.020" in page.text and "chance 0.25" in page.text and "1 told the length" in page.text


def test_what_a_model_writes_stays_text() -> None:
    page = render(REPORT)
    assert EVIL not in page
    assert EVIL in parsed(REPORT).text  # as text
    assert page.count("</script>") == 1


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render(REPORT) == render(REPORT)


def test_a_report_can_be_read_back(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "report.html")
    assert read_report(tmp_path / "report.html") == REPORT


def test_the_exact_interval_is_in_the_tooltip() -> None:
    assert 'title="0.83, 95 %: 0.81 to 0.85"' in render(REPORT)


@pytest.mark.parametrize("content", ["", "<html></html>", '<script type="application/json" id="report">{}</script>'])
def test_other_files_are_no_reports(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text(content)
    with pytest.raises(InputError, match="other.html"):
        read_report(tmp_path / "other.html")


def test_the_terminal_shows_the_notes_too() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rich_table(TABLE))
    shown = console.export_text()
    assert "0.83 ±0.02" in shown and "0.5¹" in shown and "1 told the length" in shown and "chance 0.25" in shown
