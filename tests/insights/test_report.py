"""Reports: pages that stand alone, come back equal, and show what they were given."""

import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from stemma.errors import InputError
from stemma.evaluation.intervals import Interval
from stemma.insights.charts import COLOURS
from stemma.insights.report import (
    Bars,
    Cell,
    Code,
    Curves,
    Paragraph,
    Report,
    Samples,
    Section,
    Series,
    Table,
    Verdict,
    from_json,
    read_report,
    render,
    rich_table,
    to_json,
    write_report,
)

NASTY = 'a</script><script>alert(\'1 & 2\')</script><b "x"> &amp; \x00\u2028 中文 \ud83d #010203 id="y" $x_1$'
VOID = {"meta", "br", "hr", "img", "input", "link"}

TABLE = Table(
    ["model", "bits per byte", "accuracy", "parameters"],
    [
        ["GPT", 2.25, Cell(Interval(0.8312, 0.8101, 0.8498), best=True), 1_048_576],
        [NASTY, Cell(2.5, note="not by design"), Interval(0.5, 0.5, 0.5), Cell(12.0, note="not by design")],
        ["T5", Cell("none", note=f"no such thing: {NASTY}"), float("inf"), -3],
    ],
    caption="What came out",
    notes=["Three seeds."],
)
CURVES = Curves(
    [
        Series("GPT", [1, 10, 100, 1000], [5.0, 4.0, 3.0, 2.5], low=[4, 3, 2, 2], high=[6, 5, 4, 3]),
        Series("T5, seed 1", [1, 10, 100], [5.5, 4.5, 3.5], group="T5"),
        Series(NASTY, [1, 10], [4.0, 3.0]),
    ],
    "tokens",
    "loss",
    f"Loss {NASTY}",
    log_x=True,
)
BARS = Bars(["cola", "a task of a long name"], ["T5", "GPT"], [[0.5, Interval(0.6, 0.5, 0.65)], [None, -0.25]], "Tasks")
REPORT = Report(
    f"Families {NASTY}",
    f"One paragraph.\n\nAnother with `code` & {NASTY}",
    [
        Section("Results", [Paragraph("Text."), TABLE, CURVES, BARS]),
        Section("Results", [Code("data:\n  source: a <b> & c\n", "Settings"), Paragraph(NASTY)]),
        Section(NASTY, [Samples([("short", "The [MASK] sat.", [("GPT", NASTY), ("T5", "old cat")])], "Blanks")]),
        Section("Claims", [Verdict("A beats B", "undecided", Interval(0.1, -0.1, 0.3), f"Why: {NASTY}")]),
    ],
)


