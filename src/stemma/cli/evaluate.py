"""`stemma evaluate`: how well a model predicts a text, does its task, or, of word vectors, knows words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stemma.finetuning.recipe import DataRecipe
    from stemma.training.held_out import Evaluation

# Options that only one of the two evaluations has, with their defaults.
OF_TEXT: dict[str, Any] = {"field": "text", "documents": "file", "length": None, "batch_size": 8, "quantize": None}
OF_TASK: dict[str, Any] = {
    "text": "text",
    "pair": None,
    "label": "label",
    "source": "source",
    "target": "target",
    "question": None,
    "choices": "choices",
    "header": True,
    "quotes": True,
    "predictions": None,
}
_WORDS = "Of word vectors"
_TEXT, _TASK = "Of a language model", "Of a fine-tuned model"
_PREFERENCE = "Of preference (--task preference)"
_PROMPTED = "Of a task that stands in a prompt (--task FILE)"


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    corpus: Annotated[
        str,
        typer.Argument(
            help="File, folder, glob, '-', hf:owner/name, or 'python'; of a fine-tuned model labelled examples as "
            "`stemma finetune --train` takes them.",
            metavar="CORPUS",
        ),
    ] = "python",
    field: Annotated[
        str, typer.Option(help="Field of JSONL, CSV or Parquet rows that holds the text.", rich_help_panel=_TEXT)
    ] = OF_TEXT["field"],
    documents: Annotated[
        str, typer.Option(help="What a document is in text files: file, paragraph, line.", rich_help_panel=_TEXT)
    ] = OF_TEXT["documents"],
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens per window; default: the model's context.", rich_help_panel=_TEXT)
    ] = OF_TEXT["length"],
    batch_size: Annotated[int, typer.Option(min=1, help="Windows scored at once.", rich_help_panel=_TEXT)] = OF_TEXT[
        "batch_size"
    ],
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Score with weights in fewer bits too: int8, int4 or int4:64.",
            show_default="no",
            rich_help_panel=_TEXT,
        ),
    ] = OF_TEXT["quantize"],
    text: Annotated[str, typer.Option(help="Column with the text.", rich_help_panel=_TASK)] = OF_TASK["text"],
    pair: Annotated[
        str | None, typer.Option(help="Column with the second text of a pair.", rich_help_panel=_TASK)
    ] = OF_TASK["pair"],
    label: Annotated[str, typer.Option(help="Column with the label.", rich_help_panel=_TASK)] = OF_TASK["label"],
    source: Annotated[str, typer.Option(help="Of text: column with what is read.", rich_help_panel=_TASK)] = OF_TASK[
        "source"
    ],
    target: Annotated[
        str, typer.Option(help="Of text: column with what is to be written.", rich_help_panel=_TASK)
    ] = OF_TASK["target"],
    question: Annotated[
        str | None, typer.Option(help="Of choice: columns with the question, commas between.", rich_help_panel=_TASK)
    ] = OF_TASK["question"],
    choices: Annotated[
        str,
        typer.Option(
            help="Of choice: a column with a list of texts, or several, commas between.", rich_help_panel=_TASK
        ),
    ] = OF_TASK["choices"],
    header: Annotated[
        bool, typer.Option("--header/--no-header", help="CSV and TSV name their columns.", rich_help_panel=_TASK)
    ] = OF_TASK["header"],
    quotes: Annotated[
        bool, typer.Option("--quotes/--no-quotes", help="Quotes in CSV and TSV enclose.", rich_help_panel=_TASK)
    ] = OF_TASK["quotes"],
    predictions: Annotated[
        Path | None,
        typer.Option(help="Write each example with its prediction to this .jsonl or .csv.", rich_help_panel=_TASK),
    ] = OF_TASK["predictions"],
    analogies: Annotated[
        list[Path] | None,
        typer.Option(help="A file like questions-words.txt; may be repeated.", rich_help_panel=_WORDS),
    ] = None,
    similarity: Annotated[
        list[Path] | None,
        typer.Option(help="A file of word pairs and numbers; may be repeated.", rich_help_panel=_WORDS),
    ] = None,
    restrict: Annotated[
        int, typer.Option(min=1, help="Use the first so many words.", rich_help_panel=_WORDS)
    ] = 300_000,
    task: Annotated[
        str | None,
        typer.Option(
            help="preference: which model's responses are better; or a task file in lm-evaluation-harness's YAML.",
            rich_help_panel=_PREFERENCE,
        ),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=0, help="Solved examples in each prompt.", show_default="the file's", rich_help_panel=_PROMPTED
        ),
    ] = None,
    reasoning: Annotated[
        str,
        typer.Option(
            help="direct, few-shot, zero-shot (chain of thought) or least-to-most.", rich_help_panel=_PROMPTED
        ),
    ] = "direct",
    votes: Annotated[
        int, typer.Option(min=1, help="Answers that are drawn; the commonest counts.", rich_help_panel=_PROMPTED)
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for results.json and records.jsonl; the same command goes on with it.",
            rich_help_panel=_PROMPTED,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Of a MODEL that is an endpoint's URL: its name there.", rich_help_panel=_PROMPTED)
    ] = "model",
    against: Annotated[
        str,
        typer.Option(
            help="The other model; default: the responses in the file of prompts.", rich_help_panel=_PREFERENCE
        ),
    ] = "response",
    judge: Annotated[
        str | None,
        typer.Option(
            help="A reward model's directory, a function (module:function), or the URL of an OpenAI-compatible "
            "endpoint, which is asked in both orders.",
            rich_help_panel=_PREFERENCE,
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="What the judge is called at its endpoint.", rich_help_panel=_PREFERENCE)
    ] = None,
    longest: Annotated[int, typer.Option(min=1, help="Most tokens of a response.", rich_help_panel=_PREFERENCE)] = 128,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of the responses; 0: the likeliest tokens.", rich_help_panel=_PREFERENCE)
    ] = 1.0,
    most: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many prompts or questions.", rich_help_panel=_PREFERENCE)
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of responses, and of the draw of solved examples.", rich_help_panel=_PREFERENCE)
    ] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
) -> None:
    """Score a text by a language model, or labelled examples by a model that `stemma finetune` wrote; a Transformer
    translates examples without that.

    Of a text: loss, perplexity, and bits per byte, which can be compared between tokenizers. Every token of every
    document is scored once, with at least a quarter of a window of context where there is one. Of labelled examples:
    the metrics of the model's task. Of word vectors: analogies and the similarity of words. Of preference: how often
    the model's responses to the prompts of CORPUS are better than another's. Of a task file: how well the model does a
    task that stands in its prompt, with solved examples or none; MODEL may be an OpenAI-compatible endpoint's URL. Of
    images (digits, a folder for each
    class, MNIST's or CIFAR's files, hf:owner/name): the accuracy of each head and of both.

    Examples: [bold]stemma evaluate runs/tiny my-book.txt[/bold],
    [bold]stemma evaluate runs/finetune-bert/best test.csv --text sentence --predictions said.csv[/bold],
    [bold]stemma evaluate runs/de-en test.de,test.en[/bold],
    [bold]stemma evaluate vectors.bin --analogies questions-words.txt --similarity wordsim353.tsv[/bold],
    [bold]stemma evaluate runs/ppo prompts.jsonl --task preference --against runs/sft --judge runs/reward[/bold],
    [bold]stemma evaluate runs/book --task sums.yaml --shots 8 --reasoning few-shot --votes 40 --out runs/sums[/bold]
    """
    if analogies or similarity:
        from stemma.cli.vectors import evaluate_vectors

        evaluate_vectors(model, analogies or [], similarity or [], restrict, as_json)
        return
    if task is not None and Path(task).suffix in (".yaml", ".yml"):
        from stemma.cli.prompting import evaluate_task

        evaluate_task(model, name, Path(task), shots, reasoning, votes, most, seed, out, device, as_json)
        return
    if task is not None or judge is not None:
        from stemma.cli.preference import evaluate_preference
        from stemma.errors import InputError, closest

        if task != "preference":
            hint = closest(task or "", ["preference"]) or ", expected preference or a task file (.yaml)"
            raise InputError(f"--task {task}: no such evaluation{hint}")
        if judge is None:
            raise InputError("--task preference: who judges? Expected --judge too")
        evaluate_preference(
            model,
            corpus,
            against,
            judge,
            judge_model,
            longest=longest,
            temperature=temperature,
            most=most,
            seed=seed,
            device=device,
            as_json=as_json,
        )
        return
    from stemma.cli.images import evaluate_images, is_image_model
    from stemma.finetuning.evaluating import is_finetuned

    given = locals()
    if is_image_model(model):
        _refuse_options(given, {**OF_TEXT, **OF_TASK}, f"{model} reads images, and this option is of texts")
        evaluate_images(model, "digits" if corpus == "python" else corpus, device, as_json)
        return
    finetuned = is_finetuned(model)
    _refuse(model, given, OF_TEXT if finetuned else OF_TASK, finetuned)
    if finetuned:
        _of_task(model, corpus, _data(corpus, given), predictions, device, as_json)
    else:
        _of_text(model, corpus, {name: given[name] for name in OF_TEXT}, device, as_json)


def _refuse(model: str, given: dict[str, Any], others: dict[str, Any], finetuned: bool) -> None:
    """Raise InputError for an option that this evaluation does not have."""
    kind = "fine-tuned" if finetuned else "no fine-tuned model"
    of = "texts that a language model scores" if finetuned else "labelled examples"
    _refuse_options(given, others, f"{model} is {kind}, and this option is of {of}")


def _refuse_options(given: dict[str, Any], others: dict[str, Any], why: str) -> None:
    from stemma.errors import InputError

    wrong = next((name for name, default in others.items() if given[name] != default), None)
    if wrong is not None:
        raise InputError(f"--{wrong.replace('_', '-')}: {why}")


def _data(corpus: str, given: dict[str, Any]) -> "DataRecipe":
    from stemma.finetuning.recipe import DataRecipe

    return DataRecipe(train=corpus, **{name: given[name] for name in OF_TASK if name != "predictions"})


def _of_task(model: str, corpus: str, data: "DataRecipe", predictions: Path | None, device: str, as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.table import Table

    from stemma.cli.devices import device_named
    from stemma.finetuning.evaluating import check_predictions, evaluate, write_predictions
    from stemma.training.hardware import prepare_processor

    if predictions is not None:
        check_predictions(predictions)
    prepare_processor()
    found = evaluate(model, data, device=device_named(device))
    if predictions is not None:
        try:
            write_predictions(found, predictions)
        except OSError as error:
            typer.echo(f"error: --predictions {predictions}: {error.strerror or error}", err=True)
            raise typer.Exit(1) from error
    metrics = dict(found.reached.metrics)
    summary: dict[str, Any] = {"model": model, "corpus": corpus, "task": found.task.kind}
    summary |= {"examples": found.reached.examples, "loss": found.reached.loss, "metrics": metrics}
    if found.majority is not None:
        summary["majority"] = found.majority
    if found.signatures:
        summary["signatures"] = found.signatures
    if predictions is not None:
        summary["predictions"] = str(predictions)
    if as_json:
        print(json.dumps(summary))
        return
    console = Console()
    table = Table(title=f"{model} on {corpus}: {found.task.kind}", title_justify="left")
    numbers = metrics | ({} if found.majority is None else {"majority": found.majority}) | {"loss": summary["loss"]}
    for name in ("examples", *numbers):
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(f"{found.reached.examples:,}", *(f"{number:.4f}" for number in numbers.values()))
    console.print(table)
    for name, signature in found.signatures.items():
        console.print(f"{name}: {signature}", highlight=False, markup=False, soft_wrap=True)
    if predictions is not None:
        console.print(f"predictions: {predictions}", highlight=False, markup=False, soft_wrap=True)


def _of_text(model: str, corpus: str, options: dict[str, Any], device: str, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from stemma.cli.devices import device_named
    from stemma.data.corpora import CorpusSource
    from stemma.data.tokenizers import load_tokenizer
    from stemma.evaluation.likelihood import score_text
    from stemma.families import load
    from stemma.inference.quantization import Kind, quantize_
    from stemma.training.hardware import prepare_processor

    kind = options["quantize"]
    if kind is not None:
        Kind.named(kind)  # a wrong one is told before the model is loaded
    prepare_processor()
    network, tokenizer = load(model, device=device_named(device)), load_tokenizer(model)
    source = CorpusSource(corpus, field=options["field"], documents=options["documents"], held_out=0.0)
    how = {"length": options["length"], "batch_size": options["batch_size"]}
    result = score_text(network, tokenizer, source, **how)
    rounded = None if kind is None else score_text(quantize_(network, kind), tokenizer, source, **how)
    if as_json:
        summary = {"model": model, "corpus": corpus, **asdict(result)}
        print(json.dumps(summary if rounded is None else {**summary, "quantize": kind, "quantized": asdict(rounded)}))
        return
    print(f"{Path(model).name} on {corpus}: {result.targets:,} tokens")
    print(f"  loss {result.loss:.4f} nats a token, perplexity {result.perplexity:.2f}")
    if result.bits_per_byte is not None:
        print(f"  {result.bits_per_byte:.4f} bits per byte")
    for name, value in (result.parts or {}).items():
        print(f"  {name.replace('_', ' ')} {value:.4f}")
    if rounded is not None:
        print(f"  {kind}: {_change(result, rounded)}")


def _change(before: "Evaluation", after: "Evaluation") -> str:
    """What became of a loss, in bits per byte if there are any."""
    if before.bits_per_byte is None or after.bits_per_byte is None:
        return f"loss {before.loss:.4f} -> {after.loss:.4f} nats a token"
    return f"{before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f} bits per byte"
