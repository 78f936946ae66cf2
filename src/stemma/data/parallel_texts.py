"""Two text files of which the n-th lines belong together, such as a text and its translation."""

from pathlib import Path

from stemma.data.tables import numbered_lines
from stemma.errors import InputError


def read_parallel(source: Path, target: Path) -> list[tuple[str, str]]:
    """Read the pairs of lines of two UTF-8 text files (.gz and .zst too); blank lines are kept, to stay in step.

    Raises:
        InputError: the files have unequal numbers of lines, or no line, or one cannot be read.
    """
    sources, targets = ([line for _, line in numbered_lines(path)] for path in (source, target))
    if len(sources) != len(targets):
        raise InputError(
            f"{source} has {len(sources):,} lines, but {target} {len(targets):,}; expected equally many, a pair a line"
        )
    if not sources:
        raise InputError(f"{source} and {target}: no lines; expected at least one pair")
    return list(zip(sources, targets, strict=True))
