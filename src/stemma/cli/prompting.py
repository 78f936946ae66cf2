"""`stemma evaluate --task FILE.yaml`: how well a model does a task that stands in its prompt."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from stemma.prompting.evaluating import Evaluated
    from stemma.prompting.models import Asked


def evaluate_task(
    model: str,
    name: str,
    task: Path,
    shots: list[int],
    reasoning: str,
    votes: int,
    most: int | None,
    seed: int,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Print the metrics of a task with their standard errors, and what the answers cost, for each number of shots."""
    import shlex
    import sys

    from stemma.insights.prompting_report import report_of
    from stemma.insights.report import write_report
    from stemma.prompting.evaluating import Protocol, evaluate
    from stemma.prompting.tasks import load_task
    from stemma.training.progress import counting

    loaded = load_task(task, most=most, examples=not shots or max(shots) > 0)
    counts = list(dict.fromkeys(shots)) or [loaded.file.num_fewshot]
    protocols = {count: Protocol(count, seed, reasoning, votes) for count in counts}  # type: ignore[arg-type]
    asked = _asked(model, name, device)
    said, told, by_shots = Console(stderr=True), Console(stderr=as_json, highlight=False), {}
    for count, protocol in protocols.items():
        folder = out if out is None or len(counts) == 1 else out / f"shots-{count}"
        with counting(said, f"asking {loaded.file.task}", len(loaded.questions)) as report:
            by_shots[count] = evaluate(asked, loaded, protocol, out=folder, report=report)
        _tell(model, count, by_shots[count], as_json)
        if folder is not None:
            told.print(f"records: {folder / 'records.jsonl'}", markup=False, soft_wrap=True)
    if out is not None:
        write_report(report_of(model, by_shots, shlex.join(["stemma", *sys.argv[1:]])), out / "report.html")
        told.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)


def _tell(model: str, shots: int, found: "Evaluated", as_json: bool) -> None:
    if as_json:
        metrics = {name: {"mean": share.mean, "error": share.error} for name, share in found.metrics.items()}
        summary = {"model": model, "task": found.task, "shots": shots, "questions": found.questions}
        print(json.dumps(summary | {"metrics": metrics, "costs": found.costs}))
        return
    console = Console(highlight=False)
    title = f"{model} on {found.task}: {found.questions:,} questions, shots: {shots}"
    table = Table(title=title, title_justify="left")
    for head in ("metric", "mean", "standard error", "tokens a question"):
        table.add_column(head, justify="left" if head == "metric" else "right")
    tokens = found.costs["prompt tokens"] + found.costs.get("written tokens", 0)
    for metric, share in found.metrics.items():
        table.add_row(metric, f"{share.mean:.4f}", f"{share.error:.4f}", f"{tokens:,.1f}")
    console.print(table)
    console.print("means: " + ", ".join(f"{cost} {value:.4g}" for cost, value in found.costs.items()), soft_wrap=True)


def _asked(model: str, name: str, device: str) -> "Asked":
    if model.startswith(("http://", "https://")):
        from stemma.prompting.models import Endpoint

        return Endpoint(model, name)
    from stemma.cli.devices import device_named
    from stemma.data.tokenizers import load_tokenizer
    from stemma.families import load
    from stemma.prompting.models import LocalModel
    from stemma.training.hardware import prepare_processor

    prepare_processor()
    return LocalModel(load(model, device=device_named(device)), load_tokenizer(model))
