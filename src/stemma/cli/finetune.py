"""`stemma finetune`: teach a pretrained model a task from labelled examples."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stemma.training.trainer import Outcome


def finetune(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any key of the recipe, e.g. training.lr=3e-4.")
    ] = None,
    train: Annotated[
        str,
        typer.Option(
            help="Labelled examples: CSV, TSV, JSONL, Parquet, or .txt with a label first on each line; of tagging, "
            "CoNLL's columns; of text also two files of lines, SOURCE,TARGET; of answering SQuAD's JSON. Or a data "
            "set: hf:owner/name[:config][:split], or a folder (of save_to_disk, or of Parquet) [:split]."
        ),
    ] = ...,  # type: ignore[assignment]
    dev: Annotated[
        str | None, typer.Option(help="Examples to choose the best weights by; default: 10 % of train.")
    ] = None,
    test: Annotated[str | None, typer.Option(help="Examples to report on, looked at once, at the end.")] = None,
    task: Annotated[
        str, typer.Option(help="classification, regression, tagging, text, choice or answering.")
    ] = "classification",
    text: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    pair: Annotated[str | None, typer.Option(help="Column with the second text of a pair.")] = None,
    label: Annotated[str, typer.Option(help="Column with the label.")] = "label",
    source: Annotated[str, typer.Option(help="Of text: column with what is read.")] = "source",
    target: Annotated[str, typer.Option(help="Of text: column with what is to be written.")] = "target",
    question: Annotated[
        str | None, typer.Option(help="Of choice: columns with the question, commas between; default: none.")
    ] = None,
    choices: Annotated[
        str, typer.Option(help="Of choice: a column with a list of texts, or several columns, commas between.")
    ] = "choices",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write; default: runs/finetune-MODEL.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that is there and begin anew.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; the rest goes to stderr.")] = False,
) -> None:
    """Fine-tune a model on labelled examples, each family in its own way; the best weights by the metric are kept.

    BERT, GPT and LSTM get an output layer, GLM answers a cloze question, T5 writes the label. Tags are an output
    layer's everywhere. Texts are written by GPT, T5, GLM and UniLM. Options are scored by an output layer, by GLM and
    T5 by their likelihood. Answers are pointed at, by GLM and T5 written. The same command again goes on where a run
    stopped.

    A ViT goes on with images, at a higher resolution with model.image_size=384.

    Example: stemma finetune runs/bert --train train.csv --dev dev.csv --text sentence --label label,
    or --train hf:nyu-mll/glue:rte --dev hf:nyu-mll/glue:rte:validation --text sentence1 --pair sentence2
    """
    from rich.console import Console

    from stemma.cli.images import continue_images, is_image_model
    from stemma.finetuning.recipe import build_recipe
    from stemma.finetuning.run import family_and_size, read_splits
    from stemma.finetuning.run import finetune as run
    from stemma.training.progress import ConsoleDisplay

    if is_image_model(model):
        directory = out or Path("runs") / f"finetune-{Path(model).name}"
        continue_images(model, train, dev, overrides or [], directory, overwrite, as_json)
        return
    given: dict[str, Any] = {
        "model": model,
        "task": {"kind": task},
        "data": {
            "train": train,
            "text": text,
            "pair": pair,
            "label": label,
            "source": source,
            "target": target,
            "question": question,
            "choices": choices,
            "test": test,
        },
    }
    if dev is not None:
        given["data"]["dev"] = dev
    directory = out or Path("runs") / f"finetune-{Path(model).name}"
    console = Console(stderr=as_json)
    family, parameters = family_and_size(model)
    draft = build_recipe(given, overrides or [], family=family, parameters=parameters, examples=1 << 60)
    splits = read_splits(draft)
    recipe = build_recipe(given, overrides or [], family=family, parameters=parameters, examples=len(splits.train))
    display = ConsoleDisplay(console)
    outcome, results = run(recipe, directory, splits=splits, overwrite=overwrite, display=display)
    report(outcome, results, directory, console, as_json)
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


def report(
    outcome: "Outcome", results: dict[str, Any] | None, directory: Path, console: "Console", as_json: bool
) -> None:
    """Print what a run reached."""
    from rich.table import Table

    if as_json:
        print(json.dumps({"reason": outcome.reason, "out": str(directory), **(results or {})}))
        return
    if results is None:
        console.print("saved; the same command again goes on from here", highlight=False)
        return
    table = Table(title=f"{outcome.reason}: the weights of step {results['best_step']:,}", title_justify="left")
    parts = [name for name in ("dev", "test") if name in results]
    names = list(results[parts[0]]["metrics"])
    table.add_column("examples")
    for name in [*names, *(["majority"] if "majority" in results[parts[0]] else []), "loss"]:
        table.add_column(name.replace("_", " "), justify="right")
    for part in parts:
        numbers = [results[part]["metrics"][name] for name in names]
        numbers += [results[part][name] for name in ("majority", "loss") if name in results[part]]
        table.add_row(f"{part}: {results[part]['examples']:,}", *(f"{number:.4f}" for number in numbers))
    console.print(table)
    for name, signature in results.get("signatures", {}).items():
        console.print(f"{name}: {signature}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"best weights: {directory / 'best'}", highlight=False, soft_wrap=True)
