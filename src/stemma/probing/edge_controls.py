"""What a probe's score is to be held against: a task without structure, a random encoder, and how hard learning was."""

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from stemma.families.elmo.model import ELMo
from stemma.inference.states import blocks_of
from stemma.probing.edge_examples import Examples
from stemma.probing.edge_training import ProbeTraining, loss_of, predict, train_probes
from stemma.probing.edges import Sentence, Target
from stemma.probing.span_probe import View

# Percent of the sentences after which the code is learned anew (Voita and Titov 2020, section 2.2.2).
FRACTIONS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50, 100)


def control_task(parts: Sequence[Sequence[Sentence]], seed: int) -> list[list[Sentence]]:
    """Return the parts of a task with random labels, always the same for the same words (Hewitt and Liang 2019).

    Labels are drawn as frequent as they are in the first part. Nothing but the words' identity helps a probe to learn
    them: what it scores here it has learned by heart.
    """
    counts = Counter(target.labels for sentence in parts[0] for target in sentence.targets)
    choices = sorted(counts)
    upper = np.cumsum([counts[labels] for labels in choices]) / counts.total()

    def drawn(sentence: Sentence, target: Target) -> Target:
        words = "\t".join(" ".join(sentence.words[start:end]) for start, end in target.spans)
        hashed = int.from_bytes(hashlib.sha256(f"{seed}\t{words}".encode()).digest()[:6], "big") / (1 << 48)
        return Target(target.spans, choices[int(np.searchsorted(upper, hashed, side="right"))])

    return [
        [Sentence(one.words, tuple(drawn(one, target) for target in one.targets)) for one in part] for part in parts
    ]


@torch.no_grad()
def randomised(model: Any, seed: int) -> Any:
    """Return a copy of a model whose layers above the embeddings have learned nothing: their matrices are orthogonal
    and random, their biases 0, their norms 1 (the "ortho" encoder of Tenney et al. 2019, section 3.3)."""
    copied = copy.deepcopy(model)
    layers: nn.Module = copied.context if isinstance(copied, ELMo) else blocks_of(copied)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in layers.named_parameters():
        if name.rpartition(".")[2].startswith("bias"):  # of an LSTM: bias_ih
            weight.zero_()
        elif weight.dim() < 2:
            weight.fill_(1.0)
        else:
            for matrix in weight.view(-1, *weight.shape[-2:]):
                matrix.copy_(nn.init.orthogonal_(torch.empty(matrix.shape), generator=generator))
    return copied


@dataclass(frozen=True)
class Code:
    """How many bits a code of the labels has that is learned while it is sent.

    Args:
        bits: of all targets. uniform: that it would have without learning, one for every decision.
    """

    bits: float
    uniform: float

    @property
    def compression(self) -> float:
        """By how much the code is shorter."""
        return self.uniform / self.bits


def online_code(
    view: View,
    train: Examples,
    dev: Examples,
    training: ProbeTraining,
    *,
    seed: int,
    device: torch.device | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Code:
    """Return the minimum description length of the training labels by online coding (Voita, Titov 2020, section 2.2).

    The sentences, in a random order, are sent in growing parts, each by a probe that was trained on all before it; the
    first part goes uncoded, a bit for each decision.
    """
    order = np.random.default_rng(seed).permutation(train.sentences_with_targets())
    cuts = sorted({max(1, round(len(order) * percent / 100)) for percent in FRACTIONS})
    classes = train.labels.shape[1]
    bits = float(len(train.targets_of(order[: cuts[0]])) * classes)
    for known, end in zip(cuts, cuts[1:], strict=False):
        probes = train_probes(view, train.part(order[:known]), dev, training, seed=seed, device=device)
        sent = train.part(order[known:end])
        logits = torch.from_numpy(predict(probes, sent))
        losses = loss_of(logits, torch.from_numpy(sent.labels).float())
        bits += float(losses[0]) * sent.labels.size / float(np.log(2))
        report(1)
    return Code(bits, float(train.labels.size))
