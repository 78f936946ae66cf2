"""How models that were asked for facts compare, as a table and as a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from stemma.evaluation.intervals import Interval
from stemma.insights.parts import Cell, Code, Curves, Paragraph, Part, Report, Section, Series, Table

Results = Mapping[str, Any]

_MEASURES = {
    "P@1": "p_at_1",
    "P@10": "p_at_10",
    "MRR": "mrr",
    "P@1 filtered": "filtered_p_at_1",
    "P@10 filtered": "filtered_p_at_10",
    "MRR filtered": "filtered_mrr",
}
_NOTES = (
    "In percent. P@k: the right object is among the first k; MRR: mean of 1 / its rank. Means over the relations.",
    "Raw numbers compare with published ones; filtered: the subject's other right objects are taken out before.",
)


def summary_table(results: Results, *, brief: bool = False) -> Table:
    """Return a row for each baseline and model, P@1 with its interval over the relations.

    Args:
        brief: only what matters most, for a terminal.
    """
    kinds = list(dict.fromkeys(kind for answer in results["answers"].values() for kind in answer["by_kind"]))
    measures = {name: key for name, key in _MEASURES.items() if not brief or name in ("P@10", "MRR", "P@1 filtered")}
    best = max(answer["macro"]["p_at_1"] for answer in results["answers"].values())
    rows = []
    for name, answer in results["answers"].items():
        macro = answer["macro"]
        first = Interval(*(100 * value for value in (macro["p_at_1"], *macro["p_at_1_interval"])))
        cells: list[Any] = [name, Cell(first, best=macro["p_at_1"] == best and len(results["answers"]) > 1)]
        cells += [100 * macro[key] for title, key in measures.items() if title != "P@1"]
        cells += [] if brief else [100 * answer["micro"]["p_at_1"]]
        cells += [100 * answer["by_kind"][kind]["p_at_1"] if kind in answer["by_kind"] else "-" for kind in kinds]
        rows.append(cells)
    titles = ["P@1", *(title for title in measures if title != "P@1"), *([] if brief else ["P@1 of all facts"])]
    return Table(["", *titles, *(f"P@1 {kind}" for kind in kinds)], rows, caption=results["facts"], notes=_NOTES)


def described(results: Results) -> str:
    """Say what was asked and what was not."""
    coverage, candidates = results["coverage"], results["candidates"]
    text = f"{coverage['asked']:,} facts asked of {coverage['read']:,} lines read"
    if coverage["repeated"]:
        text += f", {coverage['repeated']:,} repeated"
    for why, number in coverage["dropped"].items():
        text += f", {number:,} {why}"
    kind = "words of the common vocabulary" if candidates["kind"] == "vocabulary" else "objects of a relation at most"
    text += f"; candidates: {candidates['most']:,} {kind}"
    text += f"; {results['string_match']:.2%} of the objects stand in the subject's name"
    for model, share in results["right_side_unread"].items():
        text += (
            "" if not share else f"; {model} does not see the words behind the blank in {share:.2%} of the questions"
        )
    return text


def report_of(several: Sequence[Results], command: str) -> Report:
    """Return the report on some sources of facts. command: that makes it again."""
    lead = "What models know: each is asked for the same facts, as cloze questions, among the same candidates."
    sections = [Section(results["facts"], _parts(results)) for results in several]
    return Report("probe facts", lead, [*sections, Section("To run it again", [Code(command)])])


def _parts(results: Results) -> list[Part]:
    series = [
        Series(name, [point[0] for point in answer["curve"]], [point[1] for point in answer["curve"]])
        for name, answer in results["answers"].items()
    ]
    curves = Curves(series, "k", "P@k", "Share of the facts whose object is among the first k, by k.", log_x=True)
    models = list(next(iter(results["relations"].values()))["models"])
    rows = []
    for name, relation in results["relations"].items():
        row: list[Any] = [
            name if relation["label"] in ("", name) else f"{name} {relation['label']}",
            relation["kind"] or "-",
        ]
        row.append(next(iter(results["answers"].values()))["relations"][name]["facts"])
        for model in models:
            row.append(results["answers"][model]["relations"][name]["p_at_1"])
            row.append(relation["models"][model]["commonest_answer"])
        rows.append(row)
    heads = [head for model in models for head in (f"P@1 {model}", "commonest answer")]
    table = Table(
        ["relation", "kind", "facts", *heads],
        rows,
        caption="By relation. Commonest answer: the share of the questions that get one and the same answer.",
    )
    return [Paragraph(described(results)), summary_table(results), curves, table, *_by_template(results, models)]


def _by_template(results: Results, models: Sequence[str]) -> list[Part]:
    rows = [
        [name, template, *(relation["models"][model]["p_at_1_by_template"][template] for model in models)]
        for name, relation in results["relations"].items()
        for template in next(iter(relation["models"].values()))["p_at_1_by_template"]
    ]
    if len(rows) == len(results["relations"]):
        return []
    agree = {
        model: [relation["models"][model]["templates_agree"] for relation in results["relations"].values()]
        for model in models
    }
    said = "; ".join(
        f"{model} {sum(known) / len(known):.3f}"
        for model, shares in agree.items()
        if (known := [share for share in shares if share is not None])
    )
    caption = f"P@1 by template. How often two templates of a relation get the same answer: {said}."
    return [Table(["relation", "template", *models], rows, caption=caption)]
