"""Decoding speed of our GPT-2 beside transformers' GPT-2 with the same random weights.

    python benchmarks/decode.py [--quick] [--sizes 10m gpt2] [--precisions float32 bfloat16] [--rows 1 8]

All generate greedily from the same prompts of 64 tokens through their public `generate`, transformers with its static
and with its default, dynamic cache. Short runs of each arm take turns; the time of a token is the median over all turns
of the time between two calls of the model after the first, with everything that `generate` does between them. "Of the
read bandwidth" divides the bytes that a step has to read (the weights once, and the keys and values of every row) by
its time, and that by the rate at which this process can read a large tensor, measured in the same minute.
"""

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import torch
import transformers

from common import machine, table
from stemma.families.gpt.checkpoint import to_published
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.inference.decoder import Decoder
from stemma.inference.generate import generate

SIZES = {
    "10m": GPTConfig(vocabulary=8192, context=512, layers=6, hidden=384, heads=6),  # 13.8M with the embedding
    "gpt2": GPTConfig(),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROMPT_TOKENS = 64
Result = TypeVar("Result")
ARMS = ("stemma", "stemma, own products", "transformers, static cache", "transformers, dynamic cache")


class Numbers:
    """A tokenizer whose texts are numbers: `generate` takes text, and a benchmark has tokens."""

    separator = -1  # never generated: every run is as long as the others
    vocabulary = 1

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def stream_decoder(self) -> "Numbers":
        return self

    def push(self, token: int) -> str:
        return f" {token}"

    def flush(self) -> str:
        return ""


@dataclass
class Case:
    """One line of the table: a size, a precision and a number of rows."""

    size: str
    precision: str
    rows: int
    new_tokens: int

    def arms(self) -> dict[str, Callable[[], list[float]]]:
        """Return for each arm a function that generates once and returns the seconds of each step."""
        torch.manual_seed(0)
        model = GPT(SIZES[self.size]).to(PRECISIONS[self.precision]).eval()
        published, tensors = to_published(model)
        peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(**published)).to(PRECISIONS[self.precision]).eval()
        peer.load_state_dict(dict(tensors), strict=False)
        peer.generation_config.eos_token_id = None
        prompts = torch.randint(1, model.config.vocabulary, (self.rows, PROMPT_TOKENS))
        self.step_bytes = bytes_of_a_step(model, self.rows, PROMPT_TOKENS + self.new_tokens // 2)
        return {
            ARMS[0]: lambda: ours(model, prompts, self.new_tokens, packed=True),
            ARMS[1]: lambda: ours(model, prompts, self.new_tokens, packed=False),
            ARMS[2]: lambda: theirs(peer, prompts, self.new_tokens, cache_implementation="static"),
            ARMS[3]: lambda: theirs(peer, prompts, self.new_tokens),
        }


def ours(model: GPT, prompts: torch.Tensor, new_tokens: int, packed: bool) -> list[float]:
    """Generate with stemma; return the seconds between calls of the model."""
    times: list[float] = []
    step = Decoder.step

    def timed(self: Decoder, tokens: torch.Tensor) -> torch.Tensor:
        times.append(time.perf_counter())
        return step(self, tokens)

    texts = [" ".join(map(str, prompt)) for prompt in prompts.tolist()]
    with patch.object(Decoder, "step", timed), patch("stemma.inference.job.PACK_FROM", 0 if packed else new_tokens + 1):
        generate(model, Numbers(), texts, max_new_tokens=new_tokens, temperature=0)
    return differences(times)


def theirs(model: torch.nn.Module, prompts: torch.Tensor, new_tokens: int, **options: str) -> list[float]:
    """Generate with transformers; return the seconds between its checks whether to stop, once a token."""
    times: list[float] = []

    class Clock(transformers.StoppingCriteria):
        def __call__(self, tokens: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool)

    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=transformers.StoppingCriteriaList([Clock()]),
        **options,
    )
    return differences(times)


def differences(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip(times[1:], times[2:], strict=False)]


def bytes_of_a_step(model: GPT, rows: int, length: int) -> int:
    """Return what one decode step reads: every matrix once, and the keys and values of `length` tokens of each row."""
    config, weight = model.config, model.output_weight
    matrices = sum(p.numel() for block in model.blocks for p in block.parameters() if p.dim() == 2) + weight.numel()
    return (matrices + 2 * config.layers * rows * length * config.hidden) * weight.itemsize


def read_bandwidth(repetitions: int = 5) -> float:
    """Return the bytes a second at which all threads together read memory, the best of several."""
    data = torch.ones(2**27)  # 512 MiB, more than any cache
    best = 0.0
    for _ in range(repetitions):
        start = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - start))
    return best


def others_share(run: Callable[[], Result]) -> tuple[Result, float]:
    """Run; return its result and the share of the processors' time that other programs took meanwhile (Linux)."""
    start, busy, own = time.perf_counter(), busy_seconds(), time.process_time()
    result = run()
    others = busy_seconds() - busy - (time.process_time() - own)
    return result, others / (time.perf_counter() - start) / (os.cpu_count() or 1)


def busy_seconds() -> float:
    """Return how long all processors together have been busy since the machine started, 0 where nobody says."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, idle, waiting, *interrupts = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def measure(case: Case, turns: int, patience: float) -> list[str]:
    """Return the cells of a case's line.

    A run during which other programs took more than a twentieth of the processors' time is repeated, `patience`
    seconds long; from then on every run counts, and the line says so.
    """
    arms = case.arms()
    steps: dict[str, list[float]] = {name: [] for name in arms}
    bandwidth, disturbed, end = 0.0, 0, time.perf_counter() + patience
    for run in arms.values():
        run()  # the first one sets everything up
    for _ in range(turns):
        bandwidth = max(bandwidth, read_bandwidth(2))
        for name, run in arms.items():
            others = 1.0
            while others > 0.05:
                while others_share(lambda: time.sleep(0.3))[1] > 0.05 and time.perf_counter() < end:
                    pass
                seconds, others = others_share(run)
                if time.perf_counter() > end:
                    break
            disturbed += others > 0.05
            steps[name] += seconds
    times = {name: statistics.median(seconds) for name, seconds in steps.items()}
    share = case.step_bytes / times[ARMS[0]] / bandwidth
    return [
        case.size,
        case.precision,
        str(case.rows),
        *(f"{case.rows / times[name]:.1f}" for name in ARMS),
        f"{times[ARMS[2]] / times[ARMS[0]]:.2f}",
        f"{times[ARMS[3]] / times[ARMS[0]]:.2f}",
        f"{share:.0%} of {bandwidth / 1e9:.0f} GB/s",
        f"{disturbed} of {turns * len(arms)}",
    ]


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small model only, fewer turns")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--turns", type=int, default=7, help="how often each arm generates")
    parser.add_argument("--patience", type=float, default=60, help="seconds a line to wait for an idle machine")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    sizes, turns = (["10m"], 3) if options.quick else (options.sizes, options.turns)
    print(f"decode tokens/s on {machine()}\n")
    rows = []
    for size in sizes:
        for precision in options.precisions:
            for number in options.rows:
                case = Case(size, precision, number, new_tokens=24 if size == "gpt2" else 40)
                rows.append(measure(case, turns, options.patience))
                print(" | ".join(rows[-1]), flush=True)
    heads = ["size", "precision", "rows", *ARMS, "ratio to static", "ratio to dynamic", "of the read bandwidth"]
    print("\n" + table([*heads, "disturbed runs"], rows))


if __name__ == "__main__":
    main()
