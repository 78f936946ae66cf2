"""What a report consists of: plain data that goes to JSON and comes back equal.

Sequences may be given as lists, tuples, arrays or tensors; they are kept as tuples.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from stemma.errors import InputError
from stemma.evaluation.intervals import Interval

VERSION = 1

Outcome = Literal["reproduced", "not reproduced", "undecided"]
OUTCOMES = ("reproduced", "not reproduced", "undecided")


@dataclass(frozen=True)
class _Plain:
    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))


@dataclass(frozen=True)
class Paragraph(_Plain):
    """Text: a blank line begins a new paragraph, `backticks` are code, everything else is shown as it is."""

    text: str


@dataclass(frozen=True)
class Cell(_Plain):
    """A table's value with a footnote to it, or the best of its kind (bold)."""

    value: str | float | Interval
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table(_Plain):
    """Rows of as many values as there are columns.

    notes: stand under the table, after the cells' own.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | Interval | Cell]]
    caption: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} values, expected {len(self.columns)}")


@dataclass(frozen=True)
class Series(_Plain):
    """A line of a chart, with a band from `low` to `high` if given.

    label: lines of one label (the seeds of a run) share an entry of the legend.
    group: lines of one group share a colour in all the report's charts; default: the label.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    group: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.low is None) != (self.high is None):
            raise ValueError(f"series {self.label!r}: low and high go together")
        if {len(one) for one in (self.y, self.low, self.high) if one is not None} != {len(self.x)}:
            raise ValueError(f"series {self.label!r}: expected as many y, low and high as x")


@dataclass(frozen=True)
class Curves(_Plain):
    """A chart of lines."""

    series: Sequence[Series]
    x_label: str = ""
    y_label: str = ""
    caption: str = ""
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Bars(_Plain):
    """A chart of groups of bars.

    labels: of the bars in every group; each has a colour, the same as the lines of this group or label.
    values: a row for each group, with a value for each label (None: no bar).
    """

    groups: Sequence[str]
    labels: Sequence[str]
    values: Sequence[Sequence[float | Interval | None]]
    caption: str = ""
    y_label: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if [len(row) for row in self.values] != [len(self.labels)] * len(self.groups):
            raise ValueError(f"expected a row of {len(self.labels)} values for each of {len(self.groups)} groups")


@dataclass(frozen=True)
class Samples(_Plain):
    """What each model writes in the same blanks.

    samples: (label, prompt, [(model, text), ...]). The text stands for the prompt's `blank`, or goes on after a prompt
        without one; a prompt with several blanks takes a sequence of texts, one for each.
    """

    samples: Sequence[tuple[str, str, Sequence[tuple[str, str | Sequence[str]]]]]
    caption: str = ""
    blank: str = "[MASK]"


@dataclass(frozen=True)
class Pictures(_Plain):
    """Rows of pictures.

    rows: (label, [(picture, what it is), ...]), the picture a PNG in base64, see `picture_of`.
    """

    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    caption: str = ""


@dataclass(frozen=True)
class Code(_Plain):
    """Text to copy: settings, or the command that makes it again."""

    text: str
    caption: str = ""


@dataclass(frozen=True)
class Verdict(_Plain):
    """Whether a published claim holds here, and the effect that says so."""

    claim: str
    outcome: Outcome
    effect: Interval | None = None
    text: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome {self.outcome!r}: expected one of {', '.join(OUTCOMES)}")


Part = Paragraph | Table | Curves | Bars | Samples | Pictures | Code | Verdict


@dataclass(frozen=True)
class Section(_Plain):
    """Parts under a heading."""

    title: str
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Report(_Plain):
    """A title, what the whole says in a few sentences, and the sections."""

    title: str
    lead: str = ""
    sections: Sequence[Section] = ()

    def with_section(self, section: Section) -> "Report":
        """Return the report with `section` in place of the one of its title, or after the last."""
        kept = list(self.sections)
        places = [place for place, old in enumerate(kept) if old.title == section.title]
        kept[slice(places[0], places[0] + 1) if places else slice(len(kept), None)] = [section]
        return replace(self, sections=kept)


_KINDS = {
    kind.__name__: kind
    for kind in (
        Report,
        Section,
        Paragraph,
        Table,
        Cell,
        Series,
        Curves,
        Bars,
        Samples,
        Pictures,
        Code,
        Verdict,
        Interval,
    )
}


def to_json(report: Report) -> str:
    """Return a report as JSON in ASCII; each object's "is" names its class."""
    return json.dumps({"stemma-report": VERSION, "report": report}, default=_fields)


def from_json(text: str) -> Report:
    """Return the report that `to_json` wrote.

    Raises:
        InputError: the text is something else, or of a later version.
    """
    try:
        found = json.loads(text, object_hook=_whole)
        version = found["stemma-report"]
        if version == VERSION and isinstance(found["report"], Report):
            return found["report"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"not a report that stemma wrote ({type(error).__name__}: {error})") from error
    raise InputError(f"not a report that this stemma reads: version {version!r}, expected {VERSION}")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _fields(part: Any) -> Any:
    if hasattr(part, "tolist"):  # an end of an Interval that is NumPy's
        return part.tolist()
    return {"is": type(part).__name__} | {field.name: getattr(part, field.name) for field in fields(part)}


def _whole(found: dict[str, Any]) -> Any:
    return _KINDS[found.pop("is")](**found) if "is" in found else found
