"""`stemma chat`: a conversation in the terminal."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stemma.serving.conversation import Conversation


def chat(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    system: Annotated[str | None, typer.Option(help="What the model is told before all else.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token; more: bolder.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Choose among the likeliest tokens of this joint probability.")] = 0.95,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same answers.", show_default="random")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="as stored")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Talk with a model: it remembers what was said, and drops the oldest when its context is full.

    /new begins a new conversation, /quit or Ctrl-D ends it; Ctrl-C ends an answer. A model without a chat template
    goes on with a transcript of the conversation. Lines of standard input are answered too.

    Example: [bold]stemma chat runs/mistral --system "Answer briefly."[/bold]
    """
    import secrets

    from stemma.cli.devices import device_named, dtype_named
    from stemma.errors import InputError
    from stemma.inference.sampling import Sampling
    from stemma.serving.conversation import Conversation
    from stemma.serving.served import load_served
    from stemma.training.hardware import prepare_processor

    prepare_processor()
    served = load_served(model, dtype=dtype_named(dtype), device=device_named(device), most_texts=1)
    sampling = Sampling(temperature=temperature, top_p=top_p)
    conversation = Conversation(
        served, system, sampling, max_new_tokens, secrets.randbits(32) if seed is None else seed
    )
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  (lines can be edited, and earlier ones called back)

        kind = "" if served.template else ", which has no chat template: it goes on with a transcript"
        typer.secho(f"{served.name}{kind}. /new: forget, /quit: end.", dim=True, err=True)
    assert served.engine is not None
    with served.engine.fast_products():
        while (line := _line("> " if terminal else "")) not in (None, "/quit"):
            if line == "/new":
                conversation.clear()
            elif line:
                try:
                    _say(conversation, line)
                except InputError as error:
                    if not terminal:
                        raise
                    typer.secho(f"error: {error}", fg="red", err=True)


def _line(prompt: str) -> str | None:
    """Return what was typed, None at the end."""
    try:
        return input(prompt).strip()
    except EOFError:
        return None


def _say(conversation: "Conversation", line: str) -> None:
    forgotten, pieces = conversation.forgotten, conversation.answer(line)
    try:
        for piece in pieces:
            # A model may write anything, commands to the terminal included.
            safe = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in piece)
            sys.stdout.write(safe if sys.stdout.isatty() else piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()
    print()
    if conversation.forgotten > forgotten:
        count = conversation.forgotten - forgotten
        typer.secho(f"(the context is full: {count} of the oldest turns forgotten)", dim=True, err=True)
