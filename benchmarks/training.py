"""Training speed and memory of our GPT-2 beside transformers' GPT-2: same sizes, data, precision and optimizer.

    python benchmarks/training.py [--quick] [--sizes 10m gpt2] [--precisions float32 bfloat16] [--no-compile]

Both sides train with fused AdamW on the same random tokens, the peer with SDPA attention; each also with
`torch.compile` ("compiled"). Every arm is a process of its own, prepared as its users would find it; they make one
update in turn, several rounds. The table shows medians and ratios against the peer's best arm. "Of the matmul rate"
divides the model's floating-point operations by those that a large square matrix product of the same precision reached
in the same minute.
"""

import argparse
import contextlib
import logging
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import nn

from common import interleave, machine, median, peak_memory, table
from stemma.families.gpt.model import GPT, PRESETS, GPTConfig
from stemma.families.gpt.objective import Causal
from stemma.training.hardware import matmul_rate, prepare_processor, training_flops_per_token

BATCHES = {"10m": (16, 256), "gpt2": (1, 1024)}  # sequences, tokens each
ARMS = ("stemma", "stemma compiled", "transformers", "transformers compiled")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def peer(config: GPTConfig) -> nn.Module:
    """Return transformers' GPT-2 of the same size, without dropout, as ours."""
    from transformers import GPT2Config, GPT2LMHeadModel

    logging.getLogger("transformers").setLevel(logging.ERROR)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocabulary,
            n_positions=config.context,
            n_embd=config.hidden,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="sdpa",
        )
    ).train()


def training_step(arm: str, size: str, precision: str) -> Callable[[], None]:
    """Return a function that makes one update of a fresh model."""
    torch.manual_seed(0)
    config = PRESETS[size]
    batch, length = BATCHES[size]
    text = torch.randint(config.vocabulary, (batch, length + 1))
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    model = GPT(config) if arm.startswith("stemma") else peer(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    objective = Causal(separator=0, separate_documents=False)

    def our_loss() -> torch.Tensor:
        return objective.loss(model, {"tokens": tokens, "targets": targets})[0]

    def peer_loss() -> torch.Tensor:
        return model(input_ids=tokens, labels=tokens).loss

    loss_of = our_loss if arm.startswith("stemma") else peer_loss
    if arm == "stemma compiled":
        for block in model.blocks:
            block.compile(dynamic=False)
    elif arm == "transformers compiled":
        model.compile(dynamic=False)

    def step() -> None:
        low = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
        with low:
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Worker:
    """A process that makes one update of an arm's model for every line that it is sent."""

    def __init__(self, arm: str, size: str, precision: str) -> None:
        command = [sys.executable, __file__, "--arm", arm, size, precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> None:
        self._say("update")

    def end(self) -> int:
        """Return the most memory that it had, in bytes, and end it."""
        memory = int(self._say("end"))
        self.process.wait()
        return memory

    def _say(self, line: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended with {self.process.wait()}")
        return answer


def serve_arm(arm: str, size: str, precision: str) -> None:
    """Be the process of a `Worker`."""
    if arm.startswith("stemma"):
        prepare_processor(training=True)  # as `stemma pretrain` does
    step = training_step(arm, size, precision)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        step()
        print("updated", flush=True)
    print(peak_memory(), flush=True)


def measure(size: str, precision: str, arms: list[str], rounds: int) -> list[list[str]]:
    config = PRESETS[size]
    batch, length = BATCHES[size]
    workers = {arm: Worker(arm, size, precision) for arm in arms}
    seconds = {arm: median(times) for arm, times in interleave(workers, rounds, warmup=2).items()}
    memory = {arm: worker.end() for arm, worker in workers.items()}
    rate = matmul_rate(torch.device("cpu"), PRECISIONS[precision], seconds=2.0)
    with torch.device("meta"):
        flops = training_flops_per_token(GPT(config), length) * batch * length
    best = min(time for arm, time in seconds.items() if arm.startswith("transformers"))
    rows = []
    for arm, time in seconds.items():
        rows.append(
            [size, precision, arm, f"{batch * length / time:,.0f}", f"{best / time:.2f}", f"{flops / time / rate:.0%}",
             f"{memory[arm] / 2**20:,.0f}"]
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the small model in float32, three rounds, not compiled")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled arms out")
    parser.add_argument("--arm", nargs=3, metavar=("ARM", "SIZE", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        return serve_arm(*options.arm)
    if options.quick:
        options.sizes, options.precisions, options.rounds, options.no_compile = ["10m"], ["float32"], 3, True
    arms = [arm for arm in ARMS if not (options.no_compile and "compiled" in arm)]
    print(machine())
    rows = []
    for size in options.sizes:
        for precision in options.precisions:
            rows += measure(size, precision, arms, options.rounds)
    heads = ["model", "precision", "arm", "tokens/s", "times peer's best", "of matmul rate", "peak MiB"]
    print(table(heads, rows))


if __name__ == "__main__":
    main()
