"""`stemma distill`: students that learn from teachers."""

from pathlib import Path
from typing import Annotated, Any

import typer

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

app = typer.Typer(
    help="Teach small models by large ones, or one by many.\n\n"
    "Example: [bold]stemma distill student runs/book layers=2 --out runs/small[/bold], then "
    "[bold]stemma distill tokens runs/small --teacher runs/book --train my-book.txt --text text[/bold].",
)

Student = Annotated[str, typer.Argument(help="The student: a checkpoint directory or a hub id.", metavar="STUDENT")]
Classifier = Annotated[
    str, typer.Argument(help="The student: a checkpoint directory, a hub id, or a recipe of images.", metavar="STUDENT")
]
Teachers = Annotated[
    list[str], typer.Option("--teacher", "-t", help="A teacher's directory or hub id; several are an ensemble.")
]
Mean = Annotated[
    str | None, typer.Option(help="Of several teachers: arithmetic (of probabilities, the default) or geometric.")
]
Temperature = Annotated[float | None, typer.Option(help="Of teachers and student while it learns.")]
Weight = Annotated[float | None, typer.Option(help="Of the teachers' opinion, 0 to 1; the truth has the rest.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; default: runs/distill-STUDENT.")]


@app.command()
def classifier(
    student: Classifier,
    overrides: Overrides = None,
    teacher: Teachers = ...,  # type: ignore[assignment]
    train: Annotated[str, typer.Option(help="Labelled examples, or images, as `stemma finetune` reads them.")] = ...,  # type: ignore[assignment]
    dev: Annotated[str | None, typer.Option(help="Examples to choose the best weights by; default: 10 %.")] = None,
    test: Annotated[str | None, typer.Option(help="Examples to report on, once, at the end.")] = None,
    unlabelled: Annotated[str | None, typer.Option(help="Further texts that only the teachers judge.")] = None,
    text: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    pair: Annotated[str | None, typer.Option(help="Column with the second text of a pair.")] = None,
    label: Annotated[str, typer.Option(help="Column with the label.")] = "label",
    temperature: Temperature = None,
    weight: Weight = None,
    mean: Mean = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJSON = False,
) -> None:
    """Teach a classifier of texts by fine-tuned ones of any family: Hinton's soft targets, beside the labels.

    Classifiers of images learn so, too: STUDENT is a recipe of `stemma pretrain`, or a ViT that goes on; --train is
    what images are read from.

    Example: [bold]stemma distill classifier runs/small --teacher runs/finetune-bert/best --train train.csv[/bold], or
    [bold]stemma distill classifier vit/tiny --teacher runs/one --teacher runs/other --train digits[/bold]
    """
    from stemma.cli.finetune import report
    from stemma.cli.images import distil_images, image_student
    from stemma.errors import InputError
    from stemma.finetuning.recipe import build_recipe
    from stemma.finetuning.run import family_and_size, finetune, read_splits

    directory = _directory(out, student)
    if images := image_student(student):
        for name, value in {"--unlabelled": unlabelled, "--test": test, "--pair": pair}.items():
            if value is not None:
                raise InputError(f"{name}: is of texts, and {student} reads images; they are measured on --dev")
        options = {"teacher": teacher, "temperature": temperature, "alpha": weight, "mean": mean}
        distil_images(images, train, dev, options, overrides or [], directory, overwrite, as_json)
        return
    soft = {"teachers": teacher, "temperature": temperature, "weight": weight, "mean": mean, "unlabelled": unlabelled}
    given: dict[str, Any] = {
        "model": student,
        "distillation": {name: value for name, value in soft.items() if value is not None},
        "data": {"train": train, "text": text, "pair": pair, "label": label, "test": test},
    }
    if dev is not None:
        given["data"]["dev"] = dev
    console = console_of(as_json)
    family, parameters = family_and_size(student)
    draft = build_recipe(given, overrides or [], family=family, parameters=parameters, examples=1 << 60)
    splits = read_splits(draft)
    recipe = build_recipe(given, overrides or [], family=family, parameters=parameters, examples=len(splits.train))
    outcome, results = finetune(recipe, directory, splits=splits, overwrite=overwrite, display=display_on(console))
    report(outcome, results, directory, console, as_json)
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


