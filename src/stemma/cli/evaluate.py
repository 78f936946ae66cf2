"""`stemma evaluate`: how well a model predicts a text."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    corpus: Annotated[
        str, typer.Argument(help="File, folder, glob, '-', hf:owner/name, or 'python'.", metavar="CORPUS")
    ] = "python",
    field: Annotated[str, typer.Option(help="Field of JSONL, CSV or Parquet rows that holds the text.")] = "text",
    documents: Annotated[str, typer.Option(help="What a document is in text files: file, paragraph, line.")] = "file",
    length: Annotated[int | None, typer.Option(min=2, help="Tokens per window; default: the model's context.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows scored at once.")] = 8,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
) -> None:
    """Score a text: loss, perplexity, and bits per byte, which can be compared between tokenizers.

    Every token of every document is scored once, with at least a quarter of a window of context where there is one.

    Example: [bold]stemma evaluate runs/tiny my-book.txt[/bold]
    """
    import json
    from dataclasses import asdict

    from stemma.cli.devices import device_named
    from stemma.data.corpora import CorpusSource
    from stemma.data.tokenizers import load_tokenizer
    from stemma.evaluation.likelihood import score_text
    from stemma.families import load
    from stemma.training.hardware import prepare_processor

    prepare_processor()
    network, tokenizer = load(model, device=device_named(device)), load_tokenizer(model)
    source = CorpusSource(corpus, field=field, documents=documents, held_out=0.0)
    result = score_text(network, tokenizer, source, length=length, batch_size=batch_size)
    if as_json:
        print(json.dumps({"model": model, "corpus": corpus, **asdict(result)}))
        return
    print(f"{Path(model).name} on {corpus}: {result.targets:,} tokens")
    print(f"  loss {result.loss:.4f} nats a token, perplexity {result.perplexity:.2f}")
    if result.bits_per_byte is not None:
        print(f"  {result.bits_per_byte:.4f} bits per byte")
