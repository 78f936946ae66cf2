"""GPTs that learn a made-up language, a line a document, from nothing: for claims about what prompts can do."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stemma.data.tokenizers import train_tokenizer
from stemma.files import write_whole
from stemma.insights.experiments import Job
from stemma.insights.workers import Interrupted, Report, Reporter
from stemma.training.pretrain import pretrain
from stemma.training.recipe import Recipe

TOKENIZER = "tokenizer"


def save_tokenizer(lines: Iterable[str], shared: Path) -> None:
    """Learn a token for each word of some lines, blanks between; save the tokenizer in what the jobs share."""
    words = [word for line in lines for word in line.split()]
    (shared / TOKENIZER).mkdir(exist_ok=True)
    train_tokenizer(words, "word", len(set(words)) + 3).save(shared / TOKENIZER)


def pretrained(
    job: Job,
    report: Report,
    lines: Sequence[str],
    held_out: Sequence[str],
    *,
    size: Sequence[int],
    context: int,
    training: Mapping[str, Any],
    separate: bool = True,
) -> Path:
    """Train a GPT on lines, or go on with it; return its directory.

    Args:
        held_out: lines whose loss is told. size: layers, hidden, heads. training: of the recipe.
        separate: a line is read from its own beginning, and sees no other.
    Raises:
        Interrupted: it has saved what it had.
    """
    text, asked = job.folder / "lines.txt", job.folder / "held_out.txt"
    for path, rows in ((text, lines), (asked, held_out)):
        with write_whole(path) as temporary:
            temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    layers, hidden, heads = size
    recipe = Recipe.model_validate(
        {
            "family": "gpt",
            "model": {
                **{"layers": layers, "hidden": hidden, "heads": heads, "context": context},
                **{"dropout": 0.0, "attention_dropout": 0.0},
            },
            "objective": {"separate_documents": separate},
            "tokenizer": {"path": str(job.shared / TOKENIZER)},
            "data": {"source": str(text), "documents": "line", "held_out": str(asked)},
            "training": {
                "length": context,
                "weight_decay": 0.01,
                "betas": [0.9, 0.98],
                "schedule": {"name": "cosine", "warmup": 0.05, "final": 0.05},
                **training,
            },
            "evaluation": {"every": 1000, "tokens": 10_000},
            "output": {"save_every": 500, "keep": 1, "log_every": 50},
            "seed": job.seed,
        }
    )
    out = job.folder / "pretrained"
    outcome = pretrain(recipe, out, display=Reporter(job.name, report, "pretraining"), cache=job.folder / "cache")
    if outcome.reason == "interrupted":
        raise Interrupted
    return out
