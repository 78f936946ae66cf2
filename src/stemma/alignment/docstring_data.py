"""The docstring task as files: what the stages of alignment read."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stemma.alignment.docstring_task import docstring_items, known_words, rank_by_labeller, split_by_module, worth
from stemma.alignment.prompts import read_prompts
from stemma.alignment.rollouts import LoadedPolicy
from stemma.files import write_whole

TRAIN, HELD_OUT, COMPARISONS = "train.jsonl", "held_out.jsonl", "comparisons.jsonl"


def write_task(folder: Path) -> dict[Path, int]:
    """Write the pairs to train on and those of other modules; return the files with their numbers of rows."""
    train, held_out = split_by_module(docstring_items())
    written = {folder / TRAIN: train, folder / HELD_OUT: held_out}
    for path, items in written.items():
        # What follows a prompt's line break is the response.
        _write(path, ({"prompt": f"{item.prompt}\n", "response": item.response} for item in items))
    return {path: len(items) for path, items in written.items()}


def write_comparisons(folder: Path, model: str, *, samples: int, seed: int, longest: int = 32) -> tuple[Path, int]:
    """Write a model's responses to the prompts to train on, ranked as a person would who errs and likes long ones.

    Raises:
        InputError: a model that writes no text.
    """
    policy = LoadedPolicy(model)
    rows = read_prompts(str(folder / TRAIN))
    groups = policy.write(rows, longest=longest, seed=seed, samples=samples)
    known = known_words()
    rewards = np.array(
        [
            [worth(str(row.prompt), one.text, one.ended, known) for one in group]
            for row, group in zip(rows, groups, strict=True)
        ]
    )
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
