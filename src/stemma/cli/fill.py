"""`stemma fill`: what stands in the blanks of a text."""

from pathlib import Path
from typing import Annotated

import typer


def fill(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts with [MASK] in them; quote each.", metavar="TEXT")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="File with one text a line; '-': standard input.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many fillings of each text.")] = 5,
    max_piece_tokens: Annotated[int, typer.Option(min=1, help="T5 and GLM: longest piece.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each text.")] = False,
) -> None:
    """Fill the blanks of a text: BERT with one token each, T5 and GLM with as many as they like.

    Each line is one filling, with its probability. BERT does not know of the other blanks' pieces when it fills one.

    Example: [bold]stemma fill runs/bert "The [MASK] sat on the [MASK]."[/bold]
    """
    import json
    import math
    from dataclasses import asdict

    from stemma.cli.devices import device_named
    from stemma.data.byte_streams import standard_input, text_chunks
    from stemma.data.documents import lines
    from stemma.data.tokenizers import load_tokenizer
    from stemma.errors import InputError
    from stemma.families import load
    from stemma.inference.filling import fill as run
    from stemma.training.hardware import prepare_processor

    if bool(texts) == (file is not None):
        raise InputError("give either texts or --file, e.g. stemma fill runs/bert 'The [MASK] sat down.'")
    wanted = texts or []
    if file is not None:
        chunks = standard_input() if str(file) == "-" else text_chunks(file, lambda read: None)
        wanted = [line.removesuffix("\r") for line in lines(chunks) if line.strip()]
        if not wanted:
            raise InputError(f"{file}: no text in it, expected one a line")
    prepare_processor()
    network, tokenizer = load(model, device=device_named(device)), load_tokenizer(model)
    found = run(network, tokenizer, wanted, top_k=top_k, max_piece_tokens=max_piece_tokens)
    for text, candidates in zip(wanted, found, strict=True):
        if as_json:
            print(json.dumps({"text": text, "fillings": [asdict(one) for one in candidates]}, ensure_ascii=False))
            continue
        print(text)
        for one in candidates:
            share = math.exp(one.log_probability)
            shown = f"{share:8.2%}" if share >= 0.00005 else f"{share:8.0e}"
            line = f"  {shown}  {' | '.join(one.pieces)}  ->  {one.text}"
            print(line.replace("\n", "\\n"))  # a filling a line, whatever is in it
