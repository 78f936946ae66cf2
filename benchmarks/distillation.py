"""Distilling a language model beside plain PyTorch with transformers: tokens/s of updates, and peak memory.

    python benchmarks/distillation.py [--quick] [--batches 24] [--size 16] [--rounds 5] [--threads 1]

An update is all of it: collating texts that are there as ids, the teacher without gradients, the student's forward and
backward pass, clipping and fused AdamW. Loss: Hinton's, 0.5 * 2^2 * KL at temperature 2 + 0.5 * cross-entropy, the mean
over real tokens. Teacher and student are GPT-2s of 4 and 2 layers, 256 wide, with 30,522 tokens, in float32, without
dropout; texts of 8 to 256 tokens, 80 in the mean. All arms begin with the same weights and must give the same loss.

- transformers, padded: as people do it, padded to the longest text of a batch.
- transformers, one row: without padding: all texts of a batch in one row with positions that restart, which
  transformers turns into a mask by itself. The fair one.

Each run is a process of its own; the arms run in turn; medians. Memory is what a run has at most, and how much that is
more than with models, optimizer state and imports alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import machine, median, peak_memory, table
from stemma import families
from stemma.data.tokenizers import load_tokenizer
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.training.hardware import prepare_processor
from texts import VOCABULARY, wordpiece

TEMPERATURE, WEIGHT, RATE, LONGEST = 2.0, 0.5, 1e-4, 256
LAYERS = {"teacher": 4, "student": 2}
ARMS = ("stemma", "transformers, padded", "transformers, one row")
Texts = list[np.ndarray]
Loss = Callable[[Texts], Tensor]


def write_models(folder: Path) -> None:
    """Write teacher and student with random weights, in a form that both sides load."""
    tokenizer = wordpiece()
    torch.manual_seed(0)
    for name, layers in LAYERS.items():
        config = GPTConfig(vocabulary=VOCABULARY, context=LONGEST, layers=layers, hidden=256, heads=4, dropout=0.0)
        families.save(GPT(config), tokenizer, folder / name)


def draw(batches: int, size: int) -> list[Texts]:
    """Return batches of texts as ids."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(2.0, 40.0, batches * size).round().astype(int), 8, LONGEST)
    texts = [rng.integers(VOCABULARY, size=length) for length in lengths]
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def ours(folder: Path) -> tuple[Any, Loss]:
    """Return the student, and what gives the loss of a batch."""
    from stemma.alignment.reading import CausalReading
    from stemma.distillation.linear_divergence import SoftLoss
    from stemma.distillation.teachers import Teacher
    from stemma.distillation.tokens import Taught

    tokenizer, rng = load_tokenizer(folder / "student"), np.random.default_rng(0)
    student, teacher = (families.load(folder / name) for name in ("student", "teacher"))
    reading = CausalReading(0, LONGEST, 0)
    weight = teacher.output_weight.detach()[:VOCABULARY]
    loss = SoftLoss(temperature=TEMPERATURE, weight=WEIGHT)
    objective = Taught(reading, tokenizer, [Teacher(teacher.requires_grad_(False).eval(), reading, weight)], loss)

    def of(texts: Texts) -> Tensor:
        items = [{"tokens": text, "prompt": 1} for text in texts]
        batch = objective.collate([objective.example(item, rng) for item in items])
        return objective.loss(student, batch)[0]

    return student.train(), of


def theirs(folder: Path, padded: bool) -> tuple[Any, Loss]:
    """Return the student of transformers, and what gives the loss of a batch."""
    from transformers import AutoModelForCausalLM

    student, teacher = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("student", "teacher"))
    teacher.requires_grad_(False).eval()

    def of(texts: Texts) -> Tensor:
        inputs, learned, targets = pad(texts) if padded else join(texts)
        logits = student(**inputs, use_cache=False).logits[learned]
        with torch.no_grad():
            soft = (teacher(**inputs, use_cache=False).logits[learned] / TEMPERATURE).softmax(-1)
        log_q = (logits / TEMPERATURE).log_softmax(-1)
        divergence = F.kl_div(log_q, soft, reduction="batchmean") * TEMPERATURE**2
        return WEIGHT * divergence + (1 - WEIGHT) * F.cross_entropy(logits, targets)

    return student.train(), of


