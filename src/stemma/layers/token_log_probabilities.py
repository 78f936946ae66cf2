"""The log-probability of each token under a large vocabulary, with gradients, and never all the logits at once."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stemma.layers.cross_entropy import CHUNK_BYTES
from stemma.layers.linear import linear


def token_log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log softmax(hidden @ weight.T / temperature) at the targets, float32 [tokens].

    More logits than fit in one chunk (see `cross_entropy`) are computed again in the backward pass.

    Args:
        hidden: float [tokens, hidden]. weight: float [vocabulary, hidden]. targets: int64 [tokens].
    """
    rows = chunk_rows(weight)
    if len(hidden) <= rows or not torch.is_grad_enabled():
        parts = [
            _of_chunk(hidden[start : start + rows], weight, targets[start : start + rows], temperature)
            for start in range(0, len(hidden), rows)
        ]
    else:
        parts = [
            checkpoint(_of_chunk, chunk, weight, chosen, temperature, use_reentrant=False)
            for chunk, chosen in zip(hidden.split(rows), targets.split(rows), strict=True)
        ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def chunk_rows(weight: Tensor) -> int:
    """Return of how many tokens the logits are computed at once."""
    return max(64, CHUNK_BYTES // (4 * weight.shape[0]))


def _of_chunk(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = linear(hidden, weight).float() / temperature
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
