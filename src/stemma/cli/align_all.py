"""`stemma align all`: from a pretrained model to one that answers, in one command."""

import json
from pathlib import Path
from typing import Annotated

import typer


def align_all(
    model: Annotated[
        str, typer.Argument(help="A pretrained model: a checkpoint directory or a hub id.", metavar="MODEL")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Any key of the recipe, e.g. ppo.training.steps=200."),
    ] = None,
    demonstrations: Annotated[
        str | None, typer.Option(help="As --train of align sft; default: a task about Python's library.")
    ] = None,
    comparisons: Annotated[
        str | None, typer.Option(help="As --train of align reward; default: made on the way, for that task.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="As of align ppo; default: those of the demonstrations.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe, shipped or a file.")] = "instruct/tiny",
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write: sft, reward and ppo.")] = Path(
        "runs/instruct"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete that run and begin anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; the rest goes to stderr.")] = False,
) -> None:
    """Demonstrations, a reward model and PPO, one after the other: InstructGPT's three steps.

    Without data it is taught to say what a function of Python's library does. The same command again goes on where it
    stopped. OUT/ppo is the result.

    Example: [bold]stemma align all runs/gpt --out runs/instruct[/bold], then
    [bold]stemma serve runs/instruct/ppo[/bold]
    """
    from rich.console import Console

    from stemma.alignment.curves import CurvesDisplay
    from stemma.alignment.instruct import PPO, instruct_recipe
    from stemma.alignment.instruct import align_all as run
    from stemma.training.progress import ConsoleDisplay

    settings = instruct_recipe(
        recipe,
        model,
        out,
        demonstrations=demonstrations,
        comparisons=comparisons,
        prompts=prompts,
        overrides=overrides or [],
    )
    console = Console(stderr=as_json)
    found = run(settings, out, overwrite=overwrite, display=ConsoleDisplay(console), curves=CurvesDisplay(console))
    if found.signal is not None:
        console.print("saved; the same command again goes on from here", highlight=False)
        raise typer.Exit(128 + found.signal)
    assert found.sft is not None and found.reward is not None and found.ppo is not None
    standing = found.ppo.standing
    numbers = {
        "held_out_loss": found.sft["held_out"]["loss"],
        "reward_accuracy": found.reward.accuracy.estimate,
        "first_held_out_reward": standing.first_held_out_reward,
        "held_out_reward": standing.held_out_reward,
    }
    if as_json:
        print(json.dumps({"out": str(out / PPO), **numbers}))
        return
    for name, value in numbers.items():
        console.print(f"{name.replace('_', ' '):22} {value:.4f}", highlight=False)
    console.print(f"next: stemma serve {out / PPO}", highlight=False, markup=False, soft_wrap=True)
