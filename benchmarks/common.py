"""What the benchmarks share: interleaved timing, medians, the machine's description, a table."""

import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def interleave(arms: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Run every arm once a round, in turn, so that a drift of the machine's speed meets all alike; return seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(warmup + rounds):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def rates_row(what: str, count: int, seconds: Mapping[str, Sequence[float]], digits: int = 1) -> list[str]:
    """Return a line of a table: how many a second each arm does at its median, and how many times the second the first
    does."""
    rates = [count / median(times) for times in seconds.values()]
    return [what, *(f"{rate:.{digits}f}" for rate in rates), f"{rates[0] / rates[1]:.2f}"]


def peak_memory(process: int | None = None) -> int:
    """Return the largest resident size that a process, by default this one, has had, in bytes; 0 where nobody says.

    On Linux from /proc: `getrusage` there counts the parent's memory too, from before the program was started.
    """
    status = Path(f"/proc/{process or 'self'}/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if process is not None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def machine() -> str:
    """Describe what a result was measured on, in one line."""
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
