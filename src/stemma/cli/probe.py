"""`stemma probe`: what is in a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from stemma.probing.facts import Facts

app = typer.Typer(
    help="Look for what a model knows.\n\n"
    "Example: [bold]stemma probe facts runs/bert --facts TREx --vocabulary common_vocab_cased.txt[/bold]",
)


@app.callback()
def _group() -> None:
    pass


@app.command()
def facts(
    models: Annotated[
        list[str], typer.Argument(help="Checkpoint directories or Hugging Face hub ids.", metavar="MODEL...")
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--facts",
            help="A file or a folder in LAMA's formats (T-REx, Google-RE, ConceptNet, SQuAD), or python; repeatable.",
            show_default="python: facts about Python itself",
        ),
    ] = None,
    relations: Annotated[
        Path | None, typer.Option(help="Templates of the relations.", show_default="relations.jsonl beside the facts")
    ] = None,
    patterns: Annotated[
        Path | None, typer.Option(help="Folder with further templates, a file a relation, as ParaRel's.")
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="File with the words to choose from, one a line.", show_default="the first model's words"),
    ] = None,
    candidates: Annotated[
        Literal["vocabulary", "objects"],
        typer.Option(
            help="vocabulary: words that are one token in every model; objects: all objects of the relation, of any "
            "number of tokens."
        ),
    ] = "vocabulary",
    per_token: Annotated[
        bool, typer.Option("--per-token", help="Of objects: divide scores by the number of tokens.")
    ] = False,
    answers: Annotated[
        list[str] | None,
        typer.Option(
            help="Another system's answers, as NAME=FILE: JSONL with a fact's uuid and its ranked answers.",
            metavar="NAME=FILE",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report.html, results.json and predictions.jsonl.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; the rest goes to stderr.")
    ] = False,
) -> None:
    """Ask models for facts as cloze questions (LAMA): P@1, P@10 and more, macro over relations, raw and filtered.

    Several models are asked the same questions and choose among the same words. A GPT sees what stands before the
    blank; with --candidates objects it weighs the whole sentence.

    Example: [bold]stemma probe facts runs/bert runs/gpt --facts TREx --patterns patterns --out runs/facts[/bold]
    """
    import json
    import shlex
    import sys

    from rich.console import Console

    from stemma.cli.devices import device_named
    from stemma.data.tokenizers import load_tokenizer
    from stemma.errors import InputError
    from stemma.families import load
    from stemma.insights.facts_report import described, report_of, summary_table
    from stemma.insights.report import rich_table, write_report
    from stemma.probing.common_vocabulary import read_vocabulary
    from stemma.probing.facts_baselines import read_answers
    from stemma.probing.facts_run import probe
    from stemma.probing.facts_selection import Asked, select
    from stemma.training.hardware import prepare_processor
    from stemma.training.progress import counting

    if len(set(models)) < len(models):
        raise InputError(f"{', '.join(models)}: one model is there twice")
    if out is not None and out.is_file():
        raise InputError(f"--out {out}: a file; expected a folder")
    if source is None and (relations or patterns):
        raise InputError("--relations and --patterns are of facts in files; expected --facts with them")
    if candidates == "objects" and vocabulary is not None:
        raise InputError("--vocabulary: with --candidates objects the objects of a relation are the candidates")
    if candidates == "vocabulary" and per_token:
        raise InputError("--per-token: words of the vocabulary are one token each; expected --candidates objects")
    sources = [_facts(name, relations, patterns) for name in source or ["python"]]
    words = read_vocabulary(vocabulary) if vocabulary is not None else None
    given = {}
    for one in answers or []:
        name, equals, file = one.partition("=")
        if not (name and equals and file):
            raise InputError(f"--answers {one}: expected NAME=FILE")
        given[name] = read_answers(Path(file))
    prepare_processor()
    asked = [
        Asked(label, load(name, device=device_named(device)), load_tokenizer(name))
        for label, name in zip(_labels(models), models, strict=True)
    ]
    console, several, predictions = Console(stderr=as_json), [], []
    for facts in sources:
        chosen = select(asked, facts, candidates=candidates, words=words)
        with counting(Console(stderr=True), f"asking {facts.name}", len(asked) * chosen.questions) as report:
            found = probe(asked, chosen, answers=given, per_token=per_token, report=report)
        several.append(found.results)
        predictions += [{"facts": facts.name, **row} for row in found.predictions]
        if not as_json:
            console.print(rich_table(summary_table(found.results, brief=True)))
            console.print(described(found.results), highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        _write(out, several, predictions)
        command = shlex.join(["stemma", *sys.argv[1:]])
        write_report(report_of(several, command), out / "report.html")
        console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(several))


def _labels(models: list[str]) -> list[str]:
    """Return the last parts of the models' names, as many as tell them apart."""
    parts = [Path(model).parts for model in models]
    most = max(map(len, parts))
    count = next(n for n in range(1, most + 1) if len({one[-n:] for one in parts}) == len(parts) or n == most)
    return [str(Path(*one[-count:])) for one in parts]


def _facts(name: str, relations: Path | None, patterns: Path | None) -> "Facts":
    from stemma.errors import InputError
    from stemma.probing.facts import read_facts
    from stemma.probing.python_facts import python_facts

    if name == "python":
        return python_facts()
    path = Path(name)
    if not path.exists():
        raise InputError(f"--facts {name}: no such file or folder")
    if patterns is not None and not patterns.is_dir():
        raise InputError(f"--patterns {patterns}: no such folder")
    return read_facts(path, relations=relations, patterns=patterns)


def _write(out: Path, several: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
    import json

    from stemma.files import write_whole

    with write_whole(out / "results.json") as temporary:
        temporary.write_text(json.dumps(several) + "\n", encoding="utf-8")
    with write_whole(out / "predictions.jsonl") as temporary:
        lines = (json.dumps(row, ensure_ascii=False) for row in predictions)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
