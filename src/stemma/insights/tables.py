"""The measures of arms over their seeds as rows of a table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stemma.evaluation.intervals import Interval, over_seeds
from stemma.insights.experiments import Column
from stemma.insights.parts import Cell


def rows_of(
    results: Mapping[str, Any],
    columns: Sequence[Column],
    *,
    note: Callable[[str, str], str] = lambda arm, title: "",
    running: Callable[[str, str], bool] = lambda arm, title: True,
) -> list[tuple[str | Cell, ...]]:
    """Return a row for each measure that any arm has: its title, and for each arm the mean with its interval; the best
    one is marked.

    Args:
        note: a footnote to the cell of an arm and title. running: whether that cell may be the best.
    """
    arms = results["plan"]["arms"]
    rows: list[tuple[str | Cell, ...]] = []
    for column in columns:
        found = {arm: average(results, arm, column) for arm in arms}
        if all(value is None for value in found.values()):
            continue
        candidates = {a: _estimate(v) for a, v in found.items() if v is not None and running(a, column.title)}
        best = (max if column.more else min)(candidates, key=candidates.__getitem__) if len(candidates) > 1 else None
        cells = [
            Cell("" if value is None else value, note=note(arm, column.title), best=arm == best)
            for arm, value in found.items()
        ]
        rows.append((column.title, *cells))
    return rows


def average(results: Mapping[str, Any], arm: str, column: Column) -> Interval | float | None:
    """Return the mean of a measure of an arm with its interval over the seeds; of one seed the value."""
    found = [column.value(results["measures"][f"{arm}-{seed}"]) for seed in results["plan"]["seeds"]]
    values = [value for value in found if value is not None]
    if not values:
        return None
    return over_seeds(values) if len(values) > 1 else float(values[0])


def _estimate(value: Interval | float) -> float:
    return value.estimate if isinstance(value, Interval) else value
