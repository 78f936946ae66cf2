"""`stemma align ppo`, `grpo` and `docstrings`: learning from rewards, and a task to try it on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stemma.alignment.reinforcement_recipe import ReinforcementRecipe

_MODEL = typer.Argument(help="The policy to begin with: a checkpoint directory or a hub id.", metavar="MODEL")
_OVERRIDES = typer.Argument(metavar="KEY=VALUE", help="Any key of the recipe, e.g. training.lr=1e-5.")
_PROMPTS = typer.Option(help="JSONL, CSV or Parquet with a 'prompt' in each row, or hf:owner/name.")
_REWARD = typer.Option(help="A reward model's directory, or a function: module:function or file.py:function.")
_RECIPE = typer.Option(help="A recipe, shipped or a file; default: the one for models of this size.")
_OUT = typer.Option("--out", "-o", help="Where to write.")
_OVERWRITE = typer.Option("--overwrite", help="Delete the run that is there and begin anew.")
_JSON = typer.Option("--json", help="Print the result as JSON; the rest goes to stderr.")


def ppo(
    model: Annotated[str, _MODEL],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    prompts: Annotated[str, _PROMPTS] = ...,  # type: ignore[assignment]
    reward: Annotated[str, _REWARD] = ...,  # type: ignore[assignment]
    recipe: Annotated[str | None, _RECIPE] = None,
    out: Annotated[Path, _OUT] = Path("runs/ppo"),
    overwrite: Annotated[bool, _OVERWRITE] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Let a model write, have it judged, and make what is judged well likelier (PPO, PPO-ptx).

    Values begin as the reward model, or, with a function, as the policy. pretraining.coefficient=1 mixes the gradients
    of pretraining in. The same command again goes on where a run stopped.

    Example: [bold]stemma align ppo runs/sft --prompts prompts.jsonl --reward runs/reward --out runs/ppo[/bold],
    or [bold]--reward my_check.py:reward[/bold], a function from episodes to numbers.
    """
    from stemma.alignment.reinforcement_recipe import PPORecipe

    _run(PPORecipe, "ppo", locals())


def grpo(
    model: Annotated[str, _MODEL],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    prompts: Annotated[str, _PROMPTS] = ...,  # type: ignore[assignment]
    reward: Annotated[str, _REWARD] = ...,  # type: ignore[assignment]
    recipe: Annotated[str | None, _RECIPE] = None,
    out: Annotated[Path, _OUT] = Path("runs/grpo"),
    overwrite: Annotated[bool, _OVERWRITE] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Let a model answer each prompt several times, and make the better answers likelier (GRPO).

    Example: [bold]stemma align grpo runs/sft --prompts sums.jsonl
    --reward stemma.alignment.rewards:exact_answer --out runs/grpo[/bold]
    """
    from stemma.alignment.reinforcement_recipe import GRPORecipe

    _run(GRPORecipe, "grpo", locals())


def docstrings(
    out: Annotated[Path, typer.Argument(help="The folder to write to.", metavar="FOLDER")],
    sampled_from: Annotated[
        str | None,
        typer.Option(
            help="A model whose responses are ranked, for a reward model: comparisons.jsonl.", metavar="MODEL"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Responses to a prompt that are ranked.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of these.")] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are what a user says in a conversation.")] = False,
) -> None:
    """Write a task that needs no data: to say what a function of Python's library does, with a true reward.

    train.jsonl and held_out.jsonl have a prompt and a response a row, from the Python that runs this.

    Example: [bold]stemma align docstrings task[/bold], [bold]stemma align sft runs/gpt --train task/train.jsonl[/bold],
    [bold]stemma align ppo runs/sft --prompts task/train.jsonl
    --reward stemma.alignment.docstring_task:true_reward[/bold]
    """
    from stemma.alignment.docstring_data import write_comparisons, write_task

    for path, count in write_task(out, chat=chat).items():
        print(f"{path}: {count:,} rows")
    if sampled_from is not None:
        path, count = write_comparisons(out, sampled_from, samples=samples, seed=seed)
        print(f"{path}: {count:,} prompts with {samples} ranked responses")


def _run(kind: "type[ReinforcementRecipe]", name: str, given: dict[str, Any]) -> None:
    from rich.console import Console

    from stemma.alignment.curves import CurvesDisplay
    from stemma.alignment.recipe import SMALL_MODEL, build_recipe
    from stemma.alignment.reinforce import reinforce
    from stemma.finetuning.run import family_and_size

    path = given["recipe"]
    if path is None:
        path = f"align/{name}-tiny" if family_and_size(given["model"])[1] < SMALL_MODEL else f"align/{name}"
    wanted = {"prompts": {"source": given["prompts"]}, "reward": {"source": given["reward"]}}
    recipe = build_recipe(kind, path, {"model": given["model"], **wanted}, given["overrides"] or [])
    console = Console(stderr=given["as_json"])
    ended = reinforce(recipe, given["out"], overwrite=given["overwrite"], display=CurvesDisplay(console))
    standing = ended.standing
    numbers = {
        "steps": standing.step,
        "held_out_reward": standing.held_out_reward,
        "first_held_out_reward": standing.first_held_out_reward,
    }
    if given["as_json"]:
        print(json.dumps({"reason": ended.reason, "out": str(given["out"]), **numbers}))
    elif ended.signal is not None:
        console.print("saved; the same command again goes on from here", highlight=False)
    else:
        first, last = standing.first_held_out_reward, standing.held_out_reward
        console.print(f"{ended.reason}: held-out reward {first:.4f} -> {last:.4f}", highlight=False)
        console.print(f"policy: {given['out']}", highlight=False, markup=False, soft_wrap=True)
    if ended.signal is not None:
        raise typer.Exit(128 + ended.signal)
