"""How far a student's distribution is from its teacher's (Hinton et al. 2015; Agarwal et al. 2024, "On-policy
distillation of language models", section 2; Gu et al. 2024, "MiniLLM", section 2.1)."""

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward", "reverse", "jsd"]


def divergence(log_p: Tensor, log_q: Tensor, kind: Divergence = "forward", beta: float = 0.5) -> Tensor:
    """Return the divergence of each row, float [...], in nats; 0 where teacher and student agree.

    "forward" is KL(p || q): the student covers all that the teacher may say. "reverse" is KL(q || p): it says nothing
    that the teacher would not. "jsd" is the generalised Jensen-Shannon divergence
    `beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q`.

    Args:
        log_p, log_q: log-probabilities of teacher and student, float [..., classes]; -inf in `log_p`, where the teacher
            cannot say it, has no part in "forward" and "jsd".
        beta: of "jsd", within 0 and 1, where the formula itself is 0.
    """
    if kind == "forward":
        return _kl(log_p, log_q)
    if kind == "reverse":
        return _kl(log_q, log_p)
    middle = mixture(log_p, log_q, beta)
    return beta * _kl(log_p, middle) + (1 - beta) * _kl(log_q, middle)


def mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """Return log(beta p + (1 - beta) q), of log-probabilities of one shape."""
    return torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))


def logit_gradient(log_p: Tensor, log_q: Tensor, kind: Divergence = "forward", beta: float = 0.5) -> Tensor:
    """Return the gradient of `divergence` in the student's logits at temperature 1, float [..., classes]."""
    q = log_q.exp()
    if kind == "forward":
        return q.sub_(log_p.exp())
    # Both are a mean over q of some f, less how q moves: q (f - E_q f).
    f = log_q - (log_p if kind == "reverse" else mixture(log_p, log_q, beta))
    if kind == "jsd":
        f.mul_(1 - beta)
    expected = (q * f).sum(-1, keepdim=True)
    return f.sub_(expected).mul_(q)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1)
