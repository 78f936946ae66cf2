"""`stemma embed`: one vector a text, of an ELMo one a word; or, of word vectors, neighbours and analogies."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Top = Annotated[int, typer.Option("--top", "-n", min=1, help="How many words to show.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Vectors = Annotated[
    str, typer.Argument(help="A directory of word vectors, or a file of word2vec or GloVe.", metavar="MODEL")
]


class Embedding(TyperGroup):
    """A group whose verb may be left out: without one it embeds texts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["texts", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Embedding,
    help="Vectors of texts or words.\n\n"
    "Example: [bold]stemma embed runs/bert sentences.txt --out vectors.npy[/bold] (the verb 'texts' may be left out), "
    "[bold]stemma embed neighbours runs/word2vec-tiny file[/bold].",
)


@app.command()
def neighbours(
    model: Vectors,
    words: Annotated[list[str], typer.Argument(help="One word or several.", metavar="WORD...")],
    top: Top = 10,
    as_json: AsJSON = False,
) -> None:
    """Show the words whose vectors have the largest cosines to those of some words.

    Example: [bold]stemma embed neighbours runs/word2vec-tiny list tuple[/bold]
    """
    import json

    from stemma.data.vectors import WordVectors

    vectors = WordVectors.load(model)
    found = {word: vectors.neighbours(word, top) for word in words}
    if as_json:
        print(json.dumps({"model": model, "neighbours": found}, ensure_ascii=False))
        return
    for word, near in found.items():
        _show(word, near)


@app.command()
def analogy(
    model: Vectors,
    first: Annotated[str, typer.Argument(metavar="A")],
    second: Annotated[str, typer.Argument(metavar="B")],
    third: Annotated[str, typer.Argument(metavar="C")],
    top: Top = 10,
    as_json: AsJSON = False,
) -> None:
    """Show what is to C as B is to A: the words nearest to B - A + C.

    Example: [bold]stemma embed analogy vectors.bin man king woman[/bold]
    """
    import json

    from stemma.data.vectors import WordVectors

    found = WordVectors.load(model).analogy(first, second, third, top)
    if as_json:
        print(json.dumps({"model": model, "analogy": [first, second, third], "answers": found}, ensure_ascii=False))
        return
    _show(f"{first} : {second} = {third} :", found)


