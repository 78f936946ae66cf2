"""`stemma pretrain`: train a model from raw text."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stemma.training.trainer import Outcome

# What a trained model is good for, by family; where nothing else is said it writes on.
_WRITE_ON = 'stemma generate {} --prompt "The "'
_NEXT = {
    "bert": 'stemma fill {} "The [MASK]."',
    "unilm": 'stemma fill {} "The [MASK]."',
    "t5": 'stemma fill {} "The [MASK]."',
    "glm": 'stemma fill {} "The [gMASK]"',
    "transformer": 'stemma generate {} --beams 4 --length-penalty 0.6 --prompt "a source"',
    "elmo": "stemma embed {} sentences.txt --out vectors.hdf5",
}


def pretrain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe such as gpt/tiny, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any key of the recipe, e.g. training.lr=3e-4.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; default: runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on going on with a run that is there.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that is there and begin anew.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Prepare the corpus, show what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; the rest goes to stderr.")] = False,
) -> None:
    """Train a model from raw text, or from images with their classes, with a recipe.

    The same command again goes on where a run stopped, however it stopped. Several GPUs or processes:
    torchrun --standalone --nproc-per-node 2 --no-python stemma pretrain ...

    Example: stemma pretrain gpt/tiny data.source=book.txt training.steps=200 --out runs/book,
    or, of pairs of texts, stemma pretrain transformer/tiny data.source=train.de,train.en data.held_out=dev.de,dev.en,
    or, of images with their classes, stemma pretrain vit/tiny data.source=digits
    """
    from rich.console import Console

    from stemma.errors import InputError
    from stemma.training.distributed import is_main
    from stemma.training.image_recipe import load_image_recipe
    from stemma.training.pretrain import prepare_run, summary_lines
    from stemma.training.pretrain import pretrain as run
    from stemma.training.progress import ConsoleDisplay
    from stemma.training.recipe import load_recipe
    from stemma.training.vector_recipe import load_vector_recipe

    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    vectors = load_vector_recipe(recipe, overrides or [])
    directory = out or Path("runs") / recipe.removesuffix(".yaml").strip("./").replace("/", "-")
    console = Console(stderr=as_json)
    display = ConsoleDisplay(console)
    if vectors is not None:
        from stemma.cli.vectors import pretrain_vectors

        pretrain_vectors(vectors, directory, display, resume, overwrite, dry_run, as_json)
        return
    images = load_image_recipe(recipe, overrides or [])
    if images is not None:
        from stemma.cli.images import train_images

        train_images(images, directory, display, resume, overwrite, dry_run, as_json)
        return
    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        prepared = prepare_run(loaded, display=display)
        for line in summary_lines(prepared):
            display.say(line)
        if as_json:
            print(json.dumps(prepared.summary))
        return
    outcome = run(loaded, directory, resume=resume, overwrite=overwrite, display=display)
    if is_main():
        report(outcome, directory, console, as_json, _NEXT.get(loaded.family, _WRITE_ON))
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


def report(outcome: "Outcome", directory: Path, console: "Console", as_json: bool, following: str) -> None:
    """Print how a run ended, and `following`, what to do next with the directory, {}."""
    from rich.table import Table

    from stemma.training.progress import duration, quantity

    progress = outcome.progress
    if as_json:
        result = asdict(progress)
        del result["window"]
        print(json.dumps({"reason": outcome.reason, "steps": outcome.steps, "out": str(directory), **result}))
        return
    table = Table(title=f"{outcome.reason} after {progress.step:,} of {outcome.steps:,} steps", title_justify="left")
    for name in ("tokens", "time", "held-out loss", "perplexity", "bits per byte", "best step"):
        table.add_column(name, justify="right")
    held_out = progress.evaluation or {}
    numbers = [held_out.get("loss"), held_out.get("perplexity"), held_out.get("bits_per_byte")]
    table.add_row(
        quantity(progress.tokens),
        duration(progress.seconds),
        *("" if number is None else f"{number:.4g}" for number in numbers),
        "" if progress.best_step is None else f"{progress.best_step:,}",
    )
    console.print(table)
    if outcome.reason == "interrupted":
        console.print("saved; the same command again goes on from here", highlight=False)
    else:
        console.print(f"next: {following.format(directory)}", highlight=False, markup=False, soft_wrap=True)
