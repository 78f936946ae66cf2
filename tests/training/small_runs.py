"""A tiny GPT on made-up text, small enough to train in a fraction of a second."""

import signal

import numpy as np
import torch

from stemma.families.gpt.model import GPT, GPTConfig
from stemma.families.gpt.objective import Causal
from stemma.training.objective import HeldOut
from stemma.training.progress import Silent
from stemma.training.recipe import Recipe
from stemma.training.trainer import Task, Trainer

VOCABULARY, LENGTH = 31, 8


class Interrupted(Silent):
    """Presses Ctrl-C after some updates."""

    def __init__(self, after):
        self.after = after

    def step(self, step, values):
        if step == self.after:
            signal.raise_signal(signal.SIGINT)


class Sentences:
    """Sequences that count upwards from a random start, so that there is something to learn."""

    fingerprint = "sentences"

    def __len__(self):
        return 40

    def sequence(self, index):
        start = np.random.default_rng(index % 40).integers(1, VOCABULARY)
        return (start + np.arange(LENGTH + 1)) % (VOCABULARY - 1) + 1


class Uneven(Causal):
    """An objective whose examples have differing numbers of targets, drawn from the sample's own generator."""

    def example(self, tokens, rng):
        example = dict(super().example(tokens, rng))
        example["targets"] = np.where(rng.random(LENGTH) < rng.random(), example["targets"], -100)
        return example


def held_out(rows=2):
    def batches():
        for first in range(1, 6):
            tokens = torch.arange(first, first + rows * (LENGTH + 1)).view(rows, -1) % (VOCABULARY - 1) + 1
            yield {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}

    return HeldOut(batches, bytes=300)


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    config = {"vocabulary": VOCABULARY, "context": LENGTH, "layers": 2, "hidden": 16, "heads": 2, **changes}
    return GPT(GPTConfig(**config))


def make_recipe(**sections):
    training = {"steps": 8, "batch": 4, "learning_rate": 0.01, "schedule": {"name": "constant"}}
    content = {"family": "gpt", "training": training, "output": {"log_every": 1, "save_every": 3}}
    content["evaluation"] = {"every": 4}
    content["execution"] = {"precision": "float32"}  # "auto" is bfloat16 on processors with AMX
    for name, value in sections.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    return Recipe.model_validate(content)


def make_trainer(directory, recipe, *, model=None, objective=None, publish=None, **options):
    model = model or make_model()
    directory.mkdir(parents=True, exist_ok=True)
    task = Task(
        model,
        objective or Causal(separator=0),
        options.pop("sequences", None) or Sentences(),
        length=LENGTH,
        steps=recipe.training.steps,
        held_out=options.pop("held_out", held_out()),
        fingerprints={"data": "sentences"},
    )
    return Trainer(task, recipe, directory, publish=publish or (lambda weights, path: None), **options)
