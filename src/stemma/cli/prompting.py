"""`stemma evaluate --task FILE.yaml`: how well a model does a task that stands in its prompt."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from stemma.prompting.models import Asked


def evaluate_task(
    model: str,
    name: str,
    task: Path,
    shots: int | None,
    reasoning: str,
    votes: int,
    most: int | None,
    seed: int,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Print the metrics of a task with their standard errors, and what the answers cost."""
    from stemma.cli.failures import failures
    from stemma.prompting.evaluating import Protocol, evaluate
    from stemma.prompting.tasks import load_task
    from stemma.training.progress import counting

    protocol = Protocol(shots, seed, reasoning, votes)  # type: ignore[arg-type]
    loaded = load_task(task, most=most, examples=shots is None or shots > 0)
    asked = _asked(model, name, device)
    said = Console(stderr=True)
    with failures(said), counting(said, f"asking {loaded.file.task}", len(loaded.questions)) as report:
        found = evaluate(asked, loaded, protocol, out=out, report=report)
    if as_json:
        metrics = {name: {"mean": share.mean, "error": share.error} for name, share in found.metrics.items()}
        summary = {"model": model, "task": found.task, "questions": found.questions}
        print(json.dumps(summary | {"metrics": metrics, "costs": found.costs}))
        return
    console = Console(highlight=False)
    table = Table(title=f"{model} on {found.task}: {found.questions:,} questions", title_justify="left")
    for head in ("metric", "mean", "standard error", "tokens a question"):
        table.add_column(head, justify="left" if head == "metric" else "right")
    tokens = found.costs["prompt tokens"] + found.costs.get("written tokens", 0)
    for metric, share in found.metrics.items():
        table.add_row(metric, f"{share.mean:.4f}", f"{share.error:.4f}", f"{tokens:,.1f}")
    console.print(table)
    console.print("means: " + ", ".join(f"{cost} {value:.4g}" for cost, value in found.costs.items()), soft_wrap=True)
    if out is not None:
        console.print(f"records: {out / 'records.jsonl'}", markup=False, soft_wrap=True)


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
