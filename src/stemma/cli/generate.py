"""`stemma generate`: continue a text."""

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.errors import InputError

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer
    from stemma.inference.generate import Generation

# What a newcomer's small model writes best with; beam search has neither.
TEMPERATURE, TOP_P = 0.8, 0.95


def generate(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Text to continue; may be given several times.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="File with the text to continue; '-': standard input.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Stop after so many tokens.")] = 200,
    temperature: Annotated[
        float | None, typer.Option(help="0: always the likeliest token; more: bolder.", show_default=str(TEMPERATURE))
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Choose among the k likeliest tokens only.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among the likeliest tokens of this joint probability.", show_default=str(TOP_P)),
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Choose among tokens at least this times as likely as the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: what the text contains becomes less likely.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"End the text before this; several are possible; \n is a new line.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.", show_default="random")] = None,
    samples: Annotated[int, typer.Option(help="How many continuations of each prompt.")] = 1,
    beams: Annotated[int, typer.Option(help="More than 1: search the likeliest text, nothing is drawn.")] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="Of beams: the larger, the longer the texts; 0.6 is usual of a Transformer.")
    ] = 1.0,
    truncate: Annotated[bool, typer.Option("--truncate", help="Of a prompt too long, keep the end.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="as stored")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Hold the weights in fewer bits: int8, int4 or int4:64.", show_default="no")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="On a GPU: compile the steps first, for long texts or many.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each continuation.")] = False,
    log_probabilities: Annotated[
        bool, typer.Option("--log-probabilities", help="Of each token, by the model's own distribution.")
    ] = False,
) -> None:
    """Continue a text with a model, as it is written.

    The text comes from --prompt, --file or standard input; without any the model begins one itself. At a terminal the
    prompt is shown before its continuation; into a pipe only the continuation is printed.

    An encoder-decoder (T5, Transformer) does not continue its text but writes about it, such as a translation.

    Examples: [bold]stemma generate runs/tiny --prompt "def main" --temperature 0.7[/bold],
    [bold]stemma generate runs/de-en --prompt "ein Haus" --beams 4 --length-penalty 0.6[/bold]
    """
    from stemma.cli.devices import device_named, dtype_named
    from stemma.data.tokenizers import load_tokenizer
    from stemma.families import load
    from stemma.inference.decoders import decoder_of
    from stemma.inference.generate import generate as run
    from stemma.inference.prepacked import prepacked
    from stemma.inference.quantization import Kind, quantize_
    from stemma.training.hardware import prepare_processor

    prompts = read_prompts(prompt, file)
    if beams == 1:
        temperature = TEMPERATURE if temperature is None else temperature
        top_p = TOP_P if top_p is None else top_p
    if quantize is not None:
        Kind.named(quantize)  # a wrong one is told before the model is loaded
    prepare_processor()
    network = load(model, dtype=dtype_named(dtype), device=device_named(device))
    decoder_of(network)  # a model that does not write is told before its weights are rounded or packed
    if quantize is not None:
        quantize_(network, quantize)
    tokenizer = load_tokenizer(model)
    printer = Printer(prompts, as_json, streaming=len(prompts) == samples == beams == 1)
    with nullcontext() if compiled else prepacked(network, len(prompts) * samples * beams, release=None):
        generations = run(
            network,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=1.0 if temperature is None else temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=[text.replace(r"\n", "\n").replace(r"\t", "\t") for text in stop or []],
            seed=seed,
            samples=samples,
            beams=beams,
            length_penalty=length_penalty,
            log_probabilities=log_probabilities,
            truncate=truncate,
            compiled=compiled,
            on_text=printer.piece,
        )
    printer.finish(generations, tokenizer)


def read_prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    """Return what --prompt, --file or standard input give; the new line that ends a file is no part of the prompt."""
    if prompts and file is not None:
        raise InputError("--prompt and --file exclude each other")
    if prompts:
        return prompts
    if file is None and sys.stdin.isatty():
        return [""]
    try:
        content = sys.stdin.buffer.read() if file is None or str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}, expected a text file with the prompt") from error
    try:
        return [content.decode("utf-8").removesuffix("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"{file or 'standard input'}: not UTF-8 at byte {error.start}") from error


class Printer:
    """Continuations on standard output: piece by piece if there is only one, otherwise when all are there.

    At a terminal a prompt comes before its continuation, and a line about the run after it on standard error.
    """

    def __init__(self, prompts: list[str], as_json: bool, streaming: bool) -> None:
        self.prompts, self.as_json = prompts, as_json
        self.streaming = streaming and not as_json
        self.terminal = sys.stdout.isatty() and not as_json
        self.progress = sys.stderr.isatty() and not self.streaming
        self.pieces = 0
        self.started = self.shown = time.perf_counter()

    def piece(self, prompt: int, sample: int, text: str) -> None:
        """Print a piece of the only continuation, or count the pieces of many."""
        self.pieces += 1
        if self.streaming:
            if self.pieces == 1:
                self._write_prompt(prompt)
            self._write(text)
        elif self.progress and time.perf_counter() > self.shown + 0.5:
            self.shown = time.perf_counter()
            print(f"\r{self.pieces:,} tokens", end="", file=sys.stderr, flush=True)

    def finish(self, generations: "list[Generation]", tokenizer: "Tokenizer") -> None:
        """Print what is not printed yet."""
        seconds = time.perf_counter() - self.started
        if self.progress:
            print("\r" + " " * 24, end="\r", file=sys.stderr, flush=True)
        for generation in generations:
            if self.as_json:
                print(json.dumps({**asdict(generation), "prompt": self.prompts[generation.prompt]}, ensure_ascii=False))
                continue
            if len(generations) > 1:
                print(f"--- prompt {generation.prompt + 1}, continuation {generation.sample + 1}")
            if not self.streaming or not self.pieces:
                self._write_prompt(generation.prompt)
                self._write(generation.text)
            self._write("\n")
            for token, value in zip(generation.tokens, generation.log_probabilities or [], strict=False):
                print(f"{value:9.4f}  {tokenizer.decode([token], skip_special=False)!r}")
        if self.terminal:
            tokens = sum(len(generation.tokens) for generation in generations)
            reasons = ", ".join(sorted({generation.finish_reason for generation in generations}))
            about = f"{tokens} tokens, {tokens / seconds:.1f} tokens/s, seed {generations[0].seed}, ended by: {reasons}"
            typer.secho(about, dim=True, err=True)

    def _write_prompt(self, number: int) -> None:
        if self.terminal:
            self._write(self.prompts[number], bold=True)

    def _write(self, text: str, bold: bool = False) -> None:
        if self.terminal:  # a model may write anything, commands to the terminal included
            text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
            text = typer.style(text, bold=True) if bold and text else text
        sys.stdout.write(text)
        sys.stdout.flush()
