"""From a checkpoint and labelled examples to a fine-tuned model and what it reaches."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stemma import families
from stemma.data.content_hashes import digest
from stemma.data.labelled import LabelledData, leakage
from stemma.data.shuffled_by_length import ShuffledByLength
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError, closest
from stemma.families.directory import resolve
from stemma.files import write_whole
from stemma.finetuning.adapted import adapt
from stemma.finetuning.checkpoint import TaskDescription, load_finetuned, save_finetuned, shape_of_head
from stemma.finetuning.distilled import taught
from stemma.finetuning.heads import WithHead
from stemma.finetuning.measuring import majority, measure, signatures
from stemma.finetuning.objectives import formulation_of, objective_of, smoothed, with_label_gain
from stemma.finetuning.reading import prepared, tokenizer_of
from stemma.finetuning.recipe import DECISIVE, WRITTEN, FineTuningRecipe, read_recipe
from stemma.finetuning.task_data import hold_out, read_examples, selected
from stemma.training.batches import derived_seed
from stemma.training.distributed import Workers
from stemma.training.hardware import prepare_processor
from stemma.training.objective import Display, Measured, Measurement
from stemma.training.progress import Silent
from stemma.training.recipe import evaluated_each_epoch
from stemma.training.run_directory import claim, locked
from stemma.training.running import bytes_in, needed_bytes
from stemma.training.saving import BEST, holding
from stemma.training.state import require_space
from stemma.training.trainer import Outcome, Task, Trainer

RESULTS = "results.json"
MEASURED = 500  # examples of dev, where answers may be written


@dataclass(frozen=True)
class Splits:
    """The examples to train on, to choose the best weights by, and to report on (None: none)."""

    train: LabelledData
    dev: LabelledData
    test: LabelledData | None


def read_splits(recipe: FineTuningRecipe) -> Splits:
    """Read the recipe's data; without a file of its own, dev is held out of train by a hash of the text.

    Raises:
        InputError: see `read_examples`.
    """
    data, kind = recipe.data, recipe.task.kind
    train = read_examples(data.train, kind, data)
    if isinstance(data.dev, str):
        dev = read_examples(data.dev, kind, data, train)
    else:
        train, dev = hold_out(train, data.dev, kind)
    most = data.measured or (MEASURED if kind in WRITTEN else len(dev))
    if most < len(dev):
        dev = selected(dev, [number * len(dev) // most for number in range(most)])
    return Splits(train, dev, None if data.test is None else read_examples(data.test, kind, data, train))


def finetune(
    recipe: FineTuningRecipe,
    out: Path,
    *,
    splits: Splits | None = None,
    overwrite: bool = False,
    display: Display | None = None,
) -> tuple[Outcome, dict[str, Any] | None]:
    """Fine-tune into the directory `out`, or go on where an earlier run of it stopped there.

    The weights that are best on dev are in `out`/best; only these see the test set, once the training is finished.

    Args:
        splits: the examples, if they are at hand; default: `read_splits(recipe)`.
    Returns:
        how the run ended, and what it reached, as in `out`/results.json (None: interrupted).
    Raises:
        InputError: a checkpoint, data or settings that cannot be used.
        Diverged: the loss was not finite several updates in a row.
        OSError: the last checkpoint could not be written.
    """
    prepare_processor(training=True)
    shown = display or Silent()
    splits = splits or read_splits(recipe)
    with locked(out):
        # What cannot be trained or measured leaves the directory for the corrected command.
        model, tokenizer, objective, description = build(recipe, splits.train)
        dev = objective.encode(splits.dev, tokenizer)
        _require_metric(model, tokenizer, objective, recipe, splits.dev)
        content = digest([json.dumps([splits.train.texts, splits.train.labels])])
        learned: Any = objective
        if recipe.distillation is None:
            train = objective.encode(splits.train, tokenizer)
        else:
            learned, train, said = taught(recipe.distillation, recipe.data, splits.train, objective, tokenizer)
            content = digest([content, said])
        saved = claim(out, recipe, overwrite=overwrite, say=shown.say, read=read_recipe, decisive=DECISIVE)
        for line in _summary(recipe, splits, model, description):
            shown.say(line)
        lengths = [len(example["tokens"]) for example in train]
        batch = recipe.training.batch
        sequences = ShuffledByLength(train, lengths, batch, recipe.seed, content)
        updates = recipe.training.steps or -(-round((recipe.training.epochs or 0) * len(train)) // batch)
        metric = recipe.task.metric
        task = Task(
            model,
            learned,
            sequences,
            length=max(round(sum(lengths) / len(lengths)), 1),
            steps=max(updates, 1),
            held_out=Measured(lambda network: measure(network, objective, dev, splits.dev, metric)),
            fingerprints={"data": content, "tokenizer": tokenizer.fingerprint},
        )
        trainer = Trainer(
            task,
            evaluated_each_epoch(recipe, task.steps, len(train)),
            out,
            publish=_publisher(model, tokenizer, description, _base(recipe.model)),
            workers=Workers(),
            display=shown,
            saved=saved,
        )
        require_space(out, needed_bytes(model, recipe) - bytes_in(out))
        if saved is not None:
            shown.say(f"resuming   from step {saved.step:,}")
        outcome = trainer.run()
        if outcome.reason == "interrupted":
            return outcome, None
        return outcome, _results(out, recipe, splits, outcome)


def build(recipe: FineTuningRecipe, train: LabelledData) -> tuple[Any, Tokenizer, Any, TaskDescription]:
    """Return model, tokenizer, objective and description of a run.

    Raises:
        InputError: a formulation that the family does not have, or settings that do not fit it.
    """
    if recipe.initialize and recipe.lora is not None:
        raise InputError("lora: adapts pretrained weights, and initialize=true forgets them; expected one of the two")
    directory = resolve(recipe.model)
    model: Any = families.load(directory, dtype=torch.float32)
    tokenizer = tokenizer_of(model, directory)
    torch.manual_seed(derived_seed(recipe.seed))
    if recipe.initialize:
        model.initialize()
    model, tokenizer = prepared(model, tokenizer)
    task = recipe.task
    formulation = formulation_of(model, task)
    for name in task.label_words:
        if name not in train.label_names:
            hint = closest(name, train.label_names) or f", expected one of {', '.join(train.label_names)}"
            raise InputError(f"task.label_words: no label '{name}' in the training set{hint}")
    words = tuple(task.label_words.get(name, name) for name in train.label_names)
    pair, longest = task.kind in ("classification", "regression") and len(train.texts[0]) > 1, recipe.data.longest
    longest = min(longest, getattr(model.config, "context", longest))
    description = TaskDescription(
        task.kind,
        formulation,
        train.label_names,
        pair,
        longest,
        task.pattern,
        words,
        recipe.data.longest_target,
        task.beams,
        task.length_penalty,
        task.metric,
        recipe.data.stride,
        no_answer=task.kind == "answering" and not all(train.labels),
    )
    objective = objective_of(model, tokenizer, description, language_model=task.language_model)
    objective = smoothed(objective, description, task.label_smoothing)
    if recipe.distillation is not None and (task.kind != "classification" or task.label_gain):
        raise InputError("distillation: teachers give the probabilities of classes; expected task.kind=classification")
    if task.label_gain:
        objective = with_label_gain(objective, model, description)
    if formulation == "head":
        model = WithHead(model, *shape_of_head(description), dropout=task.dropout)
        if task.frozen:
            model.freeze()
    elif task.frozen:
        raise InputError(f"task.frozen: only an output layer can be trained alone, and this is '{formulation}'")
    if recipe.lora is not None:
        if task.frozen:
            raise InputError("task.frozen: adapters change the backbone; expected one of lora and task.frozen")
        adapt(model, recipe.lora)
    return model, tokenizer, objective, description


def measure_directory(directory: str | Path, data: LabelledData, *, device: Any = None) -> Measurement:
    """Return what a fine-tuned model on disk reaches on labelled examples.

    Raises:
        InputError: no fine-tuned model there, or examples of another kind.
    """
    model, tokenizer, task = load_finetuned(directory, device=device)
    backbone = model.backbone if isinstance(model, WithHead) else model
    objective = objective_of(backbone, tokenizer, task)
    return measure(model, objective, objective.encode(data, tokenizer), data, task.metric)


def family_and_size(model: str) -> tuple[str, int]:
    """Return the name of a checkpoint's family and the number of its parameters.

    Raises:
        InputError: no such checkpoint.
    """
    loaded = families.load(model)
    branch = families.family_of(loaded)
    name = next(name for name, other in families.FAMILIES.items() if other is branch)
    return name, sum(parameter.numel() for parameter in loaded.parameters())


def _require_metric(
    model: Any, tokenizer: Tokenizer, objective: Any, recipe: FineTuningRecipe, dev: LabelledData
) -> None:
    """Measure a few examples, so that a metric or a library that is missing is not found out after an epoch."""
    few = selected(dev, range(min(len(dev), 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few numbers: they are all the same
        measure(model.eval(), objective, objective.encode(few, tokenizer), few, recipe.task.metric)


def _base(model: str) -> str:
    """Return the checkpoint's name as it is good in any working directory."""
    return str(Path(model).expanduser().resolve()) if Path(model).expanduser().is_dir() else model


