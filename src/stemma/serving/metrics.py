"""Counts and times of a server in Prometheus' text format (version 0.0.4)."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """How often a value was at most each of some bounds."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        """Return the histogram's lines."""
        found, below = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            below += count
            found.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*found, f"{name}_sum {self.total}", f"{name}_count {below}"]


class Metrics:
    """All that is counted. Used by the event loop alone."""

    def __init__(self) -> None:
        self.requests: dict[Labels, int] = defaultdict(int)
        self.prompt_tokens = self.generated_tokens = self.prefix_tokens = 0
        self.first_token = Histogram(SECONDS)
        self.per_token = Histogram(SECONDS)
        self.batch = Histogram(TEXTS)
        self.gauges: dict[str, float] = dict.fromkeys(
            ["queue_length", "running_texts", "cache_used_ratio", "cache_blocks_used"], 0.0
        )

    def count_request(self, path: str, status: int) -> None:
        """Count an answered request; `path` is a route, not what the client wrote."""
        self.requests[(("path", path), ("status", str(status)))] += 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return everything, with further gauges."""
        lines = _described("requests_total", "counter", "Answered requests.")
        lines += [f"stemma_requests_total{_labels(labels)} {count}" for labels, count in self.requests.items()]
        counters = {
            "prompt_tokens_total": ("Tokens of prompts.", self.prompt_tokens),
            "generated_tokens_total": ("Tokens written.", self.generated_tokens),
            "prefix_tokens_total": ("Tokens of prompts found in the cache.", self.prefix_tokens),
        }
        for name, (about, count) in counters.items():
            lines += [*_described(name, "counter", about), f"stemma_{name} {count}"]
        abouts = {
            "queue_length": "Texts that have not begun.",
            "running_texts": "Texts that are read or written.",
            "cache_used_ratio": "Share of the cache's blocks that texts refer to.",
            "cache_blocks_used": "Blocks of keys and values that texts refer to.",
            "open_texts": "Texts of all requests that are not answered yet.",
            "ready": "Whether the model is loaded and served.",
        }
        for name, value in {**self.gauges, **gauges}.items():
            lines += [*_described(name, "gauge", abouts[name]), f"stemma_{name} {value}"]
        histograms = {
            "time_to_first_token_seconds": ("From a request's arrival to its first token.", self.first_token),
            "time_per_output_token_seconds": ("Between the tokens of a text.", self.per_token),
            "batch_texts": ("Texts that got a token in the same step.", self.batch),
        }
        for name, (about, histogram) in histograms.items():
            lines += [*_described(name, "histogram", about), *histogram.lines(f"stemma_{name}")]
        return "\n".join(lines) + "\n"


def _described(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP stemma_{name} {about}", f"# TYPE stemma_{name} {kind}"]


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels) + "}"
