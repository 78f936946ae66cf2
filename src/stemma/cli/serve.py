"""`stemma serve`: a model over HTTP."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    model: Annotated[str, typer.Argument(help="A checkpoint directory or a Hugging Face hub id.", metavar="MODEL")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: reachable from outside.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="By which clients call the model.", show_default="MODEL as given")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="STEMMA_API_KEY", help="Serve only who sends it; several are possible.", show_default="none"
        ),
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="Jinja file to use instead of the tokenizer's own.", show_default=False)
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="as stored")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    cache: Annotated[int, typer.Option(min=1, help="MiB for keys and values.", rich_help_panel="Engine")] = 1024,
    texts: Annotated[int, typer.Option(min=1, help="Written at a time.", rich_help_panel="Engine")] = 64,
    step_tokens: Annotated[int, typer.Option(min=1, help="Read in one step.", rich_help_panel="Engine")] = 512,
    guess: Annotated[
        str | None,
        typer.Option(
            help="Guesses tokens ahead; texts come faster and stay the same: ngram (what followed before), "
            "or a smaller checkpoint with the same tokenizer.",
            show_default="nothing",
            rich_help_panel="Engine",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="int8, int4, int4:64, ...: round the weights.", show_default="no", rich_help_panel="Engine"),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Texts that may wait.", rich_help_panel="Limits")] = 256,
    texts_per_request: Annotated[int, typer.Option(min=1, help="Prompts times n.", rich_help_panel="Limits")] = 128,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds for a request.", rich_help_panel="Limits")] = 600.0,
    body_bytes: Annotated[int, typer.Option(min=1, help="Of a request.", rich_help_panel="Limits")] = 4 * 2**20,
    header_seconds: Annotated[
        float, typer.Option(min=0.1, help="For a client to send its request.", rich_help_panel="Limits")
    ] = 10.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running requests get after SIGTERM.", rich_help_panel="Limits")
    ] = 30.0,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin of web pages that may call; several are possible.")
    ] = None,
) -> None:
    """Serve a model over HTTP with OpenAI's interface: completions, chat, embeddings; and blanks, scores, tokens.

    Prefer the environment variable to --api-key: arguments can be seen by everybody on the machine.

    Example: [bold]stemma serve runs/book --port 8000[/bold]
    """
    from stemma.cli.devices import device_named, dtype_named
    from stemma.errors import InputError
    from stemma.families.directory import resolve

    try:
        from stemma.serving.limits import Limits
        from stemma.serving.served import Served, load_served
        from stemma.serving.server import serve as run
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'stemma-lm[serve]'") from error
    from stemma.training.hardware import prepare_processor

    directory, kind, place = resolve(model), dtype_named(dtype), device_named(device)
    limits = Limits(
        body=body_bytes,
        queue=queue,
        texts=texts_per_request,
        deadline=deadline,
        header_seconds=header_seconds,
        grace=grace,
    )

    def load() -> Served:
        prepare_processor()
        return load_served(
            str(directory),
            name=name or model,
            dtype=kind,
            device=place,
            memory=cache * 2**20,
            budget=step_tokens,
            most_texts=texts,
            template=chat_template,
            guess=guess,
            quantize=quantize,
        )

    keys, origins = api_key or [], cors_origin or []
    raise typer.Exit(run(load, host=host, port=port, limits=limits, keys=keys, origins=origins))
