"""What a sliding window saves: time and memory of reading a prompt of n tokens, with a window and with full attention.

    python benchmarks/windows.py [--quick] [--window 512] [--rounds 3]

Two measurements, each with the exponent b of a * n^b fitted to it:

- attention: the time of one layer's attention (8 heads of 64, 2 of keys) forward, and forward and backward, at once.
- model: a Mistral of four layers reads the prompt through its rolling cache in pieces of 1,024 tokens: seconds, and by
  how much the process's memory rises above the loaded model at its peak. Each n is a process of its own.

Attention that computes n W pairs has the exponent 1, all pairs 2; beyond the window the cache's memory has the exponent
0, and without window 1. What else a model computes (exponent 1) lowers the exponent of full attention's time. The fit
is over the n that are at least four windows long.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from common import interleave, machine, median, peak_memory, table
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.inference import decoder
from stemma.inference.rolling_decoder import RollingDecoder
from stemma.layers.attention import attention
from stemma.layers.masks import Mask

LENGTHS = (1024, 2048, 4096, 8192, 16384)
ARMS = ("window", "full")


def exponent(lengths: Sequence[int], values: Sequence[float], window: int) -> float:
    """Return b of the least-squares fit of log value = log a + b log n over n >= 4 windows."""
    kept = [(length, value) for length, value in zip(lengths, values, strict=True) if length >= 4 * window]
    n, y = np.log(np.array(kept)).T
    return float(np.polyfit(n, y, 1)[0])


def attention_seconds(lengths: Sequence[int], window: int, rounds: int, backward: bool) -> dict[str, list[float]]:
    """Return the median seconds of each arm at each length."""
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for length in lengths:
        query = torch.randn(1, 8, length, 64, requires_grad=backward)
        key, value = (torch.randn(1, 2, length, 64, requires_grad=backward) for _ in range(2))

        def run(size: int | None, tensors: Sequence[torch.Tensor] = (query, key, value)) -> None:
            output = attention(*tensors, Mask(causal=True), window=size)
            if backward:
                torch.autograd.grad(output.sum(), tensors)

        arms = {"window": lambda run=run: run(window), "full": lambda run=run: run(None)}
        for arm, found in interleave(arms, rounds).items():
            seconds[arm].append(median(found))
    return seconds


def read_prompt(length: int, window: int | None) -> dict[str, float]:
    """Return seconds and peak bytes of reading a prompt of `length` tokens in this process."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocabulary=1024, context=65536, layers=4, hidden=256, heads=8, key_value_heads=4, head_dim=64,
        feed_forward=512, windows=(window,),
    )  # fmt: skip
    model = Mistral(config).eval()
    RollingDecoder(model, [[1] * decoder.PIECE_TOKENS], new_tokens=1).read_prompts()  # what is set up once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_memory()
    prompt = torch.randint(0, 1024, (length,)).tolist()
    start = perf_counter()
    RollingDecoder(model, [prompt], new_tokens=1).read_prompts()
    return {"seconds": perf_counter() - start, "bytes": max(peak_memory() - before, 1)}


def model_costs(lengths: Sequence[int], window: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return `read_prompt` of each arm at each length, medians over processes that take turns."""
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for length in lengths:
            for arm in ARMS:
                command = [sys.executable, __file__, "--read", str(length), "--window", str(window), "--arm", arm]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                runs.setdefault((arm, length), []).append(json.loads(printed))
    return {
        arm: [
            {kind: median([run[kind] for run in runs[arm, length]]) for kind in ("seconds", "bytes")}
            for length in lengths
        ]
        for arm in ARMS
    }


def lines(
    what: str, lengths: Sequence[int], values: dict[str, list[float]], window: int, unit: float
) -> list[list[str]]:
    """Return a row of the table for each arm."""
    return [
        [f"{what}, {arm}", *(f"{value / unit:,.3g}" for value in found), f"{exponent(lengths, found, window):.2f}"]
        for arm, found in values.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 8,192 tokens, one round")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read_prompt(options.read, options.window if options.arm == "window" else None)))
        return
    lengths, rounds = (LENGTHS[:-1], 1) if options.quick else (LENGTHS, options.rounds)
    print(f"{machine()}; window {options.window}\n")
    rows = []
    for what, backward in (("attention forward, ms", False), ("forward and backward, ms", True)):
        rows += lines(what, lengths, attention_seconds(lengths, options.window, rounds, backward), options.window, 1e-3)
    costs = model_costs(lengths, options.window, rounds)
    for what, kind, unit in (("model, s", "seconds", 1.0), ("model, peak MiB", "bytes", 2.0**20)):
        values = {arm: [cost[kind] for cost in found] for arm, found in costs.items()}
        rows += lines(what, lengths, values, options.window, unit)
    print(table(["n", *(f"{length:,}" for length in lengths), "exponent"], rows))


if __name__ == "__main__":
    main()
