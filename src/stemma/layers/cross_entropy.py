"""Cross-entropy over a large vocabulary without ever holding all the logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stemma.layers.linear import linear

# Bytes of one chunk of logits, as the product gives them. Smaller chunks starve the product, larger ones the memory.
CHUNK_BYTES = 128 * 2**20


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    divisor: int | float | Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the summed cross-entropy of `hidden @ weight.T + bias` against `targets`, divided by `divisor`.

    The logits exist a chunk of rows at a time; their gradient is formed in the same pass, so that forward and backward
    together hold one chunk, never [tokens, vocabulary]. A row whose target is ignored costs nothing on a CPU.

    Args:
        hidden: float [tokens, hidden]. weight: float [vocabulary, hidden]. targets: int64 [tokens].
        bias: float [vocabulary] or None.
        divisor: what to divide the sum by, for instance the number of targets of the whole step over all
            micro-batches and workers; default: the number of targets here that are not ignored (at least 1).
        label_smoothing: share of each target that is spread evenly over the vocabulary.
    Returns:
        float32 scalar, in nats. First derivatives only.
    """
    if hidden.device.type == "cpu":
        kept = targets != ignore_index
        if not bool(kept.all()):
            hidden, targets = hidden[kept], targets[kept]
    if divisor is None:
        divisor = (targets != ignore_index).sum().clamp_min(1)
    if not torch.is_grad_enabled():  # a Function's needs_input_grad does not know of no_grad
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, divisor, ignore_index, label_smoothing)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        divisor: int | float | Tensor,
        ignore_index: int,
        label_smoothing: float,
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Cast in here, so that the gradients are summed and returned in the parameters' own precision.
        dtype, device = hidden.dtype, hidden.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        states, matrix = hidden.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        total = torch.zeros((), dtype=torch.float32, device=device)
        rows = max(64, CHUNK_BYTES // (weight.shape[0] * dtype.itemsize))
        for start in range(0, hidden.shape[0], rows):
            chunk, target = states[start : start + rows], targets[start : start + rows]
            kept = target != ignore_index
            index = target.where(kept, 0).unsqueeze(1)
            log_probabilities = linear(chunk, matrix, offset).float().log_softmax(-1)  # [rows, vocabulary]
            chosen = log_probabilities.gather(1, index).squeeze(1)
            if label_smoothing:
                chosen = torch.lerp(chosen, log_probabilities.mean(1), label_smoothing)
            total -= (chosen * kept).sum()
            if not (needs_hidden or needs_weight or needs_bias):
                continue
            # d(loss) / d(logits) = (softmax - target) / divisor; the target is one-hot, or spread
            grad_logits = log_probabilities.exp_()
            if label_smoothing:
                grad_logits -= label_smoothing / weight.shape[0]
            grad_logits[torch.arange(len(target), device=device), index.squeeze(1)] -= 1.0 - label_smoothing
            grad_logits = grad_logits.mul_((kept / divisor).unsqueeze(1)).to(dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = linear(grad_logits, matrix.t())
            if grad_weight is not None:
                if dtype == torch.float32:
                    grad_weight.addmm_(grad_logits.t(), chunk)
                else:
                    grad_weight += grad_logits.t() @ chunk
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        if grad.device.type != "cpu" or grad != 1:  # nearly always 1, and the weight's gradient is large
            hidden, weight, bias = (None if part is None else part * grad for part in (hidden, weight, bias))
        weight_dtype, bias_dtype = ctx.dtypes
        weight = None if weight is None else weight.to(weight_dtype)
        bias = None if bias is None else bias.to(bias_dtype)
        return hidden, weight, bias, None, None, None, None
