"""`stemma tokenizer`: learn a tokenizer from text, or look into one."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stemma.data.corpora import CorpusSource
    from stemma.data.tokenizers import Tokenizer

app = typer.Typer(
    help="Learn a tokenizer from text, or look into one.\n\n"
    "Example: [bold]stemma tokenizer train book.txt --vocabulary 8192 --out tokenizers/book[/bold]",
)


@app.command()
def train(
    corpora: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, '-', hf:owner/name, or 'python'.", metavar="CORPUS...")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    kind: Annotated[str, typer.Option(help="bpe (byte-level), wordpiece, unigram, word or elmo (words).")] = "bpe",
    vocabulary: Annotated[int, typer.Option(min=1, help="Number of tokens, special ones included.")] = 8192,
    special: Annotated[list[str] | None, typer.Option(help="A further special token; may be repeated.")] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Lower-case all text.")] = False,
    byte_fallback: Annotated[bool, typer.Option(help="unigram: write unknown characters as bytes.")] = True,
    field: Annotated[str, typer.Option(help="Field of JSONL, CSV or Parquet rows that holds the text.")] = "text",
    documents: Annotated[str, typer.Option(help="What a document is in text files: file, paragraph, line.")] = "file",
    held_out: Annotated[float, typer.Option(help="Fraction not to learn from: what pretrain holds out.")] = 0.05,
    limit_mb: Annotated[float | None, typer.Option(min=0, help="Read no more text than this, from the start.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a tokenizer that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
) -> None:
    """Learn a tokenizer; what it writes, transformers' AutoTokenizer loads too.

    Example: [bold]stemma tokenizer train 'texts/*.jsonl.gz' --field body --vocabulary 16384 --out tokenizers/b[/bold]
    """
    import json
    import sys
    import time
    import warnings

    from rich.console import Console

    from stemma.data.corpora import CorpusSource
    from stemma.data.tokenizers import train_tokenizer
    from stemma.training.progress import ConsoleDisplay

    _check_folder(out, overwrite)
    started = time.monotonic()
    sources = [CorpusSource(corpus, field=field, documents=documents, held_out=held_out) for corpus in corpora]
    with ConsoleDisplay(Console(stderr=True)).preparing() as report, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        reading = _Reading(sources, None if limit_mb is None else int(limit_mb * 1e6), report)
        tokenizer = train_tokenizer(
            reading,
            kind,
            vocabulary,
            special=special or (),
            lowercase=lowercase,
            byte_fallback=byte_fallback,
            progress=reading.count,
        )
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    tokenizer.save(out)
    result = {
        "directory": str(out),
        "kind": kind,
        "vocabulary": tokenizer.vocabulary,
        "bytes_read": reading.bytes_read,
        "bytes_per_token": round(_bytes_per_token(tokenizer, reading.sample), 3),
        "seconds": round(time.monotonic() - started, 1),
        "fingerprint": tokenizer.fingerprint,
    }
    if as_json:
        print(json.dumps(result))
        return
    print(
        f"{out}: {tokenizer.vocabulary:,} tokens ({kind}) from {reading.bytes_read / 1e6:,.1f} MB of text "
        f"in {result['seconds']} s; {result['bytes_per_token']} bytes per token on the first MB"
    )


@app.command()
def inspect(
    tokenizer: Annotated[str, typer.Argument(help="A folder, a tokenizer file, or a hub id.", metavar="TOKENIZER")],
    text: Annotated[str, typer.Argument(help="The text to encode; '-' reads standard input.", metavar="TEXT")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
) -> None:
    """Show how a text is cut into tokens.

    Example: [bold]stemma tokenizer inspect gpt2 "The naïve antidisestablishmentarian"[/bold]
    """
    import json
    import sys

    from stemma.data.tokenizers import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    if text == "-":
        text = sys.stdin.buffer.read().decode(errors="replace")
    ids = loaded.encode(text)
    result: dict[str, Any] = {
        "tokens": [{"id": index, "token": loaded.token(index), "text": loaded.decode([index], False)} for index in ids],
        "bytes": len(text.encode()),
        "bytes_per_token": round(_bytes_per_token(loaded, [text]), 3),
        "unchanged": loaded.decode(ids) == text,
        "vocabulary": loaded.vocabulary,
        "special": loaded.names,
    }
    if as_json:
        print(json.dumps(result))
        return
    for token in result["tokens"]:
        print(f"{token['id']:>8}  {token['token']:<24}  {token['text']!r}")
    print(f"{len(ids):,} tokens, {result['bytes']:,} bytes, {result['bytes_per_token']} bytes per token")
    print(f"vocabulary {loaded.vocabulary:,}; special " + ", ".join(f"{r} {t}" for r, t in loaded.names.items()))
    if not result["unchanged"]:
        print(f"decoded, the text is another: {loaded.decode(ids)!r}")


class _Reading:
    """Corpora as one stream of texts up to a limit, which shows its progress and keeps the first MB."""

    def __init__(
        self, sources: Sequence["CorpusSource"], limit: int | None, report: Callable[[str, int, int], None]
    ) -> None:
        self._sources = sources
        self._limit = limit
        self._report = report
        self._total = 0
        self.bytes_read = 0
        self.sample: list[str] = []

    def __iter__(self) -> Iterator[str]:
        from stemma.data.corpora import training_texts

        sizes = [_size(source.what) for source in self._sources]
        if all(sizes):
            self._total = min(sum(sizes), self._limit or sum(sizes))
        self._report("reading the text", 0, self._total)
        for source in self._sources:
            for text in training_texts(source):
                if self._limit is not None and self.bytes_read >= self._limit:
                    break
                if self.bytes_read < 1_000_000:
                    self.sample.append(text)
                yield text
        self._report("learning the vocabulary", 0, 0)

    def count(self, size: int) -> None:
        """Take note of a text that was read."""
        self.bytes_read += size
        self._report("reading the text", self.bytes_read, self._total)


def _size(corpus: str) -> int:
    """Bytes of text in a corpus, 0 if that cannot be told without reading it."""
    from stemma.data.corpora import find_files

    if corpus in ("-", "python") or corpus.startswith("hf:"):
        return 0
    files = find_files(corpus)
    packed = any(file.suffix in (".gz", ".zst", ".parquet", ".arrow") for file in files)
    return 0 if packed else sum(file.stat().st_size for file in files)


def _bytes_per_token(tokenizer: "Tokenizer", texts: Sequence[str]) -> float:
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    return sum(len(text.encode()) for text in texts) / max(1, tokens)


def _check_folder(out: Path, overwrite: bool) -> None:
    """Find out before the work whether its result can be written."""
    import os

    from stemma.errors import InputError

    if (out / "tokenizer.json").exists() and not overwrite:
        raise InputError(f"{out}: there is a tokenizer here already; give --overwrite or another --out")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"{out}: cannot be written; {there} is not a writable folder")
