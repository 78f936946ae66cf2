"""`stemma align`: from demonstrations, comparisons and rewards to a model that does what people want."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.align_all import align_all
from stemma.cli.align_rewards import docstrings, grpo, ppo
from stemma.cli.stages import (
    AsJSON,
    Overrides,
    Overwrite,
    RecipeName,
    Template,
    console_of,
    display_on,
    finish,
    keys_given,
)

if TYPE_CHECKING:
    from rich.console import Console

    from stemma.alignment.reward_report import RewardReport

app = typer.Typer(
    help="Align a model with what people want: demonstrations, comparisons, rewards.\n\n"
    "Example: [bold]stemma align sft runs/book --train instructions.jsonl --out runs/sft[/bold], then "
    "[bold]stemma align reward runs/sft --train comparisons.jsonl --out runs/reward[/bold].",
)

Model = Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")]
Dev = Annotated[
    str | None, typer.Option(help="Held-out data: another file or data set, or a share of --train; default: 0.05.")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; default: runs/STAGE-MODEL.")]
_DATA = "JSONL, CSV, Parquet, a folder, or hf:owner/name[:config][:split]"
_PAIRS = (
    f"Comparisons: {_DATA}. Rows have prompt, chosen, rejected; or chosen and rejected conversations (messages or "
    "Anthropic's transcripts); or prompt, responses and ranks."
)


@app.command()
def sft(
    model: Model,
    overrides: Overrides = None,
    train: Annotated[
        str,
        typer.Option(help=f"Demonstrations: {_DATA}. Rows have prompt and response, or messages."),
    ] = ...,  # type: ignore[assignment]
    dev: Dev = None,
    prompt: Annotated[str | None, typer.Option(help="Column with what is asked; default: prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="Column with the answer; default: response.")] = None,
    messages: Annotated[str | None, typer.Option(help="Column with a conversation; default: messages.")] = None,
    loss_on: Annotated[
        str | None, typer.Option("--loss-on", help="response (the assistant's words, the default), or all tokens.")
    ] = None,
    template: Template = None,
    recipe_name: RecipeName = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJSON = False,
) -> None:
    """Teach a model from demonstrations: only what the assistant says is learned, and where it ends.

    GPT, Mistral, Mixtral, GLM and T5. The same command again goes on where a run stopped.

    Example: [bold]stemma align sft runs/book --train instructions.jsonl --prompt instruction --response output[/bold]
    """
    from stemma.alignment.recipe import SFTRecipe, build_recipe
    from stemma.alignment.sft import tune

    data = {"prompt": prompt, "response": response, "messages": messages}
    given = keys_given(model, train, dev, template, data, {"loss_on": loss_on})
    recipe = build_recipe(SFTRecipe, _recipe(recipe_name, "sft", model), given, overrides or [])
    directory, console = _directory(out, "sft", model), console_of(as_json)
    outcome, results = tune(recipe, directory, overwrite=overwrite, display=display_on(console))
    finish(outcome, results, directory, console, as_json, f"next: stemma chat {directory}")


@app.command()
def reward(
    model: Model,
    overrides: Overrides = None,
    train: Annotated[str, typer.Option(help=_PAIRS)] = ...,  # type: ignore[assignment]
    dev: Dev = None,
    demonstrations: Annotated[
        str | None,
        typer.Option(help="Dialogues whose mean reward becomes 0; default: the best responses of --train."),
    ] = None,
    template: Template = None,
    recipe_name: RecipeName = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJSON = False,
) -> None:
    """Train a reward model from comparisons, and say whether it can be trusted.

    All pairs of one prompt are one element of the batch (InstructGPT's loss); one epoch.

    Example: [bold]stemma align reward runs/sft --train comparisons.jsonl --out runs/reward[/bold]
    """
    from stemma.alignment.recipe import RewardRecipe, build_recipe
    from stemma.alignment.reward import train_reward_model

    given = keys_given(model, train, dev, template, {}, {"demonstrations": demonstrations})
    recipe = build_recipe(RewardRecipe, _recipe(recipe_name, "reward", model), given, overrides or [])
    directory, console = _directory(out, "reward", model), console_of(as_json)
    outcome, found = train_reward_model(recipe, directory, overwrite=overwrite, display=display_on(console))
    if found is not None and not as_json:
        _show_report(found, console)
    results = None if found is None else found.as_dict()
    finish(outcome, results, directory, console, as_json, f"next: stemma align score {directory} responses.jsonl")


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="A reward model.", metavar="MODEL")],
    file: Annotated[
        str | None,
        typer.Argument(
            help=f"{_DATA}. Rows have prompt and response, prompt and responses (a list), or messages.", metavar="FILE"
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Column with the prompt, default: prompt; without FILE the prompt itself.")
    ] = None,
    response: Annotated[
        list[str] | None,
        typer.Option(help="Column with the response; without FILE a response itself, once for each."),
    ] = None,
    responses: Annotated[str, typer.Option(help="Column with a list of responses.")] = "responses",
    messages: Annotated[str, typer.Option(help="Column with a conversation.")] = "messages",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSONL to write: the rows with their rewards.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
) -> None:
    """Rank responses by their rewards, the best first.

    Example: [bold]stemma align score runs/reward --prompt 'Who are you?' --response 'A model.' --response Go[/bold],
    or [bold]stemma align score runs/reward responses.jsonl --out scored.jsonl[/bold]
    """
    import json

    from stemma.alignment.score import Responses, Scorer, read_responses, scored
    from stemma.cli.devices import device_named
    from stemma.errors import InputError
    from stemma.files import write_whole
    from stemma.training.hardware import prepare_processor

    if file is None:
        if prompt is None or not response:
            raise InputError("nothing to score: expected a FILE, or --prompt and --response with texts")
        rows = [Responses(prompt, response, {"prompt": prompt, "responses": response})]
    else:
        column = response[0] if response else "response"
        rows = list(
            read_responses(file, prompt=prompt or "prompt", response=column, responses=responses, messages=messages)
        )
        if not rows:
            raise InputError(f"{file}: no rows; expected at least one response")
    prepare_processor()
    rewards = scored(Scorer(model, device=device_named(device)), rows)
    content = [
        {**row.row, "rewards": found} if len(found) > 1 else {**row.row, "reward": found[0]}
        for row, found in zip(rows, rewards, strict=True)
    ]
    if out is not None:
        with write_whole(out) as temporary:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
            temporary.write_text("".join(lines), encoding="utf-8")
    if as_json:
        print(json.dumps({"rows": content} if out is None else {"out": str(out), "rows": len(content)}))
        return
    ranked = [
        (value, number, text)
        for number, (row, found) in enumerate(zip(rows, rewards, strict=True), 1)
        for text, value in zip(row.responses, found, strict=True)
    ]
    _show_ranking(sorted(ranked, key=lambda one: -one[0]), len(rows))


def _show_ranking(ranked: list[tuple[float, int, str]], rows: int, most: int = 20) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(ranked):,} responses, the best first", title_justify="left")
    for name in ("reward", *(["row"] if rows > 1 else []), "response"):
        table.add_column(name, justify="left" if name == "response" else "right", no_wrap=True, overflow="ellipsis")
    # The middle of a long list says little.
    shown = ranked if len(ranked) <= most else [*ranked[: most // 2], None, *ranked[-most // 2 :]]
    for one in shown:
        cells = ("...", "...", "...") if one is None else (f"{one[0]:.3f}", str(one[1]), " ".join(one[2].split()))
        table.add_row(cells[0], *([cells[1]] if rows > 1 else []), Text(cells[2]))
    Console().print(table)


@app.command()
def dpo(
    model: Model,
    overrides: Overrides = None,
    train: Annotated[str, typer.Option(help=_PAIRS)] = ...,  # type: ignore[assignment]
    dev: Dev = None,
    beta: Annotated[float | None, typer.Option(help="How much the model is held to what it was; default: 0.1.")] = None,
    loss: Annotated[str | None, typer.Option(help="sigmoid (DPO, the default) or ipo.")] = None,
    template: Template = None,
    recipe_name: RecipeName = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJSON = False,
) -> None:
    """Align a model directly with comparisons, without a reward model.

    Watch chosen gain: the log-probability of the better responses may fall while the loss does.

    Example: [bold]stemma align dpo runs/sft --train comparisons.jsonl --out runs/dpo[/bold]
    """
    from stemma.alignment.dpo import optimise
    from stemma.alignment.recipe import DPORecipe, build_recipe

    given = keys_given(model, train, dev, template, {}, {"beta": beta, "loss": loss})
    recipe = build_recipe(DPORecipe, _recipe(recipe_name, "dpo", model), given, overrides or [])
    directory, console = _directory(out, "dpo", model), console_of(as_json)
    outcome, results = optimise(recipe, directory, overwrite=overwrite, display=display_on(console))
    finish(outcome, results, directory, console, as_json, f"next: stemma chat {directory}")


app.command()(ppo)
app.command()(grpo)
app.command()(docstrings)
app.command("all")(align_all)


def _recipe(name: str | None, stage: str, model: str) -> str:
    """Return the recipe's name: as asked for, else by the size of the model."""
    from stemma.alignment.recipe import SMALL_MODEL
    from stemma.finetuning.run import family_and_size

    if name is not None:
        return name
    return f"align/{stage}-tiny" if family_and_size(model)[1] < SMALL_MODEL else f"align/{stage}"


def _directory(out: Path | None, stage: str, model: str) -> Path:
    return out or Path("runs") / f"{stage}-{Path(model).name}"


def _show_report(found: "RewardReport", console: "Console") -> None:
    from rich.table import Table

    table = Table(title=f"held out: {found.pairs:,} pairs of {found.prompts:,} prompts", title_justify="left")
    table.add_column("")
    table.add_column("reward model", justify="right")
    table.add_column("longer wins", justify="right")
    table.add_row("accuracy", _interval(found.accuracy), f"{found.longer_wins:.3f}")
    alike = "-" if found.accuracy_alike is None else _interval(found.accuracy_alike)
    table.add_row("... of pairs alike in length", alike, "-")
    table.add_row("calibration error", f"{found.calibration_error:.3f}", "-")
    table.add_row("correlation with length", f"{found.length_correlation:.3f}", "-")
    console.print(table)
    for sure, right, count in found.calibration:
        console.print(f"  {100 * sure:.0f} % sure: {100 * right:.0f} % right, {count:,} pairs", highlight=False)


def _interval(interval: Any) -> str:
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
