"""Training probes on frozen layers, chosen by their score on held-out targets."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.probing.edge_examples import Examples
from stemma.probing.edge_scores import count, micro_f1
from stemma.probing.span_probe import SpanProbes, View

_READ = 256  # sentences measured at once


@dataclass(frozen=True)
class ProbeTraining:
    """How probes are trained; what has a default is as published.

    Args:
        epochs: most of them. learning_rate: of Adam. batch: sentences. clip: largest norm of a probe's gradient.
        every: updates between measurements, at most; there is one at the end of each epoch anyway.
        patience: measurements without a gain of the probes' mean after which the rate is halved; stop: the training
            ends.
    """

    epochs: int
    learning_rate: float = 1e-4
    batch: int = 32
    clip: float = 5.0
    every: int = 1000
    patience: int = 5
    stop: int = 20


def train_probes(
    view: View,
    train: Examples,
    dev: Examples,
    training: ProbeTraining,
    *,
    seed: int,
    classes: Sequence[int] | None = None,
    device: torch.device | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> SpanProbes:
    """Return trained probes in eval mode, each with the weights of its best micro-F1 on `dev`.

    Args:
        classes: the labels that count in the score; default: all. report: called after each epoch with 1.
    """
    device = device or torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probes = SpanProbes(view, train.layers.states.shape[2], train.sides, train.labels.shape[1]).to(device)
        run = _Run(probes, dev, training, classes)
        order = np.random.default_rng(seed)
        for _ in range(training.epochs):
            sentences = order.permutation(train.sentences_with_targets())
            for start in range(0, len(sentences), training.batch):
                targets = train.targets_of(sentences[start : start + training.batch])
                run.step(*train.batch(targets, view, device))
                if run.steps % training.every == 0:
                    run.measure()
            run.measure()
            report(1)
            if run.waited >= training.stop:
                break
    probes.load_state_dict(run.best)
    return probes.eval()


@torch.inference_mode()
def predict(probes: SpanProbes, examples: Examples) -> np.ndarray:
    """Return logits, float32 [probes, targets, classes]."""
    device = probes.gamma.device
    sentences = examples.sentences_with_targets()
    found = []
    for start in range(0, len(sentences), _READ):
        targets = examples.targets_of(sentences[start : start + _READ])
        states, spans, _ = examples.batch(targets, probes.view, device)
        found.append(probes(states, spans).cpu().numpy())
    return np.concatenate(found, 1)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of each probe over all decisions, float [probes].

    Args:
        logits: float [probes, targets, classes]. labels: float [targets, classes].
    """
    return F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none").mean((1, 2))


class _Run:
    def __init__(
        self, probes: SpanProbes, dev: Examples, training: ProbeTraining, classes: Sequence[int] | None
    ) -> None:
        self.probes, self.dev, self.training = probes, dev, training
        self.classes = list(range(dev.labels.shape[1])) if classes is None else list(classes)
        self.optimizer = torch.optim.Adam(probes.parameters(), lr=training.learning_rate, fused=True)
        self.steps, self.waited, self._measured = 0, 0, 0
        self._scores = np.full(len(probes.gamma), -1.0)
        self._mean = -1.0
        self.best = copy.deepcopy(probes.state_dict())

    def step(self, states: Tensor, spans: list, labels: Tensor) -> None:
        self.probes.train()
        # The sum of losses, and an optimizer that takes each number by itself: no probe knows of the others.
        loss_of(self.probes(states, spans), labels).sum().backward()
        self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def measure(self) -> None:
        """Keep the weights of each probe that is better than before; halve the rate when none is for long."""
        if self._measured == self.steps:
            return
        self._measured = self.steps
        self.probes.eval()
        said = predict(self.probes, self.dev)[..., self.classes] >= 0
        counts = count(said, self.dev.labels[:, self.classes], np.zeros(len(self.dev), np.int64), 1)
        scores = micro_f1(counts[:, 0])
        better = torch.from_numpy(scores > self._scores).to(self.probes.gamma.device)
        for name, weight in self.probes.state_dict().items():
            self.best[name][better] = weight[better]
        self._scores = np.maximum(scores, self._scores)
        self.waited = 0 if scores.mean() > self._mean else self.waited + 1
        self._mean = max(self._mean, float(scores.mean()))
        if self.waited and self.waited % self.training.patience == 0:
            for group in self.optimizer.param_groups:
                group["lr"] /= 2

    def _clip(self) -> None:
        """Scale each probe's gradient to the largest norm allowed."""
        gradients = [weight.grad for weight in self.probes.parameters() if weight.grad is not None]
        squares = torch.stack(
            [gradient.flatten(1).square().sum(1) if gradient.dim() > 1 else gradient.square() for gradient in gradients]
        )
        scale = (self.training.clip / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
