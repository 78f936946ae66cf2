"""The docstring task as files: what the stages of alignment read."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stemma.alignment.docstring_task import Item, docstring_items, rank_by_labeller, split_by_module, true_reward
from stemma.alignment.prompts import read_prompts
from stemma.alignment.rewards import Episode
from stemma.alignment.rollouts import LoadedPolicy
from stemma.files import write_whole

TRAIN, HELD_OUT, COMPARISONS = "train.jsonl", "held_out.jsonl", "comparisons.jsonl"


def write_task(folder: Path, *, chat: bool = False) -> dict[Path, int]:
    """Write the pairs to train on and those of other modules; return the files with their numbers of rows.

    Args:
        chat: prompts are what a user says in a conversation; else texts, behind whose line break the response stands.
    """
    train, held_out = split_by_module(docstring_items())
    written = {folder / TRAIN: train, folder / HELD_OUT: held_out}
    for path, items in written.items():
        _write(path, ({"prompt": _prompt(item, chat), "response": item.response} for item in items))
    return {path: len(items) for path, items in written.items()}


def _prompt(item: Item, chat: bool) -> str | list[dict[str, str]]:
    return [{"role": "user", "content": item.prompt}] if chat else f"{item.prompt}\n"


def write_comparisons(
    folder: Path,
    model: str,
    *,
    samples: int,
    seed: int,
    longest: int = 32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, int]:
    """Write a model's responses to the prompts to train on, ranked as a person would who errs and likes long ones.

    Args:
        report: is told how many prompts are answered, and how many there are.
    Raises:
        InputError: a model that writes no text.
    """
    policy = LoadedPolicy(model)
    rows = read_prompts(str(folder / TRAIN))
    groups = policy.write(rows, longest=longest, seed=seed, samples=samples, report=report)
    episodes = [
        [Episode(row.prompt, one.text, one.ended) for one in group] for row, group in zip(rows, groups, strict=True)
    ]
    rewards = np.array([true_reward(some) for some in episodes])
    lengths = np.array([[len(one.text.split()) for one in group] for group in groups])
    ranks = rank_by_labeller(rewards, lengths, np.random.default_rng(seed))
    path = folder / COMPARISONS
    _write(
        path,
        (
            {"prompt": row.prompt, "responses": [one.text for one in group], "ranks": order.tolist()}
            for row, group, order in zip(rows, groups, ranks, strict=True)
        ),
    )
    return path, len(rows)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
