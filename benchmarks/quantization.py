"""Decoding and prompt reading in float32, bfloat16, int8 and int4 beside transformers, OpenVINO and llama.cpp.

    python benchmarks/quantization.py [--quick] [--rows 1 8] [--rounds 5] [--prompt 512] [--new-tokens 128]

A random Mistral of 125M parameters reads a prompt of 512 tokens a row and then writes 128, greedily; all arms have the
same weights (llama.cpp its own rounding of them, OpenVINO too), and take turns. Peers that are not installed are
skipped with a line: OpenVINO through optimum-intel, llama.cpp through llama-cpp-python and gguf.

With one thread (OMP_NUM_THREADS=1) times are processor time, which other programs on the machine disturb less; else
wall time. "Of the roofline": the bytes that a decode step has to read (weights once, keys and values of every row) over
the measured bandwidth, divided by the step's time.
"""

import argparse
import importlib.util
import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from common import machine, median, table
from quantization_peers import LlamaCpp, OpenVINO, Transformers
from stemma.families import load
from stemma.families.directory import write_json, write_weights
from stemma.families.mistral.checkpoint import to_published
from stemma.families.mistral.model import Mistral, MistralConfig
from stemma.inference.prepacked import prepacked
from stemma.inference.quantization import quantized
from stemma.inference.rolling_decoder import RollingDecoder

FULL = MistralConfig(
    vocabulary=32000, context=4096, layers=12, hidden=768, heads=12, key_value_heads=4, feed_forward=2048,
    windows=(None,),
)  # fmt: skip
QUICK = MistralConfig(
    vocabulary=8192, context=4096, layers=6, hidden=384, heads=6, key_value_heads=2, feed_forward=1024, windows=(None,)
)
PRECISIONS = ("float32", "bfloat16", "int8", "int4")
# Bits a weight takes, scales included: ours, and nearly the peers'.
BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 5}
PEERS = {"transformers": Transformers, "openvino": OpenVINO, "llama.cpp": LlamaCpp}


class Ours:
    """This library: floats prepacked, the others quantised from a float32 model, whose states stay float32."""

    def __init__(self, model: Mistral, precision: str) -> None:
        if precision in ("int8", "int4"):
            self.model = quantized(model, precision)
        else:
            self.model = Mistral(model.config).eval()
            self.model.load_state_dict(model.state_dict())
            self.model.to(getattr(torch, precision))

    def start(self, prompts: torch.Tensor, new_tokens: int) -> None:
        """Forget what was before."""
        self.decoder = RollingDecoder(self.model, prompts.tolist(), new_tokens=new_tokens)
        self.fast = prepacked(self.model, len(prompts))
        self.fast.__enter__()

    def read(self) -> torch.Tensor:
        """Read the prompts; return the next tokens, [rows]."""
        return self.decoder.read_prompts().argmax(-1)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read a token a row; return the next ones."""
        return self.decoder.step(tokens).argmax(-1)

    def end(self) -> None:
        """Undo `start`."""
        self.fast.__exit__(None, None, None)


def now() -> float:
    """Processor time with one thread, which others on the machine cannot take; else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def read_bandwidth() -> float:
    """Return the bytes a second at which this process reads memory, the best of several."""
    data = torch.ones(2**27)  # 512 MiB, more than most caches
    best = 0.0
    for _ in range(5):
        start = now()
        data.sum()
        best = max(best, data.nbytes / (now() - start))
    return best


@dataclass
class Times:
    """Seconds of each reading of the prompts, and of each step."""

    reading: list[float]
    steps: list[float]

    def add(self, arm: object, prompts: torch.Tensor, new_tokens: int) -> None:
        """Generate once."""
        arm.start(prompts, new_tokens)
        start = now()
        tokens = arm.read()
        self.reading.append(now() - start)
        for _ in range(new_tokens):
            start = now()
            tokens = arm.step(tokens)
            self.steps.append(now() - start)
        arm.end()


