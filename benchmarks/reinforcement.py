"""PPO and GRPO with stemma and with TRL, for `alignment.py`: equal models, prompts, lengths, minibatches and epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stemma import families
from stemma.alignment.reading import reading_of
from stemma.alignment.reward_model import RewardModel
from stemma.data.tokenizers import load_tokenizer

EPISODES, LENGTH, GROUP, EPOCHS, RATE = 32, 48, 8, 4, 1e-6  # responses of a rollout, their tokens, ... to one prompt
COLUMNS = ("prompt",)


def write_reward_model(model: Path, out: Path) -> None:
    """Write a reward model with the model's random weights, which both sides load."""
    trunk, tokenizer = families.load(model), load_tokenizer(model)
    torch.manual_seed(1)
    RewardModel(trunk, reading_of(trunk, tokenizer)).save(tokenizer, out)


def vowels(episodes: Sequence[Any]) -> list[float]:
    """The reward of GRPO."""
    return [_share(episode.response) for episode in episodes]


def _share(text: str) -> float:
    return sum(letter in "aeiou" for letter in text) / max(len(text), 1)


def ours(stage: str, folder: Path, episodes: int, out: Path) -> None:
    """Run PPO or GRPO with stemma."""
    from stemma.alignment.recipe import build_recipe
    from stemma.alignment.reinforce import reinforce
    from stemma.alignment.reinforcement_recipe import GRPORecipe, PPORecipe

    training: Mapping[str, Any] = {"steps": episodes // EPISODES, "learning_rate": RATE, "betas": [0.9, 0.999]}
    ppo = stage == "ppo"
    given = {
        "model": str(folder / "model"),
        "prompts": {"source": str(folder / "train.jsonl"), "held_out": str(folder / "dev.jsonl")},
        "reward": {"source": str(folder / "reward") if ppo else f"{__file__}:vowels", "missing_end_penalty": 0.0},
        "rollout": {"longest": LENGTH, "samples": 1 if ppo else GROUP},
        "update": {"epochs": EPOCHS if ppo else 1, "minibatches": 1},
        "training": {**training, "batch": EPISODES // (1 if ppo else GROUP), "schedule": {"name": "linear"}},
        "evaluation": {"every": 1 << 20, "prompts": 1},
        "output": {"save_every": 1 << 20},
        "execution": {"precision": "float32"},
    }
    reinforce(build_recipe(PPORecipe if ppo else GRPORecipe, f"align/{stage}-tiny", given), out)


def theirs(stage: str, folder: Path, episodes: int, out: Path) -> None:
    """Run PPO or GRPO with TRL."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    files = {"train": str(folder / "train.jsonl"), "dev": str(folder / "dev.jsonl")}
    data = datasets.load_dataset("json", data_files=files, cache_dir=str(out / "data")).select_columns(COLUMNS)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(folder / "model")
    shared: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": EPISODES,
        "learning_rate": RATE,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if stage == "grpo":
        from trl import GRPOConfig, GRPOTrainer

        config = GRPOConfig(
            **shared,
            max_steps=episodes // EPISODES,
            num_generations=GROUP,
            max_completion_length=LENGTH,
            beta=0.0,
            loss_type="dapo",
        )
        trainer = GRPOTrainer(
            model=policy,
            reward_funcs=lambda completions, **rest: [_share(text) for text in completions],
            args=config,
            train_dataset=data["train"],
            processing_class=tokenizer,
        )
    else:
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        encoded = data.map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns=COLUMNS)
        judges = [AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1) for _ in range(2)]
        config = PPOConfig(
            **shared,
            total_episodes=episodes,
            num_ppo_epochs=EPOCHS,
            num_mini_batches=1,
            response_length=LENGTH,
            local_rollout_forward_batch_size=EPISODES,
            num_sample_generations=0,
            stop_token="eos",
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=AutoModelForCausalLM.from_pretrained(folder / "model"),
            reward_model=judges[0],
            value_model=judges[1],
            train_dataset=encoded["train"],
            eval_dataset=encoded["dev"],
        )
    trainer.train()
    trainer.save_model()