@app.command()
def tokens(
    student: Student,
    overrides: Overrides = None,
    teacher: Teachers = ...,  # type: ignore[assignment]
    train: Annotated[
        str, typer.Option(help="Prompts and responses as in `stemma align sft`; with --text, any corpus.")
    ] = ...,  # type: ignore[assignment]
    dev: Annotated[str | None, typer.Option(help="Held-out data: another file, or a share of --train.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Learn whole texts: the column they are in (of text files any name).")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Column with what is asked; default: prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="Column with the answer; default: response.")] = None,
    messages: Annotated[str | None, typer.Option(help="Column with a conversation; default: messages.")] = None,
    divergence: Annotated[
        str | None, typer.Option(help="forward (KL, the default), reverse, or jsd (Jensen-Shannon).")
    ] = None,
    temperature: Temperature = None,
    weight: Weight = None,
    mean: Mean = None,
    on_policy: Annotated[
        float | None, typer.Option("--on-policy", help="Share of the updates on responses of the student's own (GKD).")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Ask the teachers once and keep what they think: full, or a number of likeliest tokens."),
    ] = None,
    template: Template = None,
    recipe_name: RecipeName = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJSON = False,
) -> None:
    """Teach a language model by others with the same vocabulary, of any family, token by token.

    GPT, Mistral, Mixtral, GLM and T5; the teacher of a GPT or Mistral may be served (--teacher http://host:port
    --cache 20). A BERT learns whole texts from a BERT at masked places, as DistilBERT did. The same command again goes
    on where a run stopped.

    Example: [bold]stemma distill tokens runs/small --teacher runs/book --train my-book.txt --text text[/bold]
    """
    from stemma.alignment.recipe import SMALL_MODEL, build_recipe
    from stemma.distillation.distil import distil, distil_masked
    from stemma.distillation.recipe import DistillationRecipe
    from stemma.finetuning.run import family_and_size

    objective = {
        "teachers": teacher,
        "divergence": divergence,
        "temperature": temperature,
        "weight": weight,
        "mean": mean,
        "on_policy": None if on_policy is None else {"share": on_policy},
        "cache": int(cache) if cache is not None and cache.isdecimal() else cache,
    }
    data = {"text": text, "prompt": prompt, "response": response, "messages": messages}
    given = keys_given(student, train, dev, template, data, objective)
    family, parameters = family_and_size(student)
    masked, small = family == "bert", parameters < SMALL_MODEL
    if masked:
        name = "distill/masked-tiny" if small else "distill/masked"
    else:
        name = "distill/tiny" if small else "distill/default"
    name = recipe_name or name
    teach = distil_masked if masked else distil
    recipe = build_recipe(DistillationRecipe, name, given, overrides or [])
    directory, console = _directory(out, student), console_of(as_json)
    outcome, results = teach(recipe, directory, overwrite=overwrite, display=display_on(console))
    following = f"stemma finetune {directory} ..." if masked else f"stemma generate {directory} --prompt ..."
    finish(outcome, results, directory, console, as_json, f"next: {following}")


@app.command()
def sequences(
    teacher: Annotated[str, typer.Argument(help="The teacher: a checkpoint directory or a hub id.", metavar="TEACHER")],
    prompts: Annotated[str, typer.Option(help="A table with a column of prompts, or of conversations.")] = ...,  # type: ignore[assignment]
    prompt: Annotated[str, typer.Option(help="Column with what is asked.")] = "prompt",
    reference: Annotated[
        str | None, typer.Option(help="Column with a right answer: of the beams the one nearest to it is kept.")
    ] = None,
    beams: Annotated[int, typer.Option(min=1, help="Width of the search for the likeliest text.")] = 5,
    temperature: Annotated[float | None, typer.Option(help="Draw texts at random instead of searching.")] = None,
    longest: Annotated[int, typer.Option(min=1, help="Most tokens of a text.")] = 128,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL to write: the rows with a response each.")] = ...,  # type: ignore[assignment]
    as_json: AsJSON = False,
) -> None:
    """Let a teacher write what students of any vocabulary then learn with `stemma align sft` (Kim and Rush 2016).

    Example: [bold]stemma distill sequences runs/sft --prompts prompts.jsonl --out written.jsonl[/bold], then
    [bold]stemma align sft runs/small --train written.jsonl[/bold]
    """
    import json

    from stemma.distillation.sequences import Search, write_sequences

    console = console_of(as_json)
    search = Search(beams, longest, temperature, seed)
    count = write_sequences(
        teacher, prompts, out, search, prompt=prompt, reference=reference, display=display_on(console)
    )
    if as_json:
        print(json.dumps({"out": str(out), "rows": count}))
    else:
        console.print(f"{count:,} responses: {out}", highlight=False, soft_wrap=True)
        console.print(f"next: stemma align sft STUDENT --train {out}", highlight=False, soft_wrap=True)


@app.command()
def student(
    teacher: Annotated[str, typer.Argument(help="The teacher: a checkpoint directory or a hub id.", metavar="TEACHER")],
    changes: Annotated[
        list[str], typer.Argument(metavar="FIELD=VALUE", help="Of the teacher's configuration, e.g. layers=6.")
    ],
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write.")] = ...,  # type: ignore[assignment]
    as_json: AsJSON = False,
) -> None:
    """Make a smaller model to begin with: fewer layers with the teacher's weights (DistilBERT), or random weights.

    Example: [bold]stemma distill student bert-base-uncased layers=6 --out runs/small[/bold], or
    [bold]stemma distill student runs/book hidden=128 heads=4 layers=4 --out runs/small[/bold]
    """
    import json

    import yaml

    from stemma.distillation.students import make_student
    from stemma.errors import InputError

    parsed: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"{change}: expected FIELD=VALUE, such as layers=6")
        parsed[name] = yaml.safe_load(value)
    model, kept = make_student(teacher, parsed, out, seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if as_json:
        print(json.dumps({"out": str(out), "parameters": parameters, "layers": kept}))
        return
    console = console_of(False)
    start = "random weights" if kept is None else f"the teacher's layers {', '.join(map(str, kept))} (from 0)"
    console.print(f"{parameters:,} parameters, {start}: {out}", highlight=False, soft_wrap=True)


def _directory(out: Path | None, student: str) -> Path:
    return out or Path("runs") / f"distill-{Path(student).name}"
