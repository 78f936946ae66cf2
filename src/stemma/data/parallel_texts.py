"""Two text files of which the n-th lines belong together, such as a text and its translation."""

from collections.abc import Iterator
from pathlib import Path

from stemma.data.tables import numbered_lines
from stemma.errors import InputError


def read_parallel(source: Path, target: Path) -> list[tuple[str, str]]:
    """Read the pairs of lines of two UTF-8 text files (.gz and .zst too); blank lines are kept, to stay in step.

    Raises:
        InputError: the files have unequal numbers of lines, or no line, or one cannot be read.
    """
    return list(parallel_lines(source, target))


def parallel_lines(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs that `read_parallel` reads, one at a time; what is wrong may be told at the end only."""
    sources, targets = (iter(line for _, line in numbered_lines(path)) for path in (source, target))
    pairs = 0
    for ours in sources:
        theirs = next(targets, None)
        if theirs is None:
            raise _unequal(source, target, pairs + 1 + sum(1 for _ in sources), pairs)
        pairs += 1
        yield ours, theirs
    if more := sum(1 for _ in targets):
        raise _unequal(source, target, pairs, pairs + more)
    if not pairs:
        raise InputError(f"{source} and {target}: no lines; expected at least one pair")


def _unequal(source: Path, target: Path, ours: int, theirs: int) -> InputError:
    return InputError(f"{source} has {ours:,} lines, but {target} {theirs:,}; expected equally many, a pair a line")
