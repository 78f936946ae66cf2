"""Reports: one HTML file that needs nothing else, and that a later command reads, adds to and writes again.

    report = Report("Families", "What they cost.", [Section("Loss", [Table(["model", "loss"], [["GPT", 2.1]])])])
    write_report(report, path)
    write_report(read_report(path).with_section(Section("Speed")), path)

The page holds the report itself as JSON. It loads nothing and runs nothing, and forbids both by its own policy.
"""

import math
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from stemma.errors import InputError
from stemma.evaluation.intervals import Interval
from stemma.files import write_whole
from stemma.insights.charts import draw, group_places
from stemma.insights.parts import (
    Bars,
    Cell,
    Code,
    Curves,
    Paragraph,
    Part,
    Pictures,
    Report,
    Samples,
    Section,
    Series,
    Table,
    Verdict,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    import rich.table

__all__ = [
    "Bars",
    "Cell",
    "Code",
    "Curves",
    "Paragraph",
    "Pictures",
    "Report",
    "Samples",
    "Section",
    "Series",
    "Table",
    "Verdict",
    "from_json",
    "read_report",
    "render",
    "rich_table",
    "to_json",
    "write_report",
]

DATA_OPENS, DATA_ENDS = '<script type="application/json" id="stemma-report">', "</script>"
SYMBOLS = {"reproduced": "✓", "not reproduced": "✗", "undecided": "?"}

CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #5a6370; --line: #d3d9e0; --shade: #f3f5f8;
  --mark: #ffe9a8; --link: #0a58a6; --reproduced: #00704c; --not: #b03a0c; --undecided: #6b5b00; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #15181c; --ink: #e4e8ed; --faint: #9da7b3;
  --line: #3a424c; --shade: #1e2329; --mark: #5c4a00; --link: #7ab8f5; --reproduced: #4fc79b; --not: #f59a6b;
  --undecided: #d9c65a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 50rem; padding: 1rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; margin: 2.5rem 0 1rem; }
h1 { margin-top: 1rem; }
a { color: var(--link); }
h2 a, sup a { color: inherit; text-decoration: none; }
sup { line-height: 0; }
h2 a:hover::after { content: " #"; color: var(--faint); }
.lead { font-size: 1.15rem; }
nav { border-left: 3px solid var(--line); padding: .1rem 1rem; }
nav ul { list-style: none; margin: .3rem 0; padding: 0; }
figure { margin: 1.5rem 0; }
figcaption { color: var(--faint); font-size: .92rem; margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--faint); vertical-align: bottom; }
tbody th { font-weight: normal; }
.number { text-align: right; white-space: nowrap; }
td [title] { cursor: help; }
.notes { color: var(--faint); font-size: .88rem; margin: .2rem 0; }
svg { display: block; max-width: 100%; min-width: 26rem; height: auto; font-family: system-ui, sans-serif; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
code, pre { font: .9rem/1.45 ui-monospace, monospace; background: var(--shade); }
pre { margin: 0; padding: .7rem 1rem; border-radius: 4px; overflow-x: auto; }
pre code { user-select: all; -webkit-user-select: all; }
mark { background: var(--mark); color: inherit; border-radius: 2px; padding: 0 .1em; }
.text { white-space: pre-wrap; }
.sample { border-top: 1px solid var(--line); padding: .5rem 0; }
.sample p { margin: .3rem 0; }
dl { display: grid; grid-template-columns: minmax(4rem, max-content) 1fr; gap: .3rem 1rem; margin: .5rem 0; }
dt { color: var(--faint); }
dd { margin: 0; min-width: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; border-top: 1px solid var(--line); padding: .5rem 0; }
.pictures p { flex-basis: 100%; margin: 0; }
.pictures span { color: var(--faint); font-size: .8rem; line-height: 1.3; max-width: 7rem; }
.pictures img { width: 7rem; image-rendering: pixelated; }
.verdict { border: 1px solid var(--line); border-left: 5px solid var(--tone); border-radius: 4px; margin: 1.5rem 0;
  padding: .2rem 1rem; }
.verdict p { margin: .5rem 0; }
.outcome { color: var(--tone); font-weight: bold; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 10pt; }
  figure, .verdict, .sample, tr { break-inside: avoid; } h2 { break-after: avoid; }
  pre, .text { white-space: pre-wrap; } .scroll { overflow: visible; } svg { min-width: 0; }
  mark { print-color-adjust: exact; } }
