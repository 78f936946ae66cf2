"""A report as one HTML file that needs nothing else: no network, no scripts; light and dark, on a phone and on paper.

The report itself is in the file as JSON, so that a later command can read it, add a section and write it again.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    Report,
    Samples,
    Section,
    Table,
    Verdict,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["Report", "Section", "read_report", "render", "rich_table", "write_report"]

_DATA = re.compile(r'<script type="application/json" id="report">(.*?)</script>', re.DOTALL)
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --page: #fff; --soft: #666; --line: #ddd; --mark: #fff3b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --page: #16181b; --soft: #9a9a9a; --line: #383b40; --mark: #5a4d00; }
}
body { color: var(--ink); background: var(--page); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
nav a { margin-right: 1rem; } a { color: inherit; }
figure { margin: 1.5rem 0; } figcaption, .notes { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: .3rem; font-size: .85rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.5 ui-monospace, monospace; }
mark { background: var(--mark); color: inherit; }
svg { max-width: 100%; height: auto; }
.verdict { border-left: .3rem solid var(--line); padding: .5rem 1rem; }
@media print { nav { display: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def write_report(report: Report, path: Path) -> None:
    """Write a report, whole or not at all."""
    page = render(report)
    with write_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def read_report(path: Path) -> Report:
    """Read what `write_report` wrote.

    Raises:
        InputError: the file is not there, or is something else.
    """
    try:
        found = _DATA.search(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a report ({error})") from error
    if found is None:
        raise InputError(f"{path}: no report of stemma in it")
    try:
        return from_json(found[1])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def render(report: Report) -> str:
    """Return the page; the same report gives the same bytes.

    Raises:
        InputError: it has charts, and matplotlib is not there.
    """
    charts = [part for section in report.sections for part in section.parts if isinstance(part, Curves | Bars)]
    places = group_places(charts)
    names = [_anchor(section.title, number) for number, section in enumerate(report.sections)]
    contents = "".join(
        f'<a href="#{name}">{escape(section.title)}</a>' for name, section in zip(names, report.sections, strict=True)
    )
    body = []
    for number, (name, section) in enumerate(zip(names, report.sections, strict=True)):
        parts = [_part(part, places, f"{number}-{place}") for place, part in enumerate(section.parts)]
        body.append(f'<section id="{name}"><h2>{escape(section.title)}</h2>{"".join(parts)}</section>')
    data = to_json(report).replace("<", "\\u003c")  # no tag can end the element
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head>\n<body>"
        f"<h1>{escape(report.title)}</h1>{_paragraphs(report.lead)}<nav>{contents}</nav>\n"
        + "\n".join(body)
        + f'\n<script type="application/json" id="report">{data}</script></body></html>\n'
    )


def rich_table(table: Table) -> "RichTable":
    """Return a table for the terminal, with its notes below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    notes = _Notes()
    rows = [[Text(*_rich_cell(value, notes)) for value in row] for row in table.rows]
    caption = "\n".join([*notes.lines(), *table.notes])
    shown = RichTable(
        title=table.caption or None,
        caption=caption or None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


class _Notes:
    """The notes of a table's cells, numbered in the order in which they come up."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, note: str) -> int:
        return self._numbers.setdefault(note, len(self._numbers) + 1)

    def lines(self) -> list[str]:
        return [f"{number} {note}" for note, number in self._numbers.items()]


def _part(part: Part, places: dict[str, int], prefix: str) -> str:
    if isinstance(part, Paragraph):
        return _paragraphs(part.text)
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Curves | Bars):
        return f"<figure>{draw(part, places, f'c{prefix}')}{_caption(part.caption)}</figure>"
    if isinstance(part, Samples):
        return _samples(part)
    if isinstance(part, Code):
        return f"<figure>{_caption(part.caption)}<pre><code>{escape(part.text)}</code></pre></figure>"
    return _verdict(part)


def _paragraphs(text: str) -> str:
    found = [escape(paragraph) for paragraph in re.split(r"\n\s*\n", text.strip()) if paragraph]
    marked = [re.sub(r"`([^`]+)`", r"<code>\g<1></code>", paragraph) for paragraph in found]
    return "".join(f"<p>{paragraph}</p>" for paragraph in marked)


def _caption(caption: str) -> str:
    return f"<figcaption>{escape(caption)}</figcaption>" if caption else ""


def _table(table: Table) -> str:
    notes = _Notes()
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(_cell(value, notes) for value in row)}</tr>" for row in table.rows)
    below = [*notes.lines(), *table.notes]
    lines = "".join(f"<div>{escape(line)}</div>" for line in below)
    return (
        f'<figure>{_caption(table.caption)}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div><div class="notes">{lines}</div></figure>'
    )


def _cell(value: Any, notes: _Notes) -> str:
    cell = value if isinstance(value, Cell) else Cell(value)
    text, tooltip = _shown(cell.value), ""
    if isinstance(cell.value, Interval):
        tooltip = f' title="{cell.value.estimate:.6g}, 95 %: {cell.value.low:.6g} to {cell.value.high:.6g}"'
    text = f"<b>{escape(text)}</b>" if cell.best else escape(text)
    mark = f"<sup>{notes.mark(cell.note)}</sup>" if cell.note else ""
    return f"<td{tooltip}>{text}{mark}</td>"


def _rich_cell(value: Any, notes: _Notes) -> tuple[str, str]:
    cell = value if isinstance(value, Cell) else Cell(value)
    mark = str(notes.mark(cell.note)).translate(_SUPERSCRIPTS) if cell.note else ""
    return _narrow(cell.value) + mark, "bold" if cell.best else ""


def _narrow(value: str | float | Interval) -> str:
    """Return what fits into a column of a terminal: two decimals, a third where the interval has it."""
    if not isinstance(value, Interval):
        return _shown(value)
    half = (value.high - value.low) / 2
    decimals = 2 if half >= 0.01 else 3
    return f"{value.estimate:.{decimals}f} ±{half:.{decimals}f}"  # a narrow terminal breaks it there


def _shown(value: str | float | Interval) -> str:
    if isinstance(value, Interval):
        half = (value.high - value.low) / 2
        return f"{value.estimate:.3f} ± {half:.3f}" if abs(value.estimate) < 1000 else f"{value.estimate:,.0f}"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else f"{value:.4g}"


def _samples(part: Samples) -> str:
    found = [_caption(part.caption)]
    for label, prompt, texts in part.samples:
        rows = "".join(
            f'<tr><td>{escape(model)}</td><td style="text-align:left;white-space:normal">'
            f'<span class="text">{_filled(prompt, text, part.blank)}</span></td></tr>'
            for model, text in texts
        )
        found.append(f"<h3>{escape(label)}</h3><table>{rows}</table>")
    return f"<figure>{''.join(found)}</figure>"


def _filled(prompt: str, text: str | Sequence[str], blank: str) -> str:
    """Return the prompt with what was written marked."""
    pieces = [text] if isinstance(text, str) else list(text)
    parts = prompt.split(blank)
    if len(parts) == 1:
        parts.append("")
    shown = [escape(parts[0])]
    for number, part in enumerate(parts[1:]):
        piece = pieces[number] if number < len(pieces) else ""
        shown.append(f"<mark>{escape(piece)}</mark>{escape(part)}")
    return "".join(shown)


def _verdict(part: Verdict) -> str:
    effect = "" if part.effect is None else f" Effect: {escape(str(part.effect))}."
    text = f" {escape(part.text)}" if part.text else ""
    return f'<p class="verdict"><b>{escape(part.outcome)}</b>: {escape(part.claim)}.{effect}{text}</p>'


def _anchor(title: str, number: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or f"section-{number + 1}"
