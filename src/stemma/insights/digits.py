"""scikit-learn's digits and small plain networks, for claims about distillation that take seconds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.layers.soft_targets import soft_target_loss, with_hard_targets

CLASSES, SIDE = 10, 8


@dataclass(frozen=True)
class Examples:
    """Images as float32 [examples, pixels], and what they show, int64 [examples]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, which: Tensor) -> "Examples":
        """Return some of them, by their numbers or a mask."""
        return Examples(self.images[which], self.labels[which])


@dataclass(frozen=True)
class Digits:
    """Examples to learn from, to choose settings by, and to report on."""

    train: Examples
    held_out: Examples
    test: Examples


def load_digits(seed: int) -> Digits:
    """Return the 1,797 digits in another division for each seed: 800, 200 and 797.

    Raises:
        InputError: scikit-learn is not there.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise InputError('the digits need scikit-learn: pip install "stemma-lm[evaluation]"') from None
    images, labels = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = torch.tensor(images[order] / 16.0, dtype=torch.float32), torch.tensor(labels[order])
    parts = [Examples(shuffled[0][one], shuffled[1][one]) for one in (slice(800), slice(800, 1000), slice(1000, None))]
    return Digits(*parts)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Return images moved by so many pixels, zeros coming in, float32 [examples, pixels]."""
    grid = F.pad(images.view(-1, SIDE, SIDE), (1, 1, 1, 1))
    return grid[:, 1 - down : 1 - down + SIDE, 1 - right : 1 - right + SIDE].flatten(1)


def network(inputs: int, width: int, outputs: int, seed: int, dropout: float = 0.0) -> nn.Sequential:
    """Return a network with two hidden layers of rectified units."""
    torch.manual_seed(seed)
    layers = (nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, outputs))


def jittered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images each moved by up to a pixel in both directions, zeros coming in."""
    wide = SIDE + 2
    padded = F.pad(images.view(-1, SIDE, SIDE), (1, 1, 1, 1)).flatten(1)
    corners = torch.randint(3, (2, len(images), 1), generator=generator)
    pixels = (wide * torch.arange(SIDE).unsqueeze(1) + torch.arange(SIDE)).flatten()
    return padded.gather(1, corners[0] * wide + corners[1] + pixels)


def fit(
    model: nn.Module,
    examples: Examples,
    *,
    steps: int,
    seed: int,
    rate: float = 3e-3,
    batch: int = 64,
    teacher: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 1.0,
    weight: float = 1.0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> nn.Module:
    """Train a network by AdamW, its rate falling to 0; return it in eval mode.

    Args:
        teacher: gives log-probabilities at `temperature` of the images that the student sees, float32 [batch,
            classes]; None: labels alone. weight: of the soft targets; the labels have the rest.
        augment: changes the images of a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(examples), (batch,), generator=generator)
        images = examples.images[chosen]
        images = images if augment is None else augment(images, generator)
        logits = model(images)
        hard = F.cross_entropy(logits, examples.labels[chosen], reduction="none")
        if teacher is None:
            loss = hard
        else:
            with torch.no_grad():
                soft = teacher(images)
            loss = with_hard_targets(hard, soft_target_loss(logits, soft, temperature), weight)
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return a network's logits, float32 [examples, outputs]."""
    return model(images)


def shifted_errors(model: nn.Module, examples: Examples) -> float:
    """Return how many examples a network takes for something else, the mean over the nine shifts by up to a pixel."""
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    wrong = [errors(logits_of(model, shifted(examples.images, *move)), examples.labels) for move in moves]
    return float(np.mean(wrong))


def best_of(
    settings: Iterable[Mapping[str, Any]], train: Callable[..., nn.Module], wrong: Callable[[nn.Module], float]
) -> nn.Module:
    """Train by each of some settings; return the network with the fewest errors, the first of equals.

    Args:
        train: takes one's settings by name. wrong: counts the errors on what is held out to choose by.
    """
    return min((train(**one) for one in settings), key=wrong)


def errors(logits: Tensor, labels: Tensor) -> int:
    """Return how many examples are taken for something else."""
    return int((logits.argmax(1) != labels).sum())
