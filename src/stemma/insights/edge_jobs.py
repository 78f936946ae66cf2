"""What the claims of edge probing share: a model pretrained on a text, probed for Python's own tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma import families
from stemma.data.tokenizers import load_tokenizer
from stemma.insights.experiments import Job
from stemma.insights.lineage import pretrained, write_text
from stemma.insights.workers import Report, Reporter
from stemma.probing.edge_run import EdgeTask, Wanted, probe_edges
from stemma.probing.edge_training import ProbeTraining
from stemma.probing.python_edges import PythonTask, python_edges

SCALES: dict[str, dict[str, Any]] = {
    "small": {"text": "python", "bytes": 4_000_000, "epochs": 4, "sentences": 800, "probe_epochs": 15},
    "medium": {"text": "python", "bytes": 12_000_000, "epochs": 10, "sentences": 1600, "probe_epochs": 25},
}
_RATE = 1e-3


def prepare(settings: Mapping[str, Any], shared: Path) -> None:
    """Write the text to pretrain on."""
    write_text(settings, shared)


def probed(job: Job, report: Report, tasks: tuple[PythonTask, ...], wanted: Wanted) -> dict[str, dict[str, Any]]:
    """Pretrain a job's arm, and return what probing found, by task."""
    directory = pretrained(job, Reporter(job.name, report, "pretraining"))
    model, tokenizer = families.load(directory), load_tokenizer(directory)
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        report((job.name, f"probing {task}", 0, 0, {}))
        parts = python_edges(task, job.settings["sentences"])
        data = EdgeTask(task, parts["train"], parts["dev"], parts.get("test"))
        training = ProbeTraining(job.settings["probe_epochs"], _RATE)
        cache = job.folder / "cache"
        found[task] = probe_edges(model, tokenizer, data, training, cache, wanted=wanted, seed=job.seed).results
    return found
