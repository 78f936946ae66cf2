"""What a fine-tuned model reaches on a file of labelled examples, and what it says of each of them."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.data.labelled import LabelledData
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.files import write_whole
from stemma.finetuning.checkpoint import TASK, TaskDescription, load_finetuned, writes_without_finetuning
from stemma.finetuning.heads import WithHead
from stemma.finetuning.measuring import majority, measure_answers, signatures
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.predicting import named
from stemma.finetuning.recipe import DataRecipe
from stemma.finetuning.task_data import read_examples
from stemma.training.objective import Measurement

FORMATS = (".jsonl", ".csv")  # of predictions


@dataclass(frozen=True)
class Evaluated:
    """What was reached on which examples, and the answers by `predicting.predict`'s table, in the examples' order."""

    task: TaskDescription
    data: LabelledData
    reached: Measurement
    answers: list[Any]

    @property
    def majority(self) -> float | None:
        """See `measuring.majority`."""
        return majority(self.data)

    @property
    def signatures(self) -> dict[str, str]:
        """See `measuring.signatures`."""
        return signatures(self.reached.metrics)


def is_finetuned(path_or_hub_id: str | Path) -> bool:
    """Return whether a checkpoint is a fine-tuned one, or does a task without that.

    Raises:
        InputError: there is no checkpoint.
    """
    directory = resolve(path_or_hub_id)
    return (directory / TASK).is_file() or writes_without_finetuning(directory)


def evaluate(directory: str | Path, data: DataRecipe, *, device: Any = None) -> Evaluated:
    """Measure a fine-tuned model on the examples of `data.train`, read as its own training set was.

    Raises:
        InputError: no fine-tuned model there, or a file that does not hold what its task needs (names the place).
    """
    model, tokenizer, task = load_finetuned(directory, device=device)
    if task.kind in ("classification", "regression") and task.pair != (data.pair is not None):
        expected = "a column for the second text (--pair)" if task.pair else "one text, without --pair"
        raise InputError(f"{directory}: fine-tuned on {'pairs' if task.pair else 'single texts'}; expected {expected}")
    known = LabelledData([], [], task.label_names)
    examples = read_examples(data.train, task.kind, data, known)  # type: ignore[arg-type]
    objective = objective_of(model.backbone if isinstance(model, WithHead) else model, tokenizer, task)
    encoded = objective.encode(examples, tokenizer)
    reached, answers = measure_answers(model, objective, encoded, examples, task.metric)
    return Evaluated(task, examples, reached, named(answers, task))


def check_predictions(path: Path) -> None:
    """Find out before the work whether predictions can be written there.

    Raises:
        InputError: they cannot.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"--predictions {path}: expected a name that ends in {' or '.join(FORMATS)}")
    if path.is_dir():
        raise InputError(f"--predictions {path}: a folder; expected the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--predictions {path}: the folder {path.absolute().parent} is not there")


def write_predictions(evaluated: Evaluated, path: Path) -> None:
    """Write a row for each example: its texts, its label and the prediction; in CSV lists are JSON.

    Raises:
        OSError: it could not be written; what was there is untouched.
    """
    rows = _rows(evaluated)
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            return
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    return (
        json.dumps(value, ensure_ascii=False) if isinstance(value, Sequence) and not isinstance(value, str) else value
    )


def _rows(evaluated: Evaluated) -> list[dict[str, Any]]:
    task, data = evaluated.task, evaluated.data
    labels = named(data.labels, task)
    if task.kind == "answering":
        labels = [[text for text, _ in accepted] for accepted in labels]
    return [
        {**_texts(texts, task), "label": label, "prediction": answer}
        for texts, label, answer in zip(data.texts, labels, evaluated.answers, strict=True)
    ]


def _texts(texts: tuple[str, ...], task: TaskDescription) -> dict[str, Any]:
    if task.kind == "tagging":
        return {"words": list(texts)}
    if task.kind == "choice":
        return {"question": texts[0], "choices": list(texts[1:])}
    names = ("question", "context") if task.kind == "answering" else ("text", "pair")
    return dict(zip(names, texts, strict=False))