def bytes_of_a_step(model: Mistral, precision: str, rows: int, length: int) -> float:
    """Return what a decode step has to read: every matrix once, and the keys and values of `length` tokens a row."""
    config = model.config
    matrices = sum(p.numel() for block in model.blocks for p in block.parameters() if p.dim() == 2)
    weights = (matrices + model.output_weight.numel()) * BITS[precision] / 8
    cached = 2 * config.layers * rows * length * config.key_value_heads * config.head_size
    return weights + cached * (2 if precision == "bfloat16" else 4)


def trial(directory: Path, name: str, precision: str) -> None:
    """Let a peer read and write a little."""
    with torch.inference_mode():
        Times([], []).add(PEERS[name](directory, load(directory), precision), torch.ones(2, 8, dtype=torch.long), 2)


def survives(directory: Path, name: str, precision: str) -> bool:
    """Return whether a peer gets through a trial in a process of its own, which it may take down with it."""
    command = [sys.executable, __file__, "--trial", str(directory), name, precision]
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ended.returncode:
        print(ended.stderr[-2000:], file=sys.stderr)
    return ended.returncode == 0


def arms_of(model: Mistral, directory: Path, names: list[str], precisions: list[str]) -> dict[tuple[str, str], object]:
    """Return every arm that can run here, by precision and name."""
    arms: dict[tuple[str, str], object] = {}
    for precision in precisions:
        arms[precision, "stemma"] = Ours(model, precision)
        for name in names:
            kind = PEERS[name]
            missing = [module for module in kind.needs if importlib.util.find_spec(module) is None]
            if missing:
                print(f"skipped: {name}, {precision}: {', '.join(missing)} not installed")
            elif precision not in kind.precisions:
                print(f"skipped: {name}, {precision}: it has no such weights")
            elif not survives(directory, name, precision):
                print(f"skipped: {name}, {precision}: it fails or crashes here")
            else:
                arms[precision, name] = kind(directory, model, precision)
    return arms


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, short texts, two rounds")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--prompt", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--trial", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trial:
        trial(Path(options.trial[0]), *options.trial[1:])
        return
    rounds, prompt, new_tokens = (2, 64, 16) if options.quick else (5, 512, 128)
    rounds, prompt = options.rounds or rounds, options.prompt or prompt
    new_tokens = options.new_tokens or new_tokens
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = Mistral(QUICK if options.quick else FULL).eval()
    bandwidth = read_bandwidth()
    clock = "processor" if torch.get_num_threads() == 1 else "wall"
    print(f"tokens/s of {clock} time on {machine()}; memory is read at {bandwidth / 1e9:.1f} GB/s\n", flush=True)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        published, tensors = to_published(model)
        write_json(Path(folder) / "config.json", published)
        write_weights(tensors, Path(folder))
        arms = arms_of(model, Path(folder), options.peers, options.precisions)
        lines = []
        for rows in options.rows:
            prompts = torch.randint(1, model.config.vocabulary, (rows, prompt))
            times = {key: Times([], []) for key in arms}
            for number in range(rounds + 1):
                for key, arm in arms.items():
                    (times[key] if number else Times([], [])).add(arm, prompts, new_tokens if number else 2)
            for (precision, name), measured in times.items():
                step = median(measured.steps)
                floor = bytes_of_a_step(model, precision, rows, prompt + new_tokens // 2) / bandwidth
                ours = median(times[precision, "stemma"].steps)
                lines.append(
                    [
                        precision, name, str(rows), f"{rows * prompt / median(measured.reading):,.0f}",
                        f"{rows / step:,.1f}", f"{floor / step:.0%}", f"{step / ours:.2f}",
                    ]
                )  # fmt: skip
                print(" | ".join(lines[-1]), flush=True)
    heads = [
        "precision",
        "library",
        "rows",
        "prompt tokens/s",
        "new tokens/s",
        "of the roofline",
        "stemma is faster by",
    ]
    print("\n" + table(heads, lines))


if __name__ == "__main__":
    main()
