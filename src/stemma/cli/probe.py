"""`stemma probe`: what is in a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from stemma.probing.edge_run import EdgeTask
    from stemma.probing.facts import Facts

app = typer.Typer(
    help="Look for what a model knows.\n\n"
    "Example: [bold]stemma probe facts runs/bert --facts TREx --vocabulary common_vocab_cased.txt[/bold]",
)


Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for report.html, results.json and predictions.jsonl.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the results as JSON; the rest goes to stderr.")]


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
    out: Out = None,
    device: Device = "cpu",
    as_json: AsJSON = False,
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
    from stemma.errors import InputError
    from stemma.insights.facts_report import described, report_of, summary_table
    from stemma.insights.report import rich_table, write_report
    from stemma.probing.common_vocabulary import read_vocabulary
    from stemma.probing.facts_baselines import read_answers
    from stemma.probing.facts_readings import load_to_ask
    from stemma.probing.facts_run import probe
    from stemma.probing.facts_selection import Asked, select
    from stemma.training.hardware import prepare_processor
    from stemma.training.progress import counting

    if len(set(models)) < len(models):
        raise InputError(f"{', '.join(models)}: one model is there twice")
    _check(out)
    names = source or ["python"]
    if set(names) == {"python"} and (relations or patterns):
        raise InputError("--relations and --patterns are of facts in files; expected --facts with them")
    if candidates == "objects" and vocabulary is not None:
        raise InputError("--vocabulary: with --candidates objects the objects of a relation are the candidates")
    if candidates == "vocabulary" and per_token:
        raise InputError("--per-token: words of the vocabulary are one token each; expected --candidates objects")
    sources = [_facts(name, relations, patterns) for name in names]
    words = read_vocabulary(vocabulary) if vocabulary is not None else None
    given = {}
    for one in answers or []:
        name, equals, file = one.partition("=")
        if not (name and equals and file):
            raise InputError(f"--answers {one}: expected NAME=FILE")
        given[name] = read_answers(Path(file))
    prepare_processor()
    asked = [
        Asked(label, *load_to_ask(name, device_named(device)))
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


@app.command()
def edges(
    model: Annotated[str, typer.Argument(help="Checkpoint directory or Hugging Face hub id.", metavar="MODEL")],
    task: Annotated[
        str,
        typer.Option(
            help="What the files hold: edges (the published JSON), dependencies or parts-of-speech (CoNLL-U), entities "
            "(CoNLL columns), spans (JSON lines of characters); or, without files, python-roles and python-scopes."
        ),
    ] = "python-roles",
    train: Annotated[Path | None, typer.Option(help="What the probes learn from.")] = None,
    dev: Annotated[Path | None, typer.Option(help="What they are chosen by.")] = None,
    test: Annotated[Path | None, typer.Option(help="What the scores are of.", show_default="the file of --dev")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="An expression: only labels that it matches count (ARG[0-5A]|ARGM-.*).", show_default="all"),
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also probe the last layer, the embeddings, a convolution, a random encoder.")
    ] = True,
    layers: Annotated[bool, typer.Option("--layers", help="Also probe each layer, and the layers up to it.")] = False,
    control: Annotated[bool, typer.Option("--control", help="Also learn random labels: selectivity.")] = False,
    code: Annotated[bool, typer.Option("--code", help="Also the minimum description length; trains ten more.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Most times that the training sentences are read.")] = 10,
    learning_rate: Annotated[
        float, typer.Option(help="Of Adam; published: 1e-4, with up to 250,000 updates.", min=0)
    ] = 5e-4,
    seed: Annotated[int, typer.Option(help="Of the probes, their batches and what is random.")] = 0,
    out: Out = None,
    device: Device = "cpu",
    as_json: AsJSON = False,
) -> None:
    """Probe a frozen model's layers for labels of spans (edge probing): micro-F1 with intervals, by label, by layer.

    The layers are computed once, and kept in the cache's folder.

    Example: [bold]stemma probe edges runs/bert --task dependencies --train en.conllu --dev dev.conllu --layers[/bold]
    """
    import json
    import shlex
    import sys

    from rich.console import Console

    from stemma.cli.devices import device_named
    from stemma.data.tokenizers import load_tokenizer
    from stemma.families import load
    from stemma.families.elmo.model import ELMo
    from stemma.files import cache_directory, write_whole
    from stemma.insights.edges_report import described, report_of, scores_table
    from stemma.insights.report import rich_table, write_report
    from stemma.probing.edge_run import Wanted, probe_edges
    from stemma.probing.edge_training import ProbeTraining
    from stemma.probing.edges import write_predictions
    from stemma.training.hardware import prepare_processor
    from stemma.training.progress import counting

    _check(out)
    data = _edges(task, train, dev, test, labels)
    prepare_processor()
    console, progress = Console(stderr=as_json), Console(stderr=True)
    read: Any = load(model, device=device_named(device))
    tokenizer = None if isinstance(read, ELMo) else load_tokenizer(model)
    found = probe_edges(
        read,
        tokenizer,
        data,
        ProbeTraining(epochs, learning_rate),
        cache_directory(),
        wanted=Wanted(baselines, layers, control, code),
        seed=seed,
        say=lambda message: progress.print(message, highlight=False, markup=False, soft_wrap=True),
        progress=lambda what, total: counting(progress, what, total),
    )
    results = {"model": model, **found.results}
    if not as_json:
        console.print(rich_table(scores_table(results)))
        console.print(described(results), highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        with write_whole(out / "results.json") as temporary:
            temporary.write_text(json.dumps(results) + "\n", encoding="utf-8")
        scored = data.dev if data.test is None else data.test
        write_predictions(out / "predictions.jsonl", scored, found.probabilities(scored))
        write_report(report_of(results, shlex.join(["stemma", *sys.argv[1:]])), out / "report.html")
        console.print(f"report: {out / 'report.html'}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(results))


def _check(out: Path | None) -> None:
    from stemma.errors import InputError

    if out is not None and out.is_file():
        raise InputError(f"--out {out}: a file; expected a folder")


def _edges(task: str, train: Path | None, dev: Path | None, test: Path | None, labels: str | None) -> "EdgeTask":
    from stemma.errors import InputError, closest
    from stemma.probing.edge_run import EdgeTask
    from stemma.probing.python_edges import PYTHON_TASKS, python_edges
    from stemma.probing.spans import TASKS

    if task in PYTHON_TASKS:
        if train or dev or test:
            raise InputError(f"--task {task}: needs no files; expected --task {', '.join(TASKS)} with --train")
        return EdgeTask(task, **python_edges(PYTHON_TASKS[task]), scored=labels)
    if task not in TASKS:
        known = [*TASKS, *PYTHON_TASKS]
        raise InputError(f"--task {task}{closest(task, known)}: expected one of {', '.join(known)}")
    if train is None or dev is None:
        raise InputError(f"--task {task}: expected --train and --dev with it")
    read = TASKS[task]
    return EdgeTask(f"{task} of {train.name}", read(train), read(dev), None if test is None else read(test), labels)


def _labels(models: list[str]) -> list[str]:
    """Return the last parts of the models' names, as many as tell them apart."""
    parts = [Path(model).parts for model in models]
    most = max(map(len, parts))
    count = next(n for n in range(1, most + 1) if len({one[-n:] for one in parts}) == len(parts) or n == most)
    return [str(Path(*one[-count:])) for one in parts]


def _facts(name: str, relations: Path | None, patterns: Path | None) -> "Facts":
    from stemma.probing.facts import read_facts
    from stemma.probing.python_facts import python_facts

    if name == "python":
        return python_facts()
    return read_facts(Path(name), relations=relations, patterns=patterns)


def _write(out: Path, several: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
    import json

    from stemma.files import write_whole

    with write_whole(out / "results.json") as temporary:
        temporary.write_text(json.dumps(several) + "\n", encoding="utf-8")
    with write_whole(out / "predictions.jsonl") as temporary:
        lines = (json.dumps(row, ensure_ascii=False) for row in predictions)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
