"""The directory of a run: whose it is, whether it may be gone on with, and that only one process writes to it."""

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from stemma.errors import InputError
from stemma.training.metrics import METRICS
from stemma.training.recipe import (
    DECISIVE,
    ROUNDING,
    Recipe,
    RunRecipe,
    differences,
    expanded,
    load_recipe,
    write_recipe,
)
from stemma.training.saving import BEST, STATES
from stemma.training.state import SavedState, newest_state, remove_leftovers, remove_state

RECIPE, LOCK = "recipe.yaml", ".lock"
# What --overwrite removes: everything that a run writes (but the recipe, which is replaced), and nothing else.
WRITTEN = (
    (STATES, BEST, "tensorboard", METRICS, "results.json", "task.json", "config.json", "generation_config.json")
    + ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    + ("adapter_config.json", "adapter_model.safetensors")
    + ("chat_template.jinja", "reward.json", "reference.safetensors")  # of alignment
    + ("teachers",)  # of distillation
    + ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
    + ("training_state.safetensors", "cooccurrence.bin", "vocabulary.txt")  # of word vectors, as the next three
    + ("vectors.word2vec.txt", "vectors.bin", "vectors.glove.txt")
)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes from writing to `directory`; a killed process keeps nobody.

    Raises:
        InputError: another process is at it, or the directory cannot be made or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / LOCK, "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written to ({error.strerror})") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # Windows: no lock, no harm with one process
        except OSError as error:
            raise InputError(f"{directory}: another process is training in this directory") from error
        yield


def claim(
    directory: Path,
    recipe: RunRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda message: None,
    read: Callable[[Path], RunRecipe] = load_recipe,
    decisive: Collection[str] = DECISIVE,
) -> SavedState | None:
    """Make `directory` the recipe's: begin, or find the checkpoint to go on from.

    Args:
        resume: there must be something to go on from.
        overwrite: begin anew, deleting what an earlier run wrote.
        read: reads the recipe of an earlier run. decisive: sections that must be the same.
    Raises:
        InputError: the directory holds another run or something else, or there is nothing to resume.
    """
    recipe = expanded(recipe) if isinstance(recipe, Recipe) else recipe
    for folder in (directory, directory / STATES, directory / BEST):
        remove_leftovers(folder)
    started = (directory / RECIPE).is_file()
    if overwrite and started:
        remove_run(directory)
        write_recipe(recipe, directory / RECIPE)  # the last step: until then it may be overwritten again
        return None
    if not started:
        require_new(directory, resume)
        write_recipe(recipe, directory / RECIPE)
        return None
    if not resume and not any(any(directory.glob(pattern)) for pattern in WRITTEN):
        write_recipe(recipe, directory / RECIPE)  # its run came to nothing: the data were not there, say
        return None
    before = read(directory / RECIPE)
    require_same(directory, differences(recipe, before, decisive))
    rounding = differences(recipe, before, ROUNDING)
    if rounding:
        say(f"going on with a changed execution, equal only up to rounding (here, there): {'; '.join(rounding)}")
    saved, damaged = newest_state(directory / STATES)
    for path in damaged:
        say(f"{path}: incomplete or damaged, passed over and removed")
        remove_state(path)
    write_recipe(recipe, directory / RECIPE)  # what may differ is from now on as asked for
    return saved


def require_new(directory: Path, resume: bool) -> None:
    """Check that a directory without a recipe may be begun in: it is empty, and there need not be a run in it.

    Raises:
        InputError: it holds something, or there must be something to resume.
    """
    if resume:
        raise InputError(f"{directory}: no {RECIPE}, so there is no run to resume")
    foreign = [path.name for path in directory.iterdir() if path.name != LOCK]
    if foreign:
        raise InputError(f"{directory}: holds '{foreign[0]}' but no {RECIPE}; expected a new or empty directory")


def require_same(directory: Path, changed: Sequence[str]) -> None:
    """Check that nothing has `changed` that decides what the run of a directory comes to.

    Raises:
        InputError: something has; names it.
    """
    if changed:
        raise InputError(
            f"{directory}: holds a run of another recipe (here, there): {'; '.join(changed)}. "
            "Give another --out, or --overwrite to delete that run"
        )


def remove_run(directory: Path) -> None:
    """Delete what a run of any family wrote but its recipe, and nothing else."""
    for pattern in WRITTEN:
        for path in directory.glob(pattern):
            with suppress(FileNotFoundError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
