"""The loss of soft targets over a large vocabulary without ever holding all the logits, of student or teacher."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stemma.distillation.divergences import Divergence, divergence, logit_gradient
from stemma.layers.cross_entropy import CHUNK_BYTES
from stemma.layers.linear import linear
from stemma.layers.soft_targets import soften

Targets = Callable[[slice, Tensor], Tensor]
"""Returns the teacher's log-probabilities at the temperature of the loss, float32 [rows, vocabulary], of a slice of the
rows; also gets the student's, which is what a teacher that keeps a few tokens a row fills its rest with."""


@dataclass(frozen=True)
class SoftLoss:
    """What is minimised: `weight * temperature^2 * divergence + (1 - weight) * cross entropy of the true tokens`.

    Args:
        kind, beta: see `divergences.divergence`.
    """

    kind: Divergence = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    weight: float = 1.0


def linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher: Targets,
    targets: Tensor,
    loss: SoftLoss,
    *,
    bias: Tensor | None = None,
    divisor: int | float = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of all rows, and its soft and hard part by themselves, each summed and divided by `divisor`.

    The logits of student and teacher exist a chunk of rows at a time; the student's gradient is formed in the same
    pass, as in `cross_entropy.linear_cross_entropy`. It flows through the student only.

    Args:
        hidden: float [tokens, hidden]. weight: float [vocabulary, hidden]. bias: float [vocabulary] or None.
        teacher: see `Targets`. targets: int64 [tokens], the true tokens.
    Returns:
        float32 scalars, in nats; first derivatives of the first one only.
    """
    if not torch.is_grad_enabled():  # a Function's needs_input_grad does not know of no_grad
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    return _LinearDivergence.apply(hidden, weight, bias, teacher, targets, loss, divisor)


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Targets,
        targets: Tensor,
        loss: SoftLoss,
        divisor: int | float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = ctx.needs_input_grad[:3]
        dtype, device = hidden.dtype, hidden.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        states, matrix = hidden.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(hidden) if needed[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None
        soft = torch.zeros((), dtype=torch.float32, device=device)
        hard = torch.zeros((), dtype=torch.float32, device=device)
        # Teacher, student and their difference are there at once, in float32.
        rows = max(64, CHUNK_BYTES // (3 * 4 * weight.shape[0]))
        for start in range(0, len(hidden), rows):
            place = slice(start, min(start + rows, len(hidden)))
            logits = linear(states[place], matrix, offset)
            log_q = soften(logits, loss.temperature)
            log_p = teacher(place, log_q)
            soft += loss.temperature**2 * divergence(log_p, log_q, loss.kind, loss.beta).sum()
            plain = log_q if loss.temperature == 1 else soften(logits)
            hard += F.nll_loss(plain, targets[place], reduction="sum")
            if not any(needed):
                continue
            # The square of the temperature, and the one that the logits are divided by.
            grad = logit_gradient(log_p, log_q, loss.kind, loss.beta).mul_(loss.weight * loss.temperature / divisor)
            if loss.weight < 1:
                true = plain.exp()
                true[torch.arange(len(true), device=device), targets[place]] -= 1.0
                grad.add_(true, alpha=(1 - loss.weight) / divisor)
            grad = grad.to(dtype)
            if grad_hidden is not None:
                grad_hidden[place] = linear(grad, matrix.t())
            if grad_weight is not None:
                grad_weight += grad.t() @ states[place]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        total = torch.lerp(hard, soft, loss.weight) / divisor
        soft, hard = soft / divisor, hard / divisor
        ctx.mark_non_differentiable(soft, hard)
        return total, soft, hard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = (None if part is None else part * grad for part in ctx.saved_tensors)
        weight_dtype, bias_dtype = ctx.dtypes
        weight = None if weight is None else weight.to(weight_dtype)
        bias = None if bias is None else bias.to(bias_dtype)
        return hidden, weight, bias, None, None, None, None