class Page(HTMLParser):
    """The elements and text of a page; fails on a tag that is not closed, or closed twice."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def words(self, tag: str) -> list[str]:
        return [text for where, text in self.text if where == tag]


def render_one(*parts) -> str:
    return render(Report("One", sections=[Section("Only", parts)]))


def test_page_is_well_formed_and_escaped() -> None:
    page = Page(render(REPORT))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and tags.count("b") == 0
    assert NASTY in page.words("mark") and NASTY in page.words("p")
    assert any(label.startswith("a</script>") and '#010203 id="y" $x_1$' in label for label in page.words("text"))
    assert page.words("code")[-1] == "data:\n  source: a <b> & c\n"
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    targets = [value for _, attributes in page.elements for key, value in attributes.items() if key.endswith("href")]
    assert {target[1:] for target in targets} <= set(names)
    assert {"#results", "#results-2", "#claims"} <= set(targets)


def test_page_loads_nothing() -> None:
    harmless = REPORT.with_section(Section("Links", [Paragraph("see example.org")]))
    page = re.sub(r'xmlns(:\w+)?="[^"]*"', "", render(harmless))
    assert "http:" not in page and "https:" not in page and "@import" not in page and "src=" not in page
    assert set(re.findall(r"url\((.)", page)) == {"#"}
    assert "default-src 'none'" in page


def test_a_report_comes_back_equal_and_is_the_same_bytes(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "report.html")
    assert read_report(tmp_path / "report.html") == REPORT
    assert from_json(to_json(REPORT)) == REPORT
    first = (tmp_path / "report.html").read_bytes()
    write_report(read_report(tmp_path / "report.html"), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == first


def test_a_section_is_added_or_replaced() -> None:
    report = Report("Title", sections=[Section("A"), Section("B")])
    changed = Section("A", [Paragraph("new")])
    assert report.with_section(changed).sections == (changed, Section("B"))
    assert report.with_section(Section("C")).sections == (Section("A"), Section("B"), Section("C"))


@pytest.mark.parametrize(
    "content",
    ["", "<html></html>", '{"stemma-report": 1}', "[1]", "{", '{"stemma-report": 1, "report": {"is": "Cell"}}'],
)
def test_what_is_not_a_report(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.html"
    path.write_text(f'<script type="application/json" id="stemma-report">{content}</script>' if content else content)
    with pytest.raises(InputError, match="other.html: not a report"):
        read_report(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.html: No such file"):
        read_report(tmp_path / "none.html")
    (tmp_path / "bytes.html").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8 at byte 0"):
        read_report(tmp_path / "bytes.html")
    with pytest.raises(InputError, match="version 2, expected 1"):
        from_json(to_json(REPORT).replace('"stemma-report": 1', '"stemma-report": 2'))


def test_table_shows_intervals_and_footnotes() -> None:
    page = render_one(TABLE)
    assert '<strong><span title="0.8312 [0.8101, 0.8498]">0.83 ± 0.02</span></strong>' in page
    assert page.count('<a href="#part.1.a"') == 2 and page.count('<a href="#part.1.b"') == 1
    assert '<p class="notes" id="part.1.a"><sup>a</sup> not by design</p>' in page
    assert '<p class="notes">Three seeds.</p>' in page
    assert '<td class="number">1,048,576</td>' in page
    assert '<th scope="col">model</th><th scope="col" class="number">bits per byte</th>' in page


@pytest.mark.parametrize(
    "interval, shown",
    [
        ((0.8312, 0.81, 0.85), "0.83 ± 0.02"),
        ((0.8312, 0.82, 0.84), "0.831 ± 0.011"),
        ((0.0, 0.0, 0.3), "0.0 ± 0.3"),  # the wider side
        ((12345.6, 12000, 12700), "12,346 ± 354"),
        ((2e-9, 1e-9, 3e-9), "2e-09 ± 1e-09"),
        ((1.5, 1.5, 1.5), "1.5 ± 0"),
        ((1.5, float("-inf"), float("inf")), "1.5 ± inf"),
    ],
)
def test_interval_has_the_digits_that_it_warrants(interval: tuple[float, float, float], shown: str) -> None:
    assert f">{shown}</span>" in render_one(Table(["x"], [[Interval(*interval)]]))


def test_terminal_table_has_its_footnotes() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(rich_table(Table(["[b]model", "x"], [["[red]", Cell(0.5, "why", best=True)]], "Title", ["All."])))
    shown = console.export_text()
    assert "[b]model" in shown and "[red]" in shown and "0.5 (a)" in shown
    assert "(a) why" in shown and "All." in shown and "Title" in shown


def test_curves_have_their_points() -> None:
    page = render_one(CURVES)
    for number, series in enumerate(CURVES.series):
        drawn = re.search(rf'<g id="part.1.series-{number}">(.*?)</g>', page, re.DOTALL)[1]
        path = re.findall(r"[ML] ([\d.]+) ([\d.]+)", re.search(r'd="(M[^"]*)"', drawn)[1])
        assert len(path) == len(series.x) == drawn.count("<use ")
        x, y = np.array(path, float).T
        # Up the page is towards zero, and the axis of x is logarithmic.
        assert np.corrcoef(y, series.y)[0, 1] == pytest.approx(-1, abs=1e-6)
        assert np.corrcoef(x, np.log(series.x))[0, 1] == pytest.approx(1, abs=1e-6)


def test_bars_have_their_heights() -> None:
    page = render_one(BARS)
    heights = {}
    for name in ("bar-0-0", "bar-1-0", "bar-1-1"):
        drawn = re.search(rf'<g id="part.1.{name}">(.*?)</g>', page, re.DOTALL)[1]
        ends = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", drawn)]
        heights[name] = max(ends) - min(ends)
    assert "bar-0-1" not in page
    assert heights["bar-1-0"] / heights["bar-0-0"] == pytest.approx(1.2, abs=1e-5)
    assert heights["bar-1-1"] / heights["bar-0-0"] == pytest.approx(0.5, abs=1e-5)


def test_a_group_has_one_colour_in_all_charts_and_text_the_pages() -> None:
    page = render_one(CURVES, BARS)
    gpt, t5 = COLOURS[0].lower(), COLOURS[1].lower()
    for name, colour in (("1.series-0", gpt), ("1.series-1", t5), ("2.bar-0-0", t5), ("2.bar-1-0", gpt)):
        assert colour in re.search(rf'<g id="part.{name}">(.*?)</g>', page, re.DOTALL)[1].lower()
    assert "fill: currentColor" in page and "DejaVu" not in page and "#010203 id=" in page


def test_seeds_share_an_entry_of_the_legend() -> None:
    seeds = [Series("GPT", [1, 2], [seed, 1]) for seed in (1, 2, 3)]
    page = Page(render_one(Curves([*seeds, Series("_T5", [1, 2], [0, 1])])))
    assert page.words("text").count("GPT") == 1 and " _T5" in page.words("text")


def test_arrays_and_many_points_are_fine() -> None:
    steps = np.arange(1, 200, dtype=np.float32)
    report = Report("Many", sections=[Section("S", [Curves([Series("a", steps, 1 / steps)], log_x=True, log_y=True)])])
    assert from_json(to_json(report)) == report
    assert "<use " not in re.search(r"series-0.*?</g>", render(report), re.DOTALL)[0]


def test_samples_highlight_what_is_filled() -> None:
    two = ("two", "A [MASK] and [MASK].", [("GLM", ["cat", "<dog>"]), ("BERT", "cat")])
    page = render_one(Samples([two, ("on", "Once", [("GPT", " upon")])]))
    assert "A <mark>cat</mark> and <mark>&lt;dog&gt;</mark>." in page
    assert "A <mark>cat</mark> and ." in page
    assert "Once<mark> upon</mark>" in page


def test_verdict_shows_its_effect() -> None:
    page = render_one(Verdict("A beats B", "not reproduced", Interval(0.1, -0.1, 0.3)), Verdict("C", "undecided"))
    assert "✗ not reproduced" in page and '<span title="0.1 [-0.1, 0.3]">0.1 ± 0.2</span>' in page
    assert page.count("Effect:") == 1
    with pytest.raises(ValueError, match="expected one of reproduced"):
        Verdict("A", "maybe")


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="row 2 has 1 values, expected 2"):
        Table(["a", "b"], [[1, 2], [1]])
    with pytest.raises(ValueError, match="as many"):
        Series("a", [1, 2], [1])
    with pytest.raises(ValueError, match="go together"):
        Series("a", [1], [1], low=[0])
    with pytest.raises(ValueError, match="row of 1 values for each of 2 groups"):
        Bars(["a", "b"], ["x"], [[1]])


def test_only_charts_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "2.25" in render_one(TABLE)
    with pytest.raises(InputError, match=r'needs matplotlib: pip install "stemma-lm\[report\]"'):
        render_one(CURVES)


def test_bars_beyond_the_colours_are_hatched() -> None:
    labels = [f"m{number}" for number in range(len(COLOURS) + 1)]
    page = render_one(Bars(["task"], labels, [[1.0] * len(labels)]))
    last = re.search(rf'<g id="part.1.bar-{len(COLOURS)}-0">(.*?)</g>', page, re.DOTALL)[1]
    pattern = re.search(r"url\(#(.*?)\)", re.search(r"fill: .*", last)[0])[1]
    assert f'<pattern id="{pattern}"' in page and page.count("<pattern ") == 1


def test_bars_that_are_not_there_are_said_in_their_colour() -> None:
    page = render_one(Bars(["task"], ["GPT", "BERT", "T5"], [[1.0, None, 2.0]]))
    assert "bar-1-" not in page and "BERT: none" in Page(page).words("text")
    legend = re.search(r'<g id="part.1.legend_1">(.*)', page, re.DOTALL)[1].lower()
    places = [legend.index(colour.lower()) for colour in COLOURS[:3]]
    assert places == sorted(places)


def test_the_lines_of_a_legend_are_of_the_same_length() -> None:
    labels = ["GPT", "BERT", "T5", "T5 twice", "GLM", "UniLM"]
    page = render_one(Bars(["task"], labels, [[1.0] * 6]))
    lines = [re.search(rf'y="([\d.]+)"[^>]*>{name}</text>', page)[1] for name in labels]
    assert len(set(lines[::2])) == len(set(lines[1::2])) == 1 and lines[0] != lines[1]
