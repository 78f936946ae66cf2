"""Learning from a teacher's probabilities: the loss of soft targets (Hinton, Vinyals and Dean 2015, "Distilling the
Knowledge in a Neural Network", section 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def soften(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the log-probabilities `log softmax(logits / temperature)`, float [..., classes], in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # The maximum is taken off first: divided by a high temperature, float32 would keep little of the differences.
    return F.log_softmax((logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1)


def soft_target_loss(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return `temperature^2 * KL(targets || softmax(logits / temperature))` of each example, float [...].

    The gradient of the divergence shrinks as 1 / temperature^2; the factor keeps the balance with other losses where it
    is when the temperature is changed. The divergence is the cross entropy less the targets' own entropy: its gradient
    is the same, and it is 0 where nothing is left to learn.

    Args:
        logits: of the student, float [..., classes].
        targets: log-probabilities at the same temperature, float [..., classes]: `soften` of a teacher's logits.
    """
    divergence = F.kl_div(soften(logits, temperature), targets, reduction="none", log_target=True)
    return temperature**2 * divergence.sum(-1)


def with_hard_targets(hard: Tensor, soft: Tensor, weight: float) -> Tensor:
    """Return `(1 - weight) * hard + weight * soft`: the loss of the true labels mixed with that of a teacher."""
    return torch.lerp(hard, soft, weight)
