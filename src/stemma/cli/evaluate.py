"""`stemma evaluate`: how well a model predicts a text, does its task, or, of word vectors, knows words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stemma.data.corpora import CorpusSource
    from stemma.finetuning.recipe import DataRecipe
    from stemma.training.held_out import Evaluation

# Panels of options; each evaluation refuses those of the others.
_WORDS = "Of word vectors"
_TEXT, _TASK = "Of a language model", "Of a fine-tuned model"
_PREFERENCE = "Of preference (--task preference)"
_PROMPTED = "Of a task that stands in a prompt (--task FILE)"
_ASKED = "Of preference and of a task that stands in a prompt"


def evaluate(
    context: typer.Context,
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
    ] = "text",
    documents: Annotated[
        str, typer.Option(help="What a document is in text files: file, paragraph, line.", rich_help_panel=_TEXT)
    ] = "file",
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens per window; default: the model's context.", rich_help_panel=_TEXT)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows scored at once.", rich_help_panel=_TEXT)] = 8,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="Score with weights in fewer bits too: int8, int4 or int4:64.",
            show_default="no",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    text: Annotated[str, typer.Option(help="Column with the text.", rich_help_panel=_TASK)] = "text",
    pair: Annotated[
        str | None, typer.Option(help="Column with the second text of a pair.", rich_help_panel=_TASK)
    ] = None,
    label: Annotated[str, typer.Option(help="Column with the label.", rich_help_panel=_TASK)] = "label",
    source: Annotated[str, typer.Option(help="Of text: column with what is read.", rich_help_panel=_TASK)] = "source",
    target: Annotated[
        str, typer.Option(help="Of text: column with what is to be written.", rich_help_panel=_TASK)
    ] = "target",
    question: Annotated[
        str | None, typer.Option(help="Of choice: columns with the question, commas between.", rich_help_panel=_TASK)
    ] = None,
    choices: Annotated[
        str,
        typer.Option(
            help="Of choice: a column with a list of texts, or several, commas between.", rich_help_panel=_TASK
        ),
    ] = "choices",
    header: Annotated[
        bool, typer.Option("--header/--no-header", help="CSV and TSV name their columns.", rich_help_panel=_TASK)
    ] = True,
    quotes: Annotated[
        bool, typer.Option("--quotes/--no-quotes", help="Quotes in CSV and TSV enclose.", rich_help_panel=_TASK)
    ] = True,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Write each example with its prediction to this .jsonl or .csv.", rich_help_panel=_TASK),
    ] = None,
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
            rich_help_panel=_ASKED,
        ),
    ] = None,
    shots: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            help="Solved examples in each prompt; repeatable, to compare.",
            show_default="the file's",
            rich_help_panel=_PROMPTED,
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
        int | None, typer.Option(min=1, help="Use the first so many prompts or questions.", rich_help_panel=_ASKED)
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of responses, and of the draw of solved examples.", rich_help_panel=_ASKED)
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
    images (digits, a folder for each class, MNIST's or CIFAR's files, hf:owner/name): the accuracy of each head and of
    both.

    Examples: [bold]stemma evaluate runs/tiny my-book.txt[/bold],
    [bold]stemma evaluate runs/finetune-bert/best test.csv --text sentence --predictions said.csv[/bold],
    [bold]stemma evaluate runs/de-en test.de,test.en[/bold],
    [bold]stemma evaluate vectors.bin --analogies questions-words.txt --similarity wordsim353.tsv[/bold],
    [bold]stemma evaluate runs/ppo prompts.jsonl --task preference --against runs/sft --judge runs/reward[/bold],
    [bold]stemma evaluate runs/book --task sums.yaml --shots 8 --reasoning few-shot --votes 40 --out runs/sums[/bold]
    """
    if analogies or similarity:
        from stemma.cli.vectors import evaluate_vectors

        _refuse(context, "--analogies and --similarity are of word vectors", _WORDS, reads_corpus=False)
        evaluate_vectors(model, analogies or [], similarity or [], restrict, as_json)
        return
    if task is not None and Path(task).suffix in (".yaml", ".yml"):
        from stemma.cli.prompting import evaluate_task

        _refuse(context, f"{task} stands in a prompt", _PROMPTED, _ASKED, reads_corpus=False)
        evaluate_task(model, name, Path(task), shots or [], reasoning, votes, most, seed, out, device, as_json)
        return
    if task is not None:
        from stemma.cli.preference import evaluate_preference
        from stemma.errors import InputError, closest

        if task != "preference":
            hint = closest(task, ["preference"]) or ", expected preference or a task file (.yaml)"
            raise InputError(f"--task {task}: no such evaluation{hint}")
        _refuse(context, "--task preference compares responses", _PREFERENCE, _ASKED)
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
    from stemma.data.corpora import CorpusSource
    from stemma.finetuning.evaluating import is_finetuned
    from stemma.finetuning.recipe import DataRecipe

    if is_image_model(model):
        _refuse(context, f"{model} reads images")
        evaluate_images(model, "digits" if corpus == "python" else corpus, device, as_json)
    elif is_finetuned(model):
        _refuse(context, f"{model} is fine-tuned", _TASK)
        data = DataRecipe(
            train=corpus,
            text=text,
            pair=pair,
            label=label,
            source=source,
            target=target,
            question=question,
            choices=choices,
            header=header,
            quotes=quotes,
        )
        _of_task(model, corpus, data, predictions, device, as_json)
    else:
        _refuse(context, f"{model} is no fine-tuned model", _TEXT)
        read = CorpusSource(corpus, field=field, documents=documents, held_out=0.0)
        _of_text(model, read, length, batch_size, quantize, device, as_json)


