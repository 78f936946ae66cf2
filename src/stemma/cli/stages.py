"""What the commands of runs that train a model share: options, the display, what is said at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stemma.training.trainer import Outcome

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any key of the recipe, e.g. training.lr=1e-5.")
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="Recipe file or shipped name; default: by the model's size.")
]
Template = Annotated[
    Path | None, typer.Option(help="Jinja chat template of conversations; default: the model's own, or a plain one.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run that is there and begin anew.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON; the rest goes to stderr.")]


def keys_given(
    model: str,
    train: str,
    dev: str | None,
    template: Path | None,
    data: Mapping[str, Any],
    objective: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the keys of a recipe that the options give."""
    shared = {"train": train, "dev": _number_or_text(dev), "template": None if template is None else str(template)}
    return {"model": model, "data": {**shared, **data}, "objective": objective}


def _number_or_text(value: str | None) -> str | float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return value


def console_of(as_json: bool) -> "Console":
    """Return where a person reads: standard error where standard output is for JSON."""
    from rich.console import Console

    return Console(stderr=as_json)


def display_on(console: "Console") -> Any:
    """Return the live display of a training."""
    from stemma.training.progress import ConsoleDisplay

    return ConsoleDisplay(console)


def finish(
    outcome: "Outcome",
    results: Mapping[str, Any] | None,
    directory: Path,
    console: "Console",
    as_json: bool,
    following: str,
) -> None:
    """Print how a run ended, and where its weights are."""
    import json

    if as_json:
        print(json.dumps({"reason": outcome.reason, "out": str(directory), **(results or {})}))
    elif results is None:
        console.print("saved; the same command again goes on from here", highlight=False)
    else:
        best = outcome.progress.best_step
        numbers = [f"{name.replace('_', ' ')} {value:.5g}" for name, value in results.get("held_out", {}).items()]
        ended = f"{outcome.reason} after {outcome.progress.step:,} steps"
        console.print(ended + (f"; held out: {', '.join(numbers)}" if numbers else ""), highlight=False)
        console.print(
            f"weights: {directory}; lowest held-out loss, of step {best:,}: {directory / 'best'}",
            soft_wrap=True,
            highlight=False,
        )
        console.print(following, highlight=False, soft_wrap=True)
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)