"""


def render(report: Report) -> str:
    """Return a report as an HTML page, always the same one.

    Raises:
        InputError: it has a chart, and matplotlib is not there.
    """
    charts = [part for section in report.sections for part in section.parts if isinstance(part, Curves | Bars)]
    places = group_places(charts)
    anchors = _anchors([section.title for section in report.sections])
    links, body, number = [], [], 0
    for section, anchor in zip(report.sections, anchors, strict=True):
        links.append(f'<li><a href="#{anchor}">{escape(section.title)}</a></li>')
        body.append(f'<section>\n<h2 id="{anchor}"><a href="#{anchor}">{escape(section.title)}</a></h2>')
        for part in section.parts:
            number += 1
            body.append(_part(part, f"part.{number}", lambda chart, name: draw(chart, places, name)))
        body.append("</section>")
    contents = "\n".join(['<nav aria-label="Contents">', "<ul>", *links, "</ul>", "</nav>", ""]) if links else ""
    main = "\n".join(body)
    data = to_json(report).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(report.title)}</title>
<style>{CSS}</style>
</head>
<body>
<header>
<h1>{escape(report.title)}</h1>
{_paragraphs(report.lead, ' class="lead"')}
</header>
{contents}<main>
{main}
</main>
{DATA_OPENS}{data}{DATA_ENDS}
</body>
</html>
"""


def write_report(report: Report, path: Path) -> None:
    """Write a report as one HTML file, in place of an older one.

    Raises:
        InputError: see `render`.
    """
    # A lone surrogate, which half a character of a model's text may leave, has no UTF-8.
    page = render(report).encode("utf-8", "xmlcharrefreplace")
    with write_whole(path) as temporary:
        temporary.write_bytes(page)


def read_report(path: Path) -> Report:
    """Return the report in a file of `write_report`.

    Raises:
        InputError: there is no file, or it is not one of these.
    """
    try:
        page = Path(path).read_text("utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a report that stemma wrote (not UTF-8 at byte {error.start})") from error
    # All else on the page is escaped, so that the first one is ours.
    _, opens, rest = page.partition(DATA_OPENS)
    data, ends, _ = rest.partition(DATA_ENDS)
    if not (opens and ends):
        raise InputError(f"{path}: not a report that stemma wrote (no data in it)")
    try:
        return from_json(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def rich_table(table: Table) -> "rich.table.Table":
    """Return a table for the terminal, with its footnotes under it."""
    from rich.table import Table as Drawn
    from rich.text import Text

    marks = _marks(table)
    lines = [*(f"({mark}) {note}" for note, mark in marks.items()), *table.notes]
    drawn = Drawn(
        title=Text(table.caption) if table.caption else None,
        title_justify="left",
        caption=Text("\n".join(lines)) if lines else None,
        caption_justify="left",
    )
    for name, numeric in zip(table.columns, _numeric(table), strict=True):
        drawn.add_column(Text(name), justify="right" if numeric else "left")
    for row in table.rows:
        shown = []
        for cell in map(_cell, row):
            text = Text(_value(cell.value), style="bold" if cell.best else "")
            shown.append(text.append(f" ({marks[cell.note]})", style="not bold") if cell.note else text)
        drawn.add_row(*shown)
    return drawn


def _anchors(titles: Sequence[str]) -> list[str]:
    """Return an id for each title, none twice; without a dot, which those of parts have, nor the data's."""
    found: list[str] = []
    for title in titles:
        stem = re.sub(r"[\W_]+", "-", title.lower()).strip("-") or "section"
        anchor, count = stem, 1
        while anchor in (*found, "stemma-report"):
            count += 1
            anchor = f"{stem}-{count}"
        found.append(anchor)
    return found


def _part(part: Part, name: str, drawn: Callable[[Curves | Bars, str], str]) -> str:
    match part:
        case Paragraph():
            return _paragraphs(part.text)
        case Table():
            return _table(part, name)
        case Curves() | Bars():
            return _figure(name, _scrolled(part.caption, drawn(part, name)), part.caption)
        case Samples():
            return _figure(name, "\n".join(_sample(*sample, part.blank) for sample in part.samples), part.caption)
        case Pictures():
            return _figure(name, "\n".join(_pictures(*row) for row in part.rows), part.caption)
        case Code():
            return _figure(name, f"<pre><code>{escape(part.text)}</code></pre>", part.caption)
        case Verdict():
            return _verdict(part, name)


def _figure(name: str, content: str, caption: str) -> str:
    below = f"\n<figcaption>{_inline(caption)}</figcaption>" if caption else ""
    return f'<figure id="{name}">\n{content}{below}\n</figure>'


def _scrolled(label: str, content: str) -> str:
    # With a tab stop, so that the keyboard scrolls it too.
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">\n{content}\n</div>'


def _paragraphs(text: str, attributes: str = "") -> str:
    blocks = [block for block in re.split(r"\n\s*\n", text.strip()) if block]
    return "\n".join(f"<p{attributes}>{_inline(block)}</p>" for block in blocks)


def _inline(text: str) -> str:
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text))


