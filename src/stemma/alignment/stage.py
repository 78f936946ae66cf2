"""What supervised fine-tuning, reward models and DPO share: from a model and its recipe to a trained directory."""

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from stemma import families
from stemma.alignment.conversations import Renderer
from stemma.alignment.reading import Reading, reading_of
from stemma.alignment.recipe import DECISIVE, StageRecipe, read_recipe
from stemma.data.shuffled_by_length import ShuffledByLength
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.files import write_whole
from stemma.inference.chat_template import ChatTemplate
from stemma.training.batches import derived_seed
from stemma.training.distributed import Workers, start_workers
from stemma.training.hardware import prepare_processor
from stemma.training.lora import LoRAConfig, add_lora, lora_layers, merge_lora
from stemma.training.objective import Display, Measured, Measurement
from stemma.training.recipe import RunRecipe, evaluated_each_epoch
from stemma.training.run_directory import claim, locked
from stemma.training.saving import holding
from stemma.training.trainer import Outcome, Task, Trainer

RESULTS = "results.json"

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Learner:
    """A model that is to be trained further."""

    model: Any
    tokenizer: Tokenizer

    @property
    def template(self) -> ChatTemplate | None:
        """What it was taught conversations in."""
        return None


@dataclass(frozen=True)
class Pupil(Learner):
    """A model that is to be aligned, and how it reads."""

    reading: Reading
    renderer: Renderer

    @property
    def template(self) -> ChatTemplate | None:
        """What it was taught conversations in."""
        return self.renderer.used_template


@contextmanager
def workplace(out: Path, recipe: RunRecipe) -> Iterator[Workers]:
    """Keep other processes from the directory of a run, and make the device ready that the recipe asks for.

    Raises:
        InputError: another process is at it, no such device, or several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("alignment runs in one process; expected a start without torchrun")
    if recipe.execution.device == "cuda" and not torch.cuda.is_available():
        raise InputError("execution.device: cuda, and PyTorch finds no GPU; expected auto or cpu")
    prepare_processor(training=True)
    with locked(out), start_workers(recipe.execution.device) as workers:
        yield workers


def load_learner(recipe: Any, device: torch.device) -> Learner:
    """Load the model of a stage's recipe, with its dropout; adapters are added later.

    Raises:
        InputError: no such model.
    """
    directory = resolve(recipe.model)
    model: Any = families.load(directory, dtype=torch.float32, device=device)
    tokenizer = load_tokenizer(directory)
    torch.manual_seed(derived_seed(recipe.seed))
    if recipe.dropout is not None:
        set_dropout(model, recipe.dropout)
    return Learner(model, tokenizer)


def load_pupil(recipe: Any, device: torch.device) -> Pupil:
    """Load the model of a stage's recipe (see `load_learner`), and how it reads.

    Raises:
        InputError: no such model, one that writes no text, or a broken template.
    """
    learner = load_learner(recipe, device)
    model, tokenizer, file = learner.model, learner.tokenizer, recipe.data.template
    template = ChatTemplate.read(resolve(recipe.model), None if file is None else Path(file))
    reading = reading_of(model, tokenizer, recipe.data.longest, packing=recipe.data.packing)
    return Pupil(model, tokenizer, reading, Renderer(model, tokenizer, reading.end, template))


def set_dropout(model: nn.Module, probability: float) -> None:
    """Change the dropout of a model's residual stream; attention weights have none."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "dropout", None), float):
            setattr(module, "dropout", 0.0)  # noqa: B010 (modules declare no such field)


def adapt(model: nn.Module, recipe: StageRecipe, trainable: Sequence[str] = ()) -> None:
    """Give a model the recipe's adapters, in place, if it has any.

    Args:
        trainable: modules that are trained beside them.
    """
    if recipe.lora is not None:
        add_lora(model, LoRAConfig(**recipe.lora.model_dump()), trainable=trainable)


def merged(model: Model) -> Model:
    """Return a model without adapters: itself, or a copy with its updates added to the weights."""
    return merge_lora(copy.deepcopy(model)) if lora_layers(model) else model


