"""Cross-entropy over a large vocabulary without ever holding all the logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stemma.layers.linear import compiles_kernels, linear, rounded_up

# Bytes of one chunk of logits, as the product gives them. Smaller chunks starve the product, larger ones the memory.
CHUNK_BYTES = 128 * 2**20
BLOCK_BYTES = 2**21  # of float32 logits, about what a core's own cache holds


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
    if compiles_kernels(hidden) and (more := rounded_up(len(targets)) - len(targets)):
        hidden, targets = F.pad(hidden, (0, 0, 0, more)), F.pad(targets, (0, more), value=ignore_index)
    if not torch.is_grad_enabled():  # a Function's needs_input_grad does not know of no_grad
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, divisor, ignore_index, label_smoothing)


def _log_probabilities(logits: Tensor, index: Tensor, label_smoothing: float, *, with_gradient: bool) -> Tensor:
    """Return the log-probabilities of the targets, float32 [rows], and turn logits into the gradients of minus each.

    Args:
        logits: float [rows, vocabulary]. index: int64 [rows, 1]: the targets.
    """
    vocabulary = logits.shape[1]
    # On a CPU a few rows at a time, which stay in its cache from one operation to the next.
    rows = max(1, BLOCK_BYTES // (4 * vocabulary)) if logits.device.type == "cpu" else max(1, len(logits))
    found = []
    for block, target in zip(logits.split(rows), index.split(rows), strict=True):
        scores = block.float()
        highest = scores.amax(1)
        probabilities = scores.softmax(1)
        total = highest - probabilities.amax(1).log()  # log of the sum of the exponentials
        chosen = scores.gather(1, target).squeeze(1) - total
        if label_smoothing:
            chosen = torch.lerp(chosen, scores.mean(1) - total, label_smoothing)
            probabilities -= label_smoothing / vocabulary
        found.append(chosen)
        if with_gradient:  # softmax - target, which is one-hot, or spread
            probabilities.scatter_add_(1, target, probabilities.new_full(target.shape, label_smoothing - 1.0))
            block.copy_(probabilities)
    return torch.cat(found)


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
        chosen = torch.empty(hidden.shape[0], dtype=torch.float32, device=device)  # log-probabilities of the targets
        scale = (targets != ignore_index) / divisor
        needs_any = needs_hidden or needs_weight or needs_bias
        rows = max(64, CHUNK_BYTES // (weight.shape[0] * dtype.itemsize))
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            logits = linear(states[chunk], matrix, offset)  # [rows, vocabulary]
            index = targets[chunk].where(targets[chunk] != ignore_index, 0).unsqueeze(1)
            chosen[chunk] = _log_probabilities(logits, index, label_smoothing, with_gradient=needs_any)
            if not needs_any:
                continue
            factor = scale[chunk].unsqueeze(1)  # on the small side of the products
            if grad_hidden is not None:
                grad_hidden[chunk] = linear(logits, matrix.t()) * factor
            if grad_weight is not None:
                scaled = (states[chunk] * factor).to(dtype)
                if dtype == torch.float32:
                    grad_weight.addmm_(logits.t(), scaled)
                else:
                    grad_weight += logits.t() @ scaled
            if grad_bias is not None:
                grad_bias += factor.squeeze(1).to(dtype) @ logits
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return -(chosen * scale).sum()

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
