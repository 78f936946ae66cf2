"""Alignment beside TRL: SFT, PPO and GRPO in tokens/s, reward models and DPO in pairs/s, and each one's peak memory.

    python benchmarks/alignment.py [--quick] [--samples 512] [--rounds 3] [--threads 1] [--stage sft reward dpo ppo ...]

A run is all of it but imports and the drawing of the data: reading and tokenizing 512 rows, one epoch in batches of 16,
the measurement on 32 further rows and the checkpoint at the end; for DPO also the reference's log-probabilities, which
both compute once before the training. Both start from the same GPT-2 of 4 layers, 256 wide, with 4,096 tokens, without
dropout, in float32, with fused AdamW, the same schedule and clipping, and learn the same tokens: a prompt of some 20
words and a response of some 40. TRL runs with its default of padding to the longest of a batch, without activation
checkpointing, which it has on by default. Each run is a process of its own; the arms run in turn; medians.

PPO and GRPO: rollouts of 32 responses of 48 tokens, written, judged and learned from. PPO: one minibatch, four epochs,
values in a model of their own, the reward by a model of the same size; GRPO: 8 responses to a prompt, one update, the
reward by a function. With random weights hardly any response ends early. Tokens are those of the responses.

TRL is no dependency: `pip install trl`. PPO is no longer in it after 1.12.0:
`pip install --no-deps --target DIR trl==1.12.0`, and `PYTHONPATH=DIR`.
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

import reinforcement
from common import machine, median, peak_memory, table
from stemma import families
from stemma.data.tokenizers import train_tokenizer
from stemma.families.gpt.model import GPT, GPTConfig
from texts import running_text

BATCH, DEV, RATE = 16, 32, 1e-4
STAGES = {"sft": "tokens/s", "reward": "pairs/s", "dpo": "pairs/s", "ppo": "tokens/s", "grpo": "tokens/s"}
REINFORCED = ("ppo", "grpo")


def write_model(folder: Path) -> None:
    """Write a checkpoint with random weights that both sides load."""
    tokenizer = train_tokenizer([running_text()], "bpe", 4095).with_special_tokens(pad_token="<|pad|>")
    torch.manual_seed(0)
    config = GPTConfig(vocabulary=tokenizer.vocabulary, context=256, layers=4, hidden=256, heads=4)
    families.save(GPT(config), tokenizer, folder)


def write_rows(file: Path, count: int, seed: int) -> None:
    """Write demonstrations that are comparisons too."""
    rng = np.random.default_rng(seed)
    words = running_text().split()

    def stretch(mean: float) -> str:
        length = int(np.clip(rng.gamma(2.0, mean / 2), 4, 3 * mean))
        start = int(rng.integers(len(words) - length))
        return " ".join(words[start : start + length])

    rows = [{"prompt": stretch(20), "chosen": " " + stretch(40), "rejected": " " + stretch(40)} for _ in range(count)]
    file.write_text("".join(json.dumps({**row, "response": row["chosen"]}) + "\n" for row in rows))


def ours(stage: str, model: Path, train: Path, dev: Path, out: Path) -> None:
    """Run a stage with stemma."""
    from stemma.alignment.dpo import optimise
    from stemma.alignment.recipe import DPORecipe, RewardRecipe, SFTRecipe, build_recipe
    from stemma.alignment.reward import train_reward_model
    from stemma.alignment.sft import tune

    kinds: dict[str, tuple[Any, Callable[..., Any]]] = {
        "sft": (SFTRecipe, tune),
        "reward": (RewardRecipe, train_reward_model),
        "dpo": (DPORecipe, optimise),
    }
    kind, run = kinds[stage]
    training = {"epochs": 1, "batch": BATCH, "learning_rate": RATE, "weight_decay": 0.0, "betas": [0.9, 0.999]}
    given = {
        "model": str(model),
        "data": {"train": str(train), "dev": str(dev)},
        "training": {**training, "epsilon": 1e-8, "schedule": {"name": "linear", "warmup": 0}},
        "execution": {"precision": "float32"},
    }
    run(build_recipe(kind, f"align/{stage}-tiny", given), out)


def theirs(stage: str, model: Path, train: Path, dev: Path, out: Path) -> None:
    """Run a stage with TRL."""
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    columns = ["prompt", "chosen", "rejected"]
    data = datasets.load_dataset("json", data_files={"train": str(train), "dev": str(dev)}, cache_dir=str(out / "data"))
    if stage == "sft":
        data, columns = data.remove_columns(columns[1:]).rename_column("response", "completion"), []
    else:
        data = data.select_columns(columns)
    tokenizer = AutoTokenizer.from_pretrained(model)
    shared: dict[str, Any] = {
        "output_dir": str(out),
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "learning_rate": RATE,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "max_length": 256,
        "gradient_checkpointing": False,
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    given: dict[str, Any] = {
        "train_dataset": data["train"],
        "eval_dataset": data["dev"],
        "processing_class": tokenizer,
    }
    if stage == "reward":
        network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        network.config.pad_token_id = tokenizer.pad_token_id
        trainer = trl.RewardTrainer(network, args=trl.RewardConfig(**shared), **given)
    else:
        network = AutoModelForCausalLM.from_pretrained(model)
        if stage == "sft":
            trainer = trl.SFTTrainer(network, args=trl.SFTConfig(**shared), **given)
        else:
            trainer = trl.DPOTrainer(network, args=trl.DPOConfig(precompute_ref_log_probs=True, **shared), **given)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()


def measure(arm: str, stage: str, folder: Path, threads: int, samples: int) -> None:
    """Run one arm in this process, and print its seconds, processor seconds and peak memory."""
    torch.set_num_threads(threads)
    if arm == "TRL":
        import transformers
        import trl  # noqa: F401 (imports are not timed)

        transformers.logging.set_verbosity_error()
    else:
        import stemma.alignment.dpo
        import stemma.alignment.reinforce  # noqa: F401
    before = peak_memory()
    with TemporaryDirectory() as out:
        start, processor = time.perf_counter(), time.process_time()
        if stage in REINFORCED:
            reinforce = reinforcement.theirs if arm == "TRL" else reinforcement.ours
            reinforce(stage, folder, samples, Path(out))
        else:
            run = theirs if arm == "TRL" else ours
            run(stage, folder / "model", folder / "train.jsonl", folder / "dev.jsonl", Path(out))
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    print(json.dumps({"seconds": seconds, "processor": processor, "memory": peak_memory(), "imported": before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stage", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--quick", action="store_true", help="64 samples, one round")
    parser.add_argument("--arm", nargs=3, help=argparse.SUPPRESS)  # what a process of its own is to do
    options = parser.parse_args()
    if options.arm:
        measure(options.arm[0], options.arm[1], Path(options.arm[2]), options.threads, options.samples)
        return
    if options.quick:
        options.samples, options.rounds = 64, 1
    try:
        from importlib.metadata import version

        peer = f"TRL {version('trl')}"
        compared = set(STAGES) - ({"ppo"} if tuple(map(int, version("trl").split(".")[:2])) > (1, 12) else set())
    except ModuleNotFoundError:
        peer, compared = "TRL is not installed: only ours is measured", set()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        reinforcement.write_reward_model(folder / "model", folder / "reward")
        write_rows(folder / "train.jsonl", options.samples, 0)
        write_rows(folder / "dev.jsonl", DEV, 1)
        tokens = learned_tokens(folder)
        print(f"{machine()}; {peer}\n", flush=True)
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(options.threads)}
        for _ in range(options.rounds):
            for stage in options.stage:
                for arm in ("stemma", *(["TRL"] if stage in compared else [])):
                    numbers = ["--threads", str(options.threads), "--samples", str(options.samples)]
                    command = [sys.executable, __file__, *numbers, "--arm", arm, stage, name]
                    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                    found.setdefault((stage, arm), []).append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for (stage, arm), runs in found.items():
        written = reinforcement.LENGTH * options.samples if stage in REINFORCED else options.samples
        amount = tokens if stage == "sft" else written
        seconds, own = (median([run["processor"] for run in found[stage, name]]) for name in (arm, "stemma"))
        memory = median([run["memory"] for run in runs]) / 2**20
        more = median([run["memory"] - run["imported"] for run in runs]) / 2**20
        wall = median([run["seconds"] for run in runs])
        rows.append(
            [stage, arm, f"{amount / seconds:,.1f} {STAGES[stage]}", f"{wall:.1f}", f"{seconds / own:.2f}"]
            + [f"{memory:,.0f} MiB", f"{more:,.0f} MiB"]
        )
    heads = ["stage", "arm", "per processor second", "seconds", "our speed over its", "peak memory", "of the run"]
    print(table(heads, rows))
    print(f"\npython {' '.join(sys.argv)}")


def learned_tokens(folder: Path) -> int:
    """Return how many tokens an epoch of SFT reads, those that end responses included."""
    from stemma.data.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(folder / "model")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return sum(len(tokenizer.encode(row["prompt"]) + tokenizer.encode(row["response"])) + 1 for row in rows)


if __name__ == "__main__":
    main()
