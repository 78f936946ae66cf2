"""`stemma compare`: ways to pretrain side by side on the same text, tokens and parameters."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stemma.insights.experiments import Board


def compare(
    text: Annotated[
        str, typer.Option(help="The corpus: a file, a folder, a glob, hf:owner/name, or python (what ships with it).")
    ] = "python",
    field: Annotated[str, typer.Option(help="Field of JSONL, CSV or Parquet rows that holds the text.")] = "text",
    documents: Annotated[
        str, typer.Option(help="What is one document of a text file: file, paragraph or line.")
    ] = "file",
    labels: Annotated[
        str | None,
        typer.Option(help="Labelled texts to fine-tune on: CSV, TSV, JSONL, ...", show_default="docstrings by package"),
    ] = None,
    label_text: Annotated[str, typer.Option(help="Column of --labels with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of --labels with the label.")] = "label",
    frameworks: Annotated[str, typer.Option(help="Which to compare.")] = "gpt,bert,t5,t5-twice,glm,unilm",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, for the confidence intervals.")] = 3,
    budget: Annotated[
        float, typer.Option(min=0.1, help="Minutes on two cores; more: larger models, more tokens.")
    ] = 8.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates of pretraining, whatever the budget says.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trainings at once.", show_default="one a core")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write.")] = Path("runs/compare"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; the rest goes to stderr.")
    ] = False,
) -> None:
    """Train GPT, BERT, T5, GLM and UniLM with the same text, tokens and parameters, and compare what they can do.

    Understanding (fine-tuned classification, the choice of the right piece), conditional generation (filling blanks)
    and unconditional generation (bits per byte), over several seeds. Interrupted, the same command goes on.

    Example: stemma compare --text my.txt --labels my.csv --budget 60
    """
    import os
    from dataclasses import replace

    from rich.console import Console

    from stemma.errors import InputError, closest
    from stemma.insights.arms import ARMS
    from stemma.insights.compare import compare as run
    from stemma.insights.comparison_report import board_of, table_of, write_comparison
    from stemma.insights.plan import Plan, scale_for
    from stemma.insights.report import rich_table
    from stemma.insights.workers import Interrupted

    if text == "-":
        raise InputError("--text -: every training reads the text by itself; expected a file, which they all can")
    arms = tuple(dict.fromkeys(name.strip() for name in frameworks.split(",")))
    for name in arms:
        if name not in ARMS:
            hint = closest(name, ARMS)
            raise InputError(f"--frameworks: no framework '{name}'{hint}, expected some of {', '.join(ARMS)}")
    scale = scale_for(budget, len(arms), seeds)
    scale = scale if steps is None else replace(scale, steps=steps)
    table = "python" if labels is None and text == "python" else labels
    plan = Plan(
        text, field, documents, table, label_text, label_column, arms, tuple(range(1, seeds + 1)), scale, budget
    )
    console = Console(stderr=as_json)
    with observed(board_of(plan), console) as observer:
        try:
            results = run(plan, out, workers=workers or os.cpu_count() or 1, observer=observer)
        except Interrupted:
            console.print("interrupted; the same command goes on from here", highlight=False)
            raise typer.Exit(130) from None
    report = write_comparison(results, out)
    if as_json:
        print(json.dumps(results))
        return
    console.print(rich_table(table_of(results)))
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def observed(board: "Board", console: "Console") -> Any:
    """Return a context that gives who is told how the runs go: a live table on a terminal, lines elsewhere."""
    from stemma.insights.live import live, plain

    return live(board, console) if console.is_terminal else plain(board, console)