def pad(texts: Texts) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return what a model reads, which places are learned from, bool [texts, length], and what stands behind them."""
    width = max(map(len, texts))
    ids, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), 1
    learned = torch.zeros_like(mask, dtype=torch.bool)
    learned[:, :-1] = mask[:, 1:].bool()
    return {"input_ids": ids, "attention_mask": mask}, learned, ids.roll(-1, 1)[learned]


def join(texts: Texts) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the same of all texts in one row."""
    ids = torch.from_numpy(np.concatenate(texts))[None]
    positions = torch.from_numpy(np.concatenate([np.arange(len(text)) for text in texts]))[None]
    learned = torch.ones_like(ids, dtype=torch.bool)
    learned[0, np.cumsum([len(text) for text in texts]) - 1] = False
    return {"input_ids": ids, "position_ids": positions}, learned, ids.roll(-1, 1)[learned]


def measure(arm: str, folder: Path, threads: int, batches: int, size: int) -> None:
    """Run one arm in this process, and print its seconds, peak memory and first loss."""
    torch.set_num_threads(threads)
    if arm == "stemma":
        prepare_processor(training=True)  # as `stemma distill` does
    student, loss_of = ours(folder) if arm == "stemma" else theirs(folder, arm.endswith("padded"))
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.0, fused=True)
    drawn = draw(batches, size)

    def update(texts: Texts) -> float:
        loss = loss_of(texts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    first = update(drawn[0][:3])  # makes the optimizer's state, so that this counts as what is there before
    before = peak_memory()
    start, processor = time.perf_counter(), time.process_time()
    for texts in drawn:
        update(texts)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    print(
        json.dumps(
            {"seconds": seconds, "processor": processor, "memory": peak_memory(), "before": before, "loss": first}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--size", type=int, default=16, help="texts of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="6 batches, 3 rounds")
    parser.add_argument("--arm", nargs=2, help=argparse.SUPPRESS)  # what a process of its own is to do
    options = parser.parse_args()
    if options.arm:
        measure(options.arm[0], Path(options.arm[1]), options.threads, options.batches, options.size)
        return
    if options.quick:
        options.batches, options.rounds = 6, 3
    import transformers

    tokens = sum(len(text) - 1 for texts in draw(options.batches, options.size) for text in texts)
    print(f"{machine()}; transformers {transformers.__version__}; {tokens:,} tokens learned a run\n", flush=True)
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    numbers = [f"--{name}={getattr(options, name)}" for name in ("threads", "batches", "size")]
    with TemporaryDirectory() as name:
        write_models(Path(name))
        for _ in range(options.rounds):
            for arm in ARMS:
                command = [sys.executable, __file__, *numbers, "--arm", arm, name]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                found[arm].append(json.loads(done.stdout.splitlines()[-1]))
    losses = [runs[0]["loss"] for runs in found.values()]
    assert np.allclose(losses, losses[0], rtol=1e-4), f"the arms do not compute the same: {losses}"
    rows = []
    for arm, runs in found.items():
        own, theirs_ = (median([run["processor"] for run in found[name]]) for name in ("stemma", arm))
        seconds = median([run["seconds"] for run in runs])
        memory = median([run["memory"] for run in runs]) / 2**20
        more = median([run["memory"] - run["before"] for run in runs]) / 2**20
        rows.append(
            [arm, f"{tokens / seconds:,.0f}", f"{tokens / theirs_:,.0f}", f"{theirs_ / own:.2f}"]
            + [f"{memory:,.0f} MiB", f"{more:,.0f} MiB"]
        )
    heads = ["arm", "tokens/s", "per processor second", "our speed over its", "peak memory", "of the updates"]
    print(table(heads, rows))
    print(f"\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