def train(
    recipe: Any,
    out: Path,
    pupil: Learner,
    model: nn.Module,
    objective: Any,
    examples: Sequence[Any],
    lengths: Sequence[int],
    *,
    measure: Callable[[Any], Measurement],
    save: Callable[[Any, Path], None] | None = None,
    fingerprints: dict[str, str],
    overwrite: bool,
    display: Display,
    summary: Sequence[str],
    workers: Workers,
    prepare: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train in a directory that is locked, or go on where an earlier run stopped there.

    Args:
        model: of the pupil, or one round it. examples: what the objective's `example` takes. lengths: of them, in
            tokens.
        measure: of the model in eval mode. save: writes the model, without adapters, to a directory; default:
            `save_language_model`.
        fingerprints: of what the weights depend on beside recipe and tokenizer; `data` among them.
        summary: lines to show first. prepare: what is to be done with the weights as they came.
    Raises:
        InputError: a directory of another run.
        Diverged: the loss was not finite several updates in a row.
        OSError: the last checkpoint could not be written.
    """
    stage = type(recipe)
    saved = claim(
        out, recipe, overwrite=overwrite, say=display.say, read=lambda path: read_recipe(stage, path), decisive=DECISIVE
    )
    for line in summary:
        display.say(line)
    prepare()
    batch = recipe.training.batch
    # Packed rows are full whatever the order.
    order = [0] * len(lengths) if recipe.data.packing else lengths
    steps = recipe.training.steps or -(-round((recipe.training.epochs or 0) * len(examples)) // batch)
    task = Task(
        model,
        objective,
        ShuffledByLength(examples, order, batch, recipe.seed, fingerprints["data"]),
        length=max(round(sum(lengths) / len(lengths)), 1),
        steps=max(steps, 1),
        held_out=Measured(measure),
        fingerprints={**fingerprints, "tokenizer": pupil.tokenizer.fingerprint},
    )

    def publish(weights: Any, directory: Path) -> None:
        with holding(model, weights):
            if save is None:
                save_language_model(pupil, merged(model), directory)
            else:
                save(merged(model), directory)

    trainer = Trainer(
        task,
        evaluated_each_epoch(recipe, task.steps, len(examples)),
        out,
        publish=publish,
        workers=workers,
        display=display,
        saved=saved,
    )
    if saved is not None:
        display.say(f"resuming   from step {saved.step:,}")
    return trainer.run()


def save_language_model(pupil: Learner, model: Any, directory: Path) -> None:
    """Write a model that goes on with texts, with its template if it has one."""
    families.save(model, pupil.tokenizer, directory)
    if pupil.template is not None:
        pupil.template.save(directory)


def reached(out: Path, outcome: Outcome, held_out: Mapping[str, int], **more: Any) -> dict[str, Any] | None:
    """Return what a run reached on held-out data, which is written to `out`, too; None: it was interrupted.

    Args:
        held_out: how many there are, by what they are. more: to say of the run.
    """
    if outcome.reason == "interrupted":
        return None
    progress, evaluation = outcome.progress, outcome.progress.evaluation or {}
    results = {
        "steps": progress.step,
        "best_step": progress.best_step,
        "best_loss": progress.best_loss,
        **more,
        "held_out": {**held_out, "loss": evaluation.get("loss"), **(evaluation.get("metrics") or {})},
    }
    write_results(out, results)
    return results


def write_results(out: Path, results: Mapping[str, Any]) -> None:
    """Write what a run reached."""
    with write_whole(out / RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def describe_model(recipe: StageRecipe, model: nn.Module) -> str:
    """Return a line that says what is trained."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = f" ({trained:,} trained: LoRA of rank {recipe.lora.rank})" if recipe.lora is not None else ""
    training = recipe.training
    return (
        f"model      {recipe.model}: {parameters:,} parameters{adapters}; learning rate {training.learning_rate:g}, "
        f"batches of {training.batch}"
    )
