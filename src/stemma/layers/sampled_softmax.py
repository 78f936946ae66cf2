"""Cross-entropy over a very large vocabulary from a few thousand sampled words (Jean et al. 2014, section 3)."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.layers.cross_entropy import linear_cross_entropy


def sampled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    samples: int | None,
    divisor: int | float,
    ignore_index: int = -100,
) -> Tensor:
    """Return the summed cross-entropy of each target against itself and `samples` other words, divided by `divisor`.

    The words are drawn by `log_uniform`, the same for all rows, and each logit is lowered by the logarithm of how often
    its word is expected among them; a target that is drawn too counts once. An estimate for training only: its value
    is not the likelihood.

    Args:
        hidden: float [tokens, hidden]. weight: float [vocabulary, hidden], its rows by falling frequency of the words.
        bias: float [vocabulary] or None. targets: int64 [tokens].
        samples: None, or as many as there are words: the likelihood itself (see `linear_cross_entropy`).
    Returns:
        float32 scalar, in nats.
    """
    if samples is None or samples >= len(weight):
        return linear_cross_entropy(hidden, weight, targets, bias=bias, divisor=divisor, ignore_index=ignore_index)
    kept = targets != ignore_index
    hidden, targets = hidden[kept], targets[kept]
    words, expected_words, expected_targets = log_uniform(len(weight), samples, targets)
    own = (hidden * weight[targets]).sum(-1) - expected_targets.log()
    others = hidden @ weight[words].t() - expected_words.log()
    if bias is not None:
        own, others = own + bias[targets], others + bias[words]
    others = others.masked_fill(words == targets.unsqueeze(1), -torch.inf)
    logits = torch.cat([own.unsqueeze(1), others], 1).float()
    return F.cross_entropy(logits, torch.zeros_like(targets), reduction="sum") / divisor


def log_uniform(vocabulary: int, samples: int, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw different words, word k with probability log((k + 2) / (k + 1)) / log(vocabulary + 1): Zipf's law.

    Returns:
        int64 [samples]; float32 [samples] and [targets]: how often each of them, and each target, is expected among
        so many draws as it took (TensorFlow's log_uniform_candidate_sampler).
    """
    drawn, first = np.empty(0, np.int64), np.empty(0, np.int64)
    while len(first) < samples:
        uniform = torch.rand(2 * samples, dtype=torch.float64).numpy()
        more = np.exp(uniform * math.log(vocabulary + 1)).astype(np.int64) - 1
        drawn = np.concatenate([drawn, np.minimum(more, vocabulary - 1)])
        first = np.sort(np.unique(drawn, return_index=True)[1])  # where each word came for the first time
    first = first[:samples]
    draws = int(first[-1]) + 1

    def expected(words: Tensor) -> Tensor:
        places = words.double()
        probability = ((places + 2) / (places + 1)).log() / math.log(vocabulary + 1)
        return -torch.expm1(draws * torch.log1p(-probability)).float()

    words = torch.from_numpy(drawn[first]).to(targets.device)
    return words, expected(words).to(targets.device), expected(targets)
