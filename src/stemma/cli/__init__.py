"""The command `stemma`: one module a verb; each parses, calls and prints. No logic lives here."""

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from stemma.errors import Diverged, InputError, closest

_python_warning = warnings.formatwarning

LEARN, USE, MEASURE = "Learn from text", "Use a model", "Measure a model"

# verb: (module, attribute, panel). Modules import PyTorch and friends inside their functions, so that help is instant.
VERBS = {
    "tokenizer": ("stemma.cli.tokenizer", "app", LEARN),
    "pretrain": ("stemma.cli.pretrain", "pretrain", LEARN),
    "finetune": ("stemma.cli.finetune", "finetune", LEARN),
    "align": ("stemma.cli.align", "app", LEARN),
    "distill": ("stemma.cli.distill", "app", LEARN),
    "generate": ("stemma.cli.generate", "generate", USE),
    "chat": ("stemma.cli.chat", "chat", USE),
    "serve": ("stemma.cli.serve", "serve", USE),
    "fill": ("stemma.cli.fill", "fill", USE),
    "embed": ("stemma.cli.embed", "app", USE),
    "ask": ("stemma.cli.ask", "ask", USE),
    "compare": ("stemma.cli.compare", "compare", MEASURE),
    "reproduce": ("stemma.cli.reproduce", "reproduce", MEASURE),
    "evaluate": ("stemma.cli.evaluate", "evaluate", MEASURE),
    "probe": ("stemma.cli.probe", "app", MEASURE),
    "look": ("stemma.cli.look", "look", MEASURE),
}


class Verbs(TyperGroup):
    """A group that answers an unknown verb with the closest known one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            hint = closest(args[0], known) or f" (the verbs are: {', '.join(known)})"
            raise InputError(f"{ctx.command_path}: no verb '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)


def build() -> typer.Typer:
    """Return the application with every verb in its panel."""
    app = typer.Typer(
        name="stemma",
        cls=Verbs,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        help="The family tree of language models, every branch of it running.\n\n"
        "Example: [bold]stemma pretrain gpt/tiny --out runs/tiny[/bold], "
        "then [bold]stemma generate runs/tiny --prompt 'def main'[/bold].",
    )
    app.callback()(_root)
    for verb, (module, attribute, panel) in VERBS.items():
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, typer.Typer):
            group = command.info.cls if isinstance(command.info.cls, type) else Verbs
            app.add_typer(command, name=verb, rich_help_panel=panel, cls=group, no_args_is_help=True)
        else:
            app.command(verb, rich_help_panel=panel)(command)
    return app


def _version(value: bool) -> None:
    if value:
        from stemma import __version__

        print(f"stemma {__version__}")
        raise typer.Exit


def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print it.")) -> None:
    pass


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return what a warning looks like: one of ours is a line for the user, without the place in the code."""
    ours = category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1])
    return f"warning: {message}\n" if ours else _python_warning(message, category, filename, lineno, line)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2, what the system refuses
    one line and 1."""
    warnings.formatwarning = _warning
    try:
        build()()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output (head, less) has gone: no traceback, and none at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, Diverged) as error:  # a disk that is full, a folder that may not be written, a training that broke
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
