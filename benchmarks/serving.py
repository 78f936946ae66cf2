"""`stemma serve` beside `transformers serve` and llama.cpp's `llama-server`: tokens a second, latencies and memory.

    python benchmarks/serving.py [--quick] [--clients 1 8 64] [--rounds 3] [--new-tokens 64] [--threads N]

Real server processes on free local ports, one after the other in turns, all with the same random Mistral and byte-level
BPE tokenizer. So many clients at a time send prompts of 60 to 200 words, no two alike, and read the streamed answers
token by token, greedily; its weights are such that the model never ends a text. transformers batches continuously,
with as many tokens a step and as large a cache as ours. A server that is not installed or that fails is left out, with
a line that says so. "Same texts" are the share that is as ours: rounding decides between equally likely tokens.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import torch

from common import machine, median, peak_memory, table
from quantization_peers import write_gguf
from stemma import families
from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.families.mistral.model import Mistral, MistralConfig
from texts import running_text

FULL = MistralConfig(
    vocabulary=8192, context=2048, layers=12, hidden=768, heads=12, key_value_heads=4, feed_forward=2048,
    windows=(None,),
)  # fmt: skip
QUICK = MistralConfig(
    vocabulary=4096, context=1024, layers=4, hidden=256, heads=4, key_value_heads=2, feed_forward=768, windows=(None,)
)
STEP_TOKENS, MOST_TEXTS, PAGE = 512, 64, 256


@dataclass
class Answer:
    """A streamed answer; seconds from its request to its first piece and its last one."""

    text: str
    first: float
    last: float


@dataclass
class Measured:
    """What one server did with one number of clients, over all rounds."""

    answers: list[Answer] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # output tokens a second, of each round
    memory: int = 0  # bytes


@dataclass(frozen=True)
class Load:
    """What is asked: by each number of clients other prompts, and some before to warm up; tokens of an answer."""

    prompts: dict[int, list[str]]
    warm_up: list[str]
    new_tokens: int


@dataclass(frozen=True)
class Program:
    """A server: `command(port)` starts it, `model` is by which name requests call it."""

    command: Callable[[int], list[str]]
    model: str


class Server:
    """A server process, in a context."""

    def __init__(self, program: Program, threads: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log, environment = log, {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                program.command(port), stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def __enter__(self) -> "Server":
        end = time.monotonic() + 600
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"it does not start: {self.last_words}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-1000:].strip().replace("\n", " | ")


async def ask(client: httpx.AsyncClient, model: str, prompt: str, new_tokens: int) -> Answer:
    """Send a prompt; read the stream to its end."""
    body = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    pieces: list[str] = []
    first = last = 0.0
    reason = None
    begin = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            for choice in event.get("choices", []):
                reason = choice.get("finish_reason") or reason
                if choice["text"]:
                    last = time.perf_counter() - begin
                    first = first or last
                    pieces.append(choice["text"])
    if reason != "length":
        raise RuntimeError(f"the text ended by {reason}, expected {new_tokens} tokens")
    return Answer("".join(pieces), first, last)


async def ask_all(url: str, model: str, prompts: Sequence[str], clients: int, new_tokens: int) -> list[Answer]:
    """Let so many clients at a time ask for all prompts; return the answers in the order of the prompts."""
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(prompts))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one() -> None:
            for number, prompt in waiting:
                answers[number] = await ask(client, model, prompt, new_tokens)

        await asyncio.gather(*(one() for _ in range(clients)))
    return [answers[number] for number in range(len(prompts))]


def measure(server: Server, model: str, load: Load, found: dict[int, Measured]) -> None:
    """Warm a server up, then put it under the load of each number of clients, and stop it."""
    with server:
        try:
            asyncio.run(ask_all(server.url, model, load.warm_up, 2, load.new_tokens))
            for clients, texts in load.prompts.items():
                begin = time.perf_counter()
                answers = asyncio.run(ask_all(server.url, model, texts, clients, load.new_tokens))
                rate = len(texts) * load.new_tokens / (time.perf_counter() - begin)
                measured = found.setdefault(clients, Measured())
                measured.answers += answers
                measured.rates.append(rate)
                measured.memory = max(measured.memory, peak_memory(server.process.pid))
        except (httpx.HTTPError, RuntimeError) as error:
            raise RuntimeError(f"{error} {server.last_words}") from error


def make_model(config: MistralConfig, folder: Path) -> tuple[Mistral, Tokenizer]:
    """Save a random model that never ends a text, and a tokenizer of the help topics that ship with Python."""
    tokenizer = train_tokenizer([running_text()], "bpe", config.vocabulary)
    torch.manual_seed(0)
    model = Mistral(config).eval()
    with torch.no_grad():
        model.output_weight.mul_(20)  # logits far apart, so that rounding seldom decides
        model.output_weight[tokenizer.separator] = 0  # the likeliest of thousands is always above 0
    families.save(model, tokenizer, folder)
    return model, tokenizer


def draw_prompts(count: int, rng: np.random.Generator) -> list[str]:
    """Return stretches of 60 to 200 words, which begin at different places."""
    words = running_text().split()
    starts, lengths = rng.choice(len(words) - 200, count, replace=False), rng.integers(60, 201, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def programs(folder: Path, model: Mistral, tokenizer: Tokenizer, threads: int) -> dict[str, Program]:
    """Return the servers that are installed."""
    config = model.config
    blocks = 2**30 // (2 * config.layers * config.key_value_heads * config.head_size * 4 * PAGE)
    blocks = min(blocks, MOST_TEXTS * config.context // PAGE)
    bin_folder = Path(sys.executable).parent
    found = {
        "stemma": Program(
            lambda port: [
                str(bin_folder / "stemma"), "serve", str(folder), "--port", str(port), "--name", "model",
                "--device", "cpu", "--texts", str(MOST_TEXTS), "--step-tokens", str(STEP_TOKENS),
            ],
            "model",
        ),
        "transformers": Program(
            lambda port: [
                str(bin_folder / "transformers"), "serve", str(folder), "--port", str(port), "--host", "127.0.0.1",
                "--device", "cpu", "--continuous-batching", "--cb-block-size", str(PAGE),
                "--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", str(STEP_TOKENS),
            ],
            str(folder),
        ),
    }  # fmt: skip
    llama = shutil.which("llama-server")
    if llama is None:
        print("left out: llama.cpp, there is no llama-server on the path")
        return found
    try:
        write_gguf(folder / "model.gguf", model, "float32", tokenizer)
    except ImportError as error:
        print(f"left out: llama.cpp, {error}")
        return found
    found["llama.cpp"] = Program(
        lambda port: [
            llama, "-m", str(folder / "model.gguf"), "--host", "127.0.0.1", "--port", str(port),
            "-t", str(threads), "-np", str(MOST_TEXTS), "-c", str(MOST_TEXTS * config.context), "-b", str(STEP_TOKENS),
            "-ctk", "f32", "-ctv", "f32", "--alias", "model",
        ],
        "model",
    )  # fmt: skip
    return found


def line_of(name: str, clients: int, own: Measured, peer: Measured, new_tokens: int) -> list[str]:
    """Return a line of the table: `own` is what was measured, `peer` is ours."""

    def percentiles(values: Sequence[float], digits: int) -> str:
        return " / ".join(f"{value:,.{digits}f}" for value in np.percentile(values, [50, 95, 99]))

    rate = median(own.rates)
    same = np.mean([a.text == b.text for a, b in zip(own.answers, peer.answers, strict=False)])
    return [
        str(clients),
        name,
        f"{rate:,.1f}",
        percentiles([1000 * answer.first for answer in own.answers], 0),
        percentiles([1000 * (answer.last - answer.first) / (new_tokens - 1) for answer in own.answers], 1),
        percentiles([answer.last for answer in own.answers], 2),
        f"{own.memory / 2**20:,.0f}",
        f"{same:.0%}",
        f"{median(peer.rates) / rate:.2f}",
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a model of 5M parameters, one round, short texts")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--new-tokens", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each server")
    options = parser.parse_args()
    rounds, new_tokens = (1, 32) if options.quick else (3, 64)
    rounds, new_tokens = options.rounds or rounds, options.new_tokens or new_tokens
    rng = np.random.default_rng(0)
    # Every client asks twice, a single one eight times.
    prompts = {clients: draw_prompts(max(2 * clients, 8), rng) for clients in sorted(options.clients)}
    load = Load(prompts, draw_prompts(4, rng), new_tokens)
    found: dict[str, dict[int, Measured]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = make_model(QUICK if options.quick else FULL, Path(folder))
        parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(
            f"{parameters:.0f}M parameters, {new_tokens} tokens a text; {options.threads} threads a server; {machine()}"
        )
        servers = programs(Path(folder), model, tokenizer, options.threads)
        for _ in range(rounds):
            for name, program in list(servers.items()):
                try:
                    server = Server(program, options.threads, Path(folder) / "server.log")
                    measure(server, program.model, load, found.setdefault(name, {}))
                except RuntimeError as error:
                    print(f"left out: {name}, {error}")
                    del servers[name]
    if "stemma" not in servers:
        raise SystemExit("nothing to compare with")
    ours = found["stemma"]
    lines = [
        line_of(name, clients, found[name][clients], ours[clients], new_tokens)
        for clients in sorted(options.clients)
        for name in servers
    ]
    heads = [
        "clients",
        "server",
        "tokens/s",
        "first token ms, p50 / p95 / p99",
        "per token ms",
        "whole s",
        "peak MiB",
        "same texts",
        "stemma is faster by",
    ]
    print("\n" + table(heads, lines))


if __name__ == "__main__":
    main()
