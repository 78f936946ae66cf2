"""What a run that broke says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def failures(console: "Console") -> Iterator[None]:
    """Say in one line why a run broke, and exit with 1."""
    from stemma.training.non_finite import Diverged

    try:
        yield
    except (Diverged, OSError) as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
