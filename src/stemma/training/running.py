"""A training in its directory: claimed, resumed, run and published, whatever is trained."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from stemma.training.distributed import Workers, start_workers
from stemma.training.hardware import prepare_processor
from stemma.training.lora import lora_layers
from stemma.training.objective import Display
from stemma.training.progress import Silent
from stemma.training.recipe import DECISIVE, RunRecipe, load_recipe
from stemma.training.run_directory import claim, locked
from stemma.training.saving import STATES, Publish
from stemma.training.state import newest_state, require_space
from stemma.training.trainer import Outcome, Task, Trainer


@dataclass(frozen=True)
class Run:
    """What is to be trained, what writes it as a checkpoint directory, and what to say of it before."""

    task: Task
    publish: Publish
    summary: Sequence[str]


def run(
    recipe: RunRecipe,
    out: Path,
    build: Callable[[Workers, Display], Run],
    *,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    read: Callable[[Path], RunRecipe] = load_recipe,
    decisive: Collection[str] = DECISIVE,
) -> Outcome:
    """Train into the directory `out`, or go on where an earlier run of the recipe stopped there.

    Under torchrun the workers share the training; the first one writes.

    Args:
        build: makes the run, once the directory is claimed. For the others see `claim`.
    Raises:
        InputError: a directory that holds something else, too little room, or what `build` raises.
        Diverged: the loss was not finite several updates in a row.
        OSError: the last checkpoint could not be written.
    """
    prepare_processor(training=True)
    with ExitStack() as stack:
        workers = stack.enter_context(start_workers(recipe.execution.device))
        shown = display if display is not None and workers.main else Silent()
        if workers.main:
            stack.enter_context(locked(out))
            claim(out, recipe, resume=resume, overwrite=overwrite, say=shown.say, read=read, decisive=decisive)
        workers.barrier()
        saved, _ = newest_state(out / STATES)
        built = build(workers, shown)
        for line in built.summary:
            shown.say(line)
        trainer = Trainer(built.task, recipe, out, publish=built.publish, workers=workers, display=shown, saved=saved)
        if workers.main:
            require_space(out, needed_bytes(built.task.model, recipe) - bytes_in(out))
        if saved is not None:
            shown.say(f"resuming   from step {saved.step:,}")
        return trainer.run()


def needed_bytes(model: nn.Module, recipe: RunRecipe) -> int:
    """Estimate what the checkpoints of a run take on disk, the one being written included."""
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    trained = sum(parameter.numel() * 4 for parameter in model.parameters() if parameter.requires_grad)
    state = weights + trained * (2 if recipe.training.ema is None else 3)
    published = 3 * (trained if lora_layers(model) else weights)  # the last, the best, and one being written
    return state * (recipe.output.keep + 1) + published


def bytes_in(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
