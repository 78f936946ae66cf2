"""A small chat model in a directory, and servers of it: real processes on free ports."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch

from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.families import save
from stemma.families.gpt.model import GPT, GPTConfig

WORDS = "the quick brown fox jumps over the lazy dog while naïve öl–ñandús sing 你好 and 🙂 laugh; "
SPECIAL = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]")
TEMPLATE = """\
{%- if messages[0].role == "system" %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif -%}
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif -%}
{%- for message in messages -%}
{%- if (message.role == "user") != (loop.index0 % 2 == 0) -%}
{{ raise_exception("user and assistant take turns") }}{%- endif -%}
{%- if message.role == "user" -%}[INST]{{ message.content }}[/INST]
{%- else -%}{{ message.content }}{{ eos_token }}{%- endif -%}
{%- endfor -%}"""


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([WORDS * 20, "the lazy dog jumps fox " * 100], "bpe", 328, special=SPECIAL)


@pytest.fixture(scope="session")
def model() -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(vocabulary=328, context=512, layers=2, hidden=32, heads=4, vocabulary_multiple=1)
    network = GPT(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(20 if name.startswith(("token_embedding", "output")) else 15)
    return network


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory, model: GPT, tokenizer: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    save(model, tokenizer, path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


class Server:
    """A server process, its address and its log."""

    def __init__(self, *arguments: str, program: str = "", **environment: str) -> None:
        code = f"from stemma.cli import main\n{program}\nmain()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--port", "0", "--cache", "16", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.lines: list[str] = []
        self.client = httpx.Client(timeout=60)
        self._listening = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if '"event": "listening"' in line:
                self._listening.set()
        self._listening.set()

    @property
    def url(self) -> str:
        assert self._listening.wait(90)
        line = next((line for line in self.lines if '"event": "listening"' in line), None)
        assert line, "".join(self.lines)
        return f"http://127.0.0.1:{json.loads(line)['port']}"

    def ready(self) -> "Server":
        end = time.monotonic() + 60
        while self.client.get(f"{self.url}/health").status_code != 200:
            assert time.monotonic() < end, "".join(self.lines)
            time.sleep(0.05)
        return self

    def post(self, path: str, body: object, **options: object) -> httpx.Response:
        return self.client.post(f"{self.url}{path}", json=body, **options)

    def metric(self, name: str) -> float:
        text = self.client.get(f"{self.url}/metrics").text
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"stemma_{name} ")))

    def wait_for(self, name: str, value: float, seconds: float = 20) -> None:
        """Wait until a metric has a value."""
        end = time.monotonic() + seconds
        while (found := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, expected {value}"
            time.sleep(0.02)

    def stop(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)


@pytest.fixture(scope="module")
def start(directory: Path) -> Iterator[Callable[..., Server]]:
    """start(*arguments, directory=, program=, **environment): a server, stopped at the end of the module."""
    servers: list[Server] = []

    def run(*arguments: str, model_directory: Path = directory, **options: str) -> Server:
        servers.append(Server(str(model_directory), "--name", "small", *arguments, **options))
        return servers[-1]

    yield run
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Server:
    """The server that most tests of a module share."""
    return start().ready()