def _publisher(
    model: Any, tokenizer: Tokenizer, task: TaskDescription, base: str
) -> Callable[[Mapping[str, Tensor], Path], None]:
    def publish(weights: Mapping[str, Tensor], directory: Path) -> None:
        with holding(model, weights):
            save_finetuned(model, tokenizer, task, directory, base)

    return publish


def _summary(recipe: FineTuningRecipe, splits: Splits, model: Any, task: TaskDescription) -> list[str]:
    sizes = f"{len(splits.train):,} examples, {len(splits.dev):,} to choose the best weights"
    carved = "" if isinstance(recipe.data.dev, str) else f" (held out of train: {100 * recipe.data.dev:g} %)"
    tested = "" if splits.test is None else f", {len(splits.test):,} to test"
    lines = [f"data       {recipe.data.train}: {sizes}{carved}{tested}"]
    if task.label_names:
        counts = splits.train.label_counts.items()
        lines.append("labels     " + ", ".join(f"{name} {count:,}" for name, count in counts))
    for name, part in (("dev", splits.dev), ("test", splits.test)):
        repeated = leakage(splits.train, part) if part is not None else 0
        if repeated:
            lines.append(f"leakage    {repeated:,} texts of {name} stand in train word for word")
    if (soft := recipe.distillation) is not None:
        several = f"{soft.mean} mean of " if len(soft.teachers) > 1 else ""
        more = "" if soft.unlabelled is None else f"; {soft.unlabelled} without labels"
        lines.append(
            f"teachers   {several}{', '.join(soft.teachers)}: temperature {soft.temperature:g}, weight "
            f"{soft.weight:g} beside the labels{more}"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = f" ({trained:,} trained: LoRA of rank {recipe.lora.rank})" if recipe.lora is not None else ""
    adapters = f" ({trained:,} trained: its states are features)" if recipe.task.frozen else adapters
    start = ", from random weights" if recipe.initialize else ""
    training = recipe.training
    lines.append(
        f"model      {recipe.model}: {parameters:,} parameters{adapters}, {task.kind} by {task.formulation}{start}; "
        f"learning rate {training.learning_rate:g}, batches of {training.batch}"
    )
    return lines


def _results(out: Path, recipe: FineTuningRecipe, splits: Splits, outcome: Outcome) -> dict[str, Any]:
    """Measure the best weights once, and write what they reach."""
    results: dict[str, Any] = {"steps": outcome.progress.step, "best_step": outcome.progress.best_step}
    for name, part in (("dev", splits.dev), ("test", splits.test)):
        if part is None:
            continue
        reached = measure_directory(out / BEST, part)
        results[name] = {**asdict(reached), "metrics": dict(reached.metrics)}
        if counted := signatures(reached.metrics):
            results["signatures"] = counted
        if (constant := majority(part)) is not None:
            results[name]["majority"] = constant
    with write_whole(out / RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results