def _refuse(context: typer.Context, why: str, *panels: str, reads_corpus: bool = True) -> None:
    """Raise InputError for an option that was given and is of another evaluation than these panels', or for a CORPUS
    that would not be read."""
    from stemma.errors import InputError

    corpus = context.get_parameter_source("corpus")
    if not reads_corpus and corpus is not None and corpus.name == "COMMANDLINE":
        raise InputError(f"{context.params['corpus']}: {why}, and no CORPUS is read")
    for parameter in context.command.params:
        panel = getattr(parameter, "rich_help_panel", None)
        source = context.get_parameter_source(parameter.name or "")
        if panel is not None and panel not in panels and source is not None and source.name == "COMMANDLINE":
            raise InputError(f"{parameter.opts[0]}: {why}, and this option is {panel[:1].lower()}{panel[1:]}")


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


def _of_text(
    model: str,
    corpus: "CorpusSource",
    length: int | None,
    batch_size: int,
    quantize: str | None,
    device: str,
    as_json: bool,
) -> None:
    import json
    from dataclasses import asdict

    from stemma.cli.devices import device_named
    from stemma.data.tokenizers import load_tokenizer
    from stemma.evaluation.likelihood import score_text
    from stemma.families import load
    from stemma.inference.quantization import Kind, quantize_
    from stemma.training.hardware import prepare_processor

    if quantize is not None:
        Kind.named(quantize)  # a wrong one is told before the model is loaded
    prepare_processor()
    network, tokenizer = load(model, device=device_named(device)), load_tokenizer(model)

    def score() -> "Evaluation":
        return score_text(network, tokenizer, corpus, length=length, batch_size=batch_size)

    result, rounded = score(), None
    if quantize is not None:
        quantize_(network, quantize)
        rounded = score()
    if as_json:
        summary = {"model": model, "corpus": corpus.what, **asdict(result)}
        print(
            json.dumps(summary if rounded is None else {**summary, "quantize": quantize, "quantized": asdict(rounded)})
        )
        return
    print(f"{Path(model).name} on {corpus.what}: {result.targets:,} tokens")
    print(f"  loss {result.loss:.4f} nats a token, perplexity {result.perplexity:.2f}")
    if result.bits_per_byte is not None:
        print(f"  {result.bits_per_byte:.4f} bits per byte")
    for name, value in (result.parts or {}).items():
        print(f"  {name.replace('_', ' ')} {value:.4f}")
    if rounded is not None:
        print(f"  {quantize}: {_change(result, rounded)}")


def _change(before: "Evaluation", after: "Evaluation") -> str:
    """What became of a loss, in bits per byte if there are any."""
    if before.bits_per_byte is None or after.bits_per_byte is None:
        return f"loss {before.loss:.4f} -> {after.loss:.4f} nats a token"
    return f"{before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f} bits per byte"
