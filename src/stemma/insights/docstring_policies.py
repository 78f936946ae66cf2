"""What the claims about alignment share: models of Python's own text, policies that were taught with them, and how well
these say what a function does (see `alignment.docstring_task`)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stemma.alignment.docstring_task import Item, docstring_items, split_by_module, true_reward
from stemma.alignment.instruct import InstructRecipe, align_all, instruct_recipe
from stemma.alignment.prompts import PromptRow
from stemma.alignment.reinforce import reinforce
from stemma.alignment.reinforcement_recipe import PPORecipe
from stemma.alignment.rewards import Episode
from stemma.alignment.rollouts import LoadedPolicy
from stemma.insights.workers import Interrupted
from stemma.training.objective import Display
from stemma.training.pretrain import pretrain
from stemma.training.progress import Silent
from stemma.training.recipe import Recipe

CONTEXT, LONGEST = 256, 32  # tokens
SHOTS, SHORT = 3, 100  # examples of a prompt, and their characters at most


def pretrained(
    settings: Mapping[str, Any], size: str, folder: Path, *, text: str, seed: int = 1, display: Display | None = None
) -> Path:
    """Pretrain a GPT of the settings' size into a folder, or go on with it; return the folder.

    Raises:
        Interrupted: it has saved what it had.
    """
    layers, hidden, heads = settings[size]
    recipe = Recipe.model_validate(
        {
            "family": "gpt",
            "model": {
                **{"layers": layers, "hidden": hidden, "heads": heads, "context": CONTEXT},
                **{"dropout": 0.0, "attention_dropout": 0.0},
            },
            "tokenizer": {"kind": "bpe", "vocabulary": settings["vocabulary"]},
            "data": {"source": text},
            "training": {
                "steps": settings["steps"],
                "batch": 8,
                "length": CONTEXT,
                "learning_rate": 3e-3,
                "schedule": {"name": "cosine", "warmup": 0.1, "final": 0.05},
            },
            "evaluation": {"every": 1000, "tokens": 20000},
            "output": {"save_every": 500, "keep": 1},
            "seed": seed,
        }
    )
    if pretrain(recipe, folder, display=display).reason == "interrupted":
        raise Interrupted
    return folder


def alignment_of(settings: Mapping[str, Any], model: Path, out: Path, seed: int, *overrides: str) -> InstructRecipe:
    """Return the recipe that teaches a pretrained model in the directory `out`."""
    seeds = [f"{step}.seed={seed}" for step in ("sft", "reward", "ppo")]
    steps = f"ppo.training.steps={settings['rollouts']}"
    longest = f"ppo.rollout.longest={LONGEST}"
    return instruct_recipe("instruct/tiny", str(model), out, overrides=[*seeds, steps, longest, *overrides])


def prepare(settings: Mapping[str, Any], shared: Path, text: str | None = None) -> None:
    """Make the policy and the reward model that the jobs begin with: <shared>/sft and <shared>/reward."""
    model = pretrained(settings, "size", shared / "pretrained", text=text or settings["text"])
    if align_all(alignment_of(settings, model, shared, 1), shared, until="reward").signal is not None:
        raise Interrupted


def practise(recipe: PPORecipe, folder: Path, display: Display | None = None) -> Path:
    """Run PPO into a folder, or go on with it; return the folder.

    Raises:
        Interrupted: it has saved what it had.
    """
    if reinforce(recipe, folder, display=display or Silent()).reason == "interrupted":
        raise Interrupted
    return folder


def unseen(most: int) -> list[Item]:
    """Return items of modules that no policy was taught with, spread over them."""
    items = split_by_module(docstring_items())[1]
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, min(most, len(items)))]


def asked(items: Sequence[Item]) -> list[PromptRow]:
    """Return what a user says to a policy that was taught."""
    return [PromptRow([{"role": "user", "content": item.prompt}], {}) for item in items]


def continued(items: Sequence[Item]) -> list[PromptRow]:
    """Return what a pretrained model goes on with: a name as the text that it learned has it, above its docstring."""
    return [PromptRow(f"{item.prompt}\n\n", {}) for item in items]


def with_examples(items: Sequence[Item], seed: int) -> list[PromptRow]:
    """Return prompts before which some names stand with what they do."""
    known = [item for item in split_by_module(docstring_items())[0] if len(item.prompt + item.response) <= SHORT]
    shots = np.random.default_rng(seed).choice(len(known), min(SHOTS, len(known)), replace=False)
    shown = "".join(f"{known[int(shot)].prompt}\n{known[int(shot)].response}\n\n" for shot in shots)
    return [PromptRow(f"{shown}{item.prompt}\n", {}) for item in items]


def true_rewards(
    model: Path, items: Sequence[Item], prompts: Sequence[PromptRow], *, seed: int, temperature: float = 1.0
) -> list[float]:
    """Return what a model's responses are worth, one for each item. A line break ends those to plain texts."""
    stop = ("\n",) if isinstance(prompts[0].prompt, str) else ()
    policy = LoadedPolicy(str(model))
    written = policy.write(prompts, longest=LONGEST, seed=seed, temperature=temperature, stop=stop)
    episodes = [Episode(item.prompt, one.text, one.ended) for item, (one,) in zip(items, written, strict=True)]
    return true_reward(episodes)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
