"""Charts as SVG that stands inside a page, follows its text colour, and is the same bytes every time."""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from stemma.errors import InputError
from stemma.evaluation.intervals import Interval
from stemma.insights.parts import Bars, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color Universal Design", without black and yellow, which vanish on a dark or a light page.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
# Colour never stands alone: the further lines of a group, and groups beyond the colours, differ in these too.
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx")

INK = "#010203"  # stands for the page's text colour until the SVG is written
SIZE = (5.6, 3.5)  # inches: small, so that the text is still readable when a phone shrinks it
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.size": 10,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "stemma",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(chart: Curves | Bars, places: Mapping[str, int], prefix: str) -> str:
    """Return a chart as an <svg> element.

    Args:
        places: the number of each group, which chooses its colour, see `group_places`.
        prefix: of the element's ids, so that they differ from those of other charts on the page.

    Raises:
        InputError: matplotlib is not there.
    """
    with _figure() as (figure, axes):
        if isinstance(chart, Curves):
            _draw_curves(axes, chart, places)
        else:
            _draw_bars(axes, chart, places)
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1:
            most = max(1, min(len(labels), 64 // (max(map(len, labels)) + 6)))
            lines = math.ceil(len(labels) / most)
            columns = math.ceil(len(labels) / lines)  # lines of the same length
            figure.legend(handles, labels, loc="outside upper left", ncols=columns, borderaxespad=0.2)
        return _embedded(figure, prefix, chart.caption)


def group_places(charts: list[Curves | Bars]) -> dict[str, int]:
    """Return the number of each group of the charts, in the order in which they come up."""
    groups: dict[str, int] = {}
    for chart in charts:
        names = [one.group or one.label for one in chart.series] if isinstance(chart, Curves) else chart.labels
        for name in names:
            groups.setdefault(name, len(groups))
    return groups


@contextmanager
def _figure() -> Iterator[tuple["Figure", "Axes"]]:
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError('a report with charts needs matplotlib: pip install "stemma-lm[report]"') from None
    with style.context(["default", STYLE]), warnings.catch_warnings():
        # The text is left to the reader's fonts, so that it does not matter what matplotlib's own lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(SIZE, layout="constrained")
        yield figure, figure.add_subplot()


def _draw_curves(axes: "Axes", chart: Curves, places: Mapping[str, int]) -> None:
    labels: dict[str, list[str]] = {}  # of each group
    for number, one in enumerate(chart.series):
        group = one.group or one.label
        place, known = places[group], labels.setdefault(group, [])
        first = one.label not in known
        if first:
            known.append(one.label)
        variant = known.index(one.label)
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(
            one.x,
            one.y,
            color=colour,
            linestyle=DASHES[(place // len(COLOURS) + variant) % len(DASHES)],
            marker=MARKERS[(place + variant) % len(MARKERS)] if len(one.x) <= 30 else "",
            label=_shown(one.label) if first else "",
            gid=f"series-{number}",
        )
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
    if chart.log_x:
        axes.set_xscale("log", nonpositive="mask")
    if chart.log_y:
        axes.set_yscale("log", nonpositive="mask")
    _mark(axes.xaxis, chart.x_label, chart.log_x)
    _mark(axes.yaxis, chart.y_label, chart.log_y)


def _draw_bars(axes: "Axes", chart: Bars, places: Mapping[str, int]) -> None:
    width = 0.8 / max(1, len(chart.labels))
    for number, label in enumerate(chart.labels):
        place = places[label]
        offset = (number + 0.5) * width - 0.4
        column = [(group + offset, row[number]) for group, row in enumerate(chart.values)]
        shown = [(x, _interval(value)) for x, value in column if value is not None]
        drawn = shown or [(0.0, _interval(0.0))]  # nothing to be seen, but the legend takes its colour from it
        bars = axes.bar(
            [x for x, _ in drawn],
            [one.estimate for _, one in drawn],
            width * 0.92,
            color=COLOURS[place % len(COLOURS)],
            edgecolor=INK,
            linewidth=0,
            hatch=HATCHES[place // len(COLOURS) % len(HATCHES)],
            label=_shown(label) if shown else f"{_shown(label)}: none",
        )
        for group, bar in enumerate(bars if shown else ()):
            bar.set_gid(f"bar-{number}-{group}")
        sure = [(x, one) for x, one in shown if one.low < one.high]
        ends = [
            [max(0.0, one.estimate - one.low) for _, one in sure],
            [max(0.0, one.high - one.estimate) for _, one in sure],
        ]
        if sure:
            middles = [one.estimate for _, one in sure]
            axes.errorbar([x for x, _ in sure], middles, ends, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    room = max(6, 72 // max(1, len(chart.groups)))
    axes.set_xticks(range(len(chart.groups)), [textwrap.fill(_shown(group), room) for group in chart.groups])
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    _mark(axes.yaxis, chart.y_label, log=False)


def _interval(value: float | Interval) -> Interval:
    return value if isinstance(value, Interval) else Interval(value, value, value)


def _shown(label: str) -> str:
    """Return a label as matplotlib takes it: without half characters, and not hidden from the legend for its `_`."""
    label = "".join(letter if letter.isprintable() else " " for letter in label)
    return f" {label}" if label.startswith("_") else label


def _mark(axis: "Axis", label: str, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_label_text(_shown(label))
    if log:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, _: Any) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _embedded(figure: "Figure", prefix: str, caption: str) -> str:
    """Return the figure's <svg> alone, named, with its own ids, in the page's font and text colour."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<style\b.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page, which has the same
    svg = re.sub(r"<[^>]*>", _tag(prefix), svg)  # in tags alone: a label may hold any of it
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)


def _tag(prefix: str) -> Callable[[re.Match[str]], str]:
    def change(match: re.Match[str]) -> str:
        tag = match[0].replace(INK, "currentColor")
        tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}.", tag)

    return change
