"""How a model's answers to a task depend on the solved examples in the prompt, as a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from stemma.evaluation.intervals import Interval
from stemma.insights.parts import Code, Curves, Paragraph, Part, Report, Section, Series, Table
from stemma.prompting.evaluating import Evaluated, Share

_WITHIN = 1.96  # standard errors of the mean


def report_of(model: str, by_shots: Mapping[int, Evaluated], command: str) -> Report:
    """Return the report on one model and task.

    Args:
        by_shots: what came out, by the number of solved examples that was asked for. command: that makes it again.
    """
    found = list(by_shots.values())
    names = list(found[0].metrics)
    costs = list(dict.fromkeys(name for one in found for name in one.costs if name != "shots"))
    rows: list[list[Any]] = [
        [str(shots), one.costs["shots"], *(_interval(one.metrics[name]) for name in names)]
        + [one.costs.get(name, 0.0) for name in costs]
        for shots, one in by_shots.items()
    ]
    heads = ["shots", "of these in the prompt", *names, *costs]
    note = (
        "Means over the questions; intervals: 1.96 standard errors. Examples that do not fit the context are left out."
    )
    parts: list[Part] = [
        Paragraph(f"{found[0].questions:,} questions to {model}."),
        Table(heads, rows, caption=found[0].task, notes=(note,)),
    ]
    if len(found) > 1:
        parts.append(_curves(by_shots, names))
    lead = "What a model does with a task that it is only told of in its prompt."
    return Report("evaluate", lead, [Section(found[0].task, parts), Section("To run it again", [Code(command)])])


def _curves(by_shots: Mapping[int, Evaluated], names: Sequence[str]) -> Curves:
    series = []
    for name in names:
        intervals = [_interval(one.metrics[name]) for one in by_shots.values()]
        low, high = [one.low for one in intervals], [one.high for one in intervals]
        series.append(Series(name, list(by_shots), [one.estimate for one in intervals], low, high))
    caption = "Metrics against the number of solved examples in the prompt."
    return Curves(series, "solved examples", "mean over the questions", caption)


def _interval(share: Share) -> Interval:
    return Interval(share.mean, share.mean - _WITHIN * share.error, share.mean + _WITHIN * share.error)
