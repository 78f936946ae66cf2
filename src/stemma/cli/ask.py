"""`stemma ask`: a question with a blank, and a bar for each answer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stemma.probing.knowledge import Triple


def ask(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts with [MASK] in them; none: asks for one after the other.", metavar="TEXT"),
    ] = None,
    knowledge: Annotated[
        Path | None,
        typer.Option(help="Look it up here too: a file or a folder of facts as `stemma probe facts` takes them."),
    ] = None,
    relations: Annotated[
        Path | None, typer.Option(help="Templates of the relations.", show_default="relations.jsonl beside the facts")
    ] = None,
    patterns: Annotated[Path | None, typer.Option(help="Folder with further templates, a file a relation.")] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many answers.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each text.")] = False,
) -> None:
    """Ask a model what stands in a blank, and a knowledge base for the same, side by side.

    A GPT sees only what stands before the blank; an ELMo reads both sides, each by itself. The knowledge base answers a
    question that one of its templates puts; else it tells what it knows of whom the question names.

    Example: [bold]stemma ask runs/bert "Dante was born in [MASK]." --knowledge facts.jsonl[/bold]
    """
    import json
    import math
    import sys
    from dataclasses import asdict

    from rich.console import Console

    from stemma.cli.devices import device_named
    from stemma.errors import InputError
    from stemma.probing.asking import likeliest_answers
    from stemma.probing.facts_readings import load_to_ask
    from stemma.probing.knowledge import Knowledge
    from stemma.training.hardware import prepare_processor

    if knowledge is None and (relations or patterns):
        raise InputError("--relations and --patterns are of a knowledge base; expected --knowledge with them")
    base = Knowledge.of(knowledge, relations=relations, patterns=patterns) if knowledge is not None else None
    prepare_processor()
    network, tokenizer = load_to_ask(model, device_named(device))
    console = Console()

    def answer(text: str) -> None:
        found = [(piece, math.exp(score)) for piece, score in likeliest_answers(network, tokenizer, text, top=top)]
        known = None if base is None else (base.answers(text, top) or base.about(text, top))
        if as_json:
            given = [{"answer": piece, "probability": share} for piece, share in found]
            told = {} if known is None else {"knowledge": [asdict(triple) for triple in known]}
            print(json.dumps({"text": text, "answers": given, **told}, ensure_ascii=False))
            return
        console.print(text, highlight=False, markup=False)
        console.print(_side_by_side(model, found, known))

    if texts:
        for text in texts:
            answer(text)
        return
    if sys.stdin.isatty():
        console.print("A text with [MASK] in it; an empty line ends.", style="dim", markup=False)
    while True:
        try:
            text = console.input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not text:
            return
        try:
            answer(text)
        except InputError as error:  # the next question may be a better one
            print(f"error: {error}", file=sys.stderr)


def _side_by_side(model: str, answers: list[tuple[str, float]], known: "list[Triple] | None") -> "RenderableType":
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    bars = Table.grid(padding=(0, 1))
    most = max((share for _, share in answers), default=1.0)
    for piece, share in answers:
        bars.add_row(Text(f"{share:7.2%}"), Bar(most, 0, share, width=24), Text(piece.replace("\n", "\\n")))
    if known is None:
        return bars
    triples = Table.grid(padding=(0, 1))
    for triple in known:
        triples.add_row(Text(f"({triple.subject}, {triple.relation}, {triple.object})"))
    if not known:
        triples.add_row(Text("nothing", style="dim"))
    both = Table()
    both.add_column("knowledge base")
    both.add_column(Text(model))
    both.add_row(triples, bars)
    return both