def _show(title: str, found: list[tuple[str, float]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=False)
    for word, cosine in found:
        table.add_row(Text(word), f"{cosine:.3f}")
    Console().print(table)


@app.command("texts")
def embed(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    texts: Annotated[
        Path,
        typer.Argument(
            help="Text file (a text a line), JSONL, CSV or Parquet; .gz and .zst too; '-': standard input.",
            metavar="FILE",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Where to write: .npy, or .parquet with the texts; of an ELMo's words .hdf5 or .parquet.",
        ),
    ],
    field: Annotated[str, typer.Option(help="Field of JSONL, CSV or Parquet rows that holds the text.")] = "text",
    pooling: Annotated[
        str | None, typer.Option(help="mean, cls or max.", show_default="the checkpoint's, else mean")
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Vectors of length 1.", show_default=False)
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Of an ELMo: all, average, or a number from 0.", show_default="all; of a text's vector average"
        ),
    ] = None,
    stateful: Annotated[
        bool, typer.Option("--stateful", help="Of an ELMo: go on from text to text, as the published code does.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as one line of JSON.")] = False,
) -> None:
    """Embed texts with any encoder: vector number n is that of line or row n, so none may be empty.

    A folder of sentence-transformers brings its own pooling. How many texts are longer than the model reads is said.
    An ELMo reads words, with white space between, and gives .hdf5 and .parquet a vector for each (in every layer); with
    --pooling, and in .npy, it gives one for each text.

    Examples: [bold]stemma embed runs/bert sentences.txt --out vectors.npy[/bold],
    [bold]stemma embed runs/elmo-tiny sentences.txt --out words.hdf5[/bold]
    """
    import json

    import numpy as np
    from rich.console import Console

    from stemma.cli.devices import device_named
    from stemma.data.readers import texts_in_order
    from stemma.data.tokenizers import load_tokenizer
    from stemma.errors import InputError
    from stemma.families import load
    from stemma.families.directory import resolve
    from stemma.families.elmo.model import ELMo
    from stemma.files import write_whole
    from stemma.inference.embeddings import embed as run
    from stemma.inference.embeddings import sentence_settings
    from stemma.inference.word_files import HDF5, write_word_vectors
    from stemma.inference.word_states import WordStates, embed_sentences, layers_named, word_vectors
    from stemma.training.hardware import prepare_processor
    from stemma.training.progress import counting

    if out.suffix not in (".npy", ".parquet", *HDF5):
        raise InputError(f"--out {out}: expected a name that ends in .npy, .parquet or .hdf5")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.absolute().parent} is not there")
    if out.suffix in HDF5 and pooling is not None:
        raise InputError(
            f"--pooling: {out.suffix} holds vectors of words; expected .npy or .parquet for those of texts"
        )
    if str(texts) != "-" and not texts.is_file():
        raise InputError(f"{texts}: no such file")
    if out.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise InputError(f"--out {out}: needs pyarrow: pip install 'stemma-lm[data]'") from None
    rows = list(texts_in_order(texts, field))
    if not rows:
        raise InputError(f"{'standard input' if str(texts) == '-' else texts}: no text in it")
    prepare_processor()
    directory = resolve(model)
    network = load(directory, device=device_named(device))
    console, truncated = Console(stderr=True), 0
    if isinstance(network, ELMo):
        of_words = pooling is None and out.suffix != ".npy"
        if of_words and normalize is not None:
            raise InputError(f"--normalize: {out} gets vectors of words as they are; expected --pooling beside it")
        sentences, wanted = [row.split() for row in rows], layers_named(layers, network, of_words)
        if of_words:
            states = WordStates(network, stateful=stateful)
            with counting(console, "embedding", len(rows)) as report:
                write_word_vectors(out, rows, word_vectors(states, sentences, wanted, report))
            total, width = sum(map(len, sentences)), network.config.hidden
            if as_json:
                print(json.dumps({"out": str(out), "texts": len(rows), "words": total, "hidden": width}))
            else:
                print(f"{out}: {total:,} words of {len(rows):,} texts, vectors of {width}")
            return
        options: dict[str, Any] = {
            "pooling": pooling or "mean",
            "normalize": bool(normalize),
            "wanted": wanted,
            "stateful": stateful,
        }
        with counting(console, "embedding", len(rows)) as report:
            vectors = embed_sentences(network, sentences, report=report, **options)
    else:
        if layers is not None or stateful or out.suffix in HDF5:
            raise InputError(f"{model} is no ELMo: --layers, --stateful and {HDF5[0]} are for vectors of words")
        settings = sentence_settings(directory)
        settings |= {} if pooling is None else {"pooling": pooling}
        settings |= {} if normalize is None else {"normalize": normalize}
        tokenizer = load_tokenizer(directory)

        def cut(number: int, limit: int) -> None:
            nonlocal truncated
            truncated = number
            message = f"{number:,} of {len(rows):,} texts are longer than {limit:,} tokens and cut"
            console.print(message, highlight=False, soft_wrap=True)

        with counting(console, "embedding", len(rows)) as report:
            vectors = run(network, tokenizer, rows, report=report, cut=cut, **settings)
    with write_whole(out) as temporary:
        if out.suffix == ".npy":
            with open(temporary, "wb") as file:
                np.save(file, vectors)
        else:
            column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
            pyarrow.parquet.write_table(pyarrow.table({"text": rows, "embedding": column}), temporary)
    if as_json:
        print(json.dumps({"out": str(out), "texts": len(rows), "hidden": vectors.shape[1], "truncated": truncated}))
    else:
        print(f"{out}: {len(rows):,} vectors of {vectors.shape[1]}")