def _table(table: Table, name: str) -> str:
    marks, numeric = _marks(table), _numeric(table)
    head = "".join(
        f'<th scope="col"{_aligned(right)}>{escape(column)}</th>'
        for column, right in zip(table.columns, numeric, strict=True)
    )
    rows = []
    for row in table.rows:
        shown = []
        for place, cell in enumerate(map(_cell, row)):
            text = escape(_value(cell.value))
            if isinstance(cell.value, Interval):
                text = f'<span title="{escape(_exact(cell.value))}">{text}</span>'
            if cell.best:
                text = f"<strong>{text}</strong>"
            if cell.note:
                mark = marks[cell.note]
                text += f'<sup><a href="#{name}.{mark}" title="{escape(cell.note)}">{mark}</a></sup>'
            heads = place == 0 and isinstance(cell.value, str)
            opening, closing = ('th scope="row"', "th") if heads else ("td", "td")
            shown.append(f"<{opening}{_aligned(not isinstance(cell.value, str))}>{text}</{closing}>")
        rows.append(f"<tr>{''.join(shown)}</tr>")
    content = (
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "".join(f"{row}\n" for row in rows)
        + "</tbody>\n</table>"
    )
    above = f"<figcaption>{_inline(table.caption)}</figcaption>\n" if table.caption else ""
    notes = [
        f'\n<p class="notes" id="{name}.{mark}"><sup>{mark}</sup> {_inline(note)}</p>' for note, mark in marks.items()
    ]
    notes += [f'\n<p class="notes">{_inline(note)}</p>' for note in table.notes]
    return f'<figure id="{name}">\n{above}{_scrolled(table.caption or "Table", content)}{"".join(notes)}\n</figure>'


def _aligned(right: bool) -> str:
    return ' class="number"' if right else ""


def _cell(value: str | float | Interval | Cell) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _numeric(table: Table) -> list[bool]:
    """Return whether each column has a number."""
    values = [[_cell(one).value for one in row] for row in table.rows]
    return [any(not isinstance(row[place], str) for row in values) for place in range(len(table.columns))]


def _marks(table: Table) -> dict[str, str]:
    """Return the letter of each footnote, in the order in which they come up; the same note has the same letter."""
    notes = dict.fromkeys(cell.note for row in table.rows for cell in map(_cell, row) if cell.note)
    return {note: _letters(number) for number, note in enumerate(notes)}


def _letters(number: int) -> str:
    more, last = divmod(number, 26)
    return (_letters(more - 1) if more else "") + chr(ord("a") + last)


def _value(value: str | float | Interval) -> str:
    match value:
        case str():
            return value
        case Interval():
            return _plus_minus(value)
        case int():
            return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _plus_minus(interval: Interval) -> str:
    """Return the estimate with the wider side of its interval, to the digits that this warrants."""
    half = max(interval.high - interval.estimate, interval.estimate - interval.low)
    if not (math.isfinite(half) and half > 0):
        return f"{_value(float(interval.estimate))} ± {_value(float(half))}"
    exponent = math.floor(math.log10(half))
    if exponent < -6:
        return f"{interval.estimate:.4g} ± {half:.2g}"
    digits = max(0, (half / 10**exponent < 1.95) - exponent)  # one of the interval's, or two if it begins with 1
    return f"{interval.estimate:,.{digits}f} ± {half:,.{digits}f}"


def _exact(interval: Interval) -> str:
    return f"{interval.estimate:.6g} [{interval.low:.6g}, {interval.high:.6g}]"


def _sample(label: str, prompt: str, filled: Sequence[tuple[str, str | Sequence[str]]], blank: str) -> str:
    parts = prompt.split(blank)
    shown = "<mark>▁▁▁</mark>".join(map(escape, parts))
    rows = [f'<dt>{escape(model)}</dt><dd class="text">{_filled(parts, text)}</dd>\n' for model, text in filled]
    return (
        f'<div class="sample">\n<p><strong>{escape(label)}</strong></p>\n<p class="text">{shown}</p>\n'
        f"<dl>\n{''.join(rows)}</dl>\n</div>"
    )


def _pictures(label: str, row: Sequence[tuple[str, str]]) -> str:
    shown = [
        f'<span><img src="data:image/png;base64,{escape(picture)}" alt="{escape(f"{label}: {what}")}">'
        f"<br>{escape(what)}</span>"
        for picture, what in row
    ]
    return f'<div class="pictures">\n<p>{escape(label)}</p>\n{"".join(shown)}\n</div>'


def _filled(parts: Sequence[str], text: str | Sequence[str]) -> str:
    texts = [text] if isinstance(text, str) else list(text)
    shown = []
    # What has no blank goes on after the prompt, and a blank without a text stays empty.
    for place in range(max(len(parts), len(texts) + (len(parts) > 1))):
        shown.append(escape(parts[place]) if place < len(parts) else "")
        if place < len(texts):
            shown.append(f"<mark>{escape(texts[place])}</mark>")
    return "".join(shown)


def _verdict(verdict: Verdict, name: str) -> str:
    effect = ""
    if verdict.effect is not None:
        shown = escape(_plus_minus(verdict.effect))
        effect = f'<p>Effect: <span title="{escape(_exact(verdict.effect))}">{shown}</span></p>\n'
    return (
        f'<div class="verdict" id="{name}" style="--tone: var(--{verdict.outcome.split()[0]})">\n'
        f'<p class="outcome">{SYMBOLS[verdict.outcome]} {verdict.outcome}</p>\n'
        f"<p>{_inline(verdict.claim)}</p>\n{effect}{_paragraphs(verdict.text)}\n</div>"
    )
