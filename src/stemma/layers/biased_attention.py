"""Attention whose scores get a bias for each pair of positions, one for all rows of the batch and learned (T5)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stemma.layers.masks import Mask

# Scores that the backward pass works on at a time, so that they stay in the cache.
CHUNK_ELEMENTS = 256 * 1024
# Below so many pairs of tokens a row, the calls of a backward pass by rows cost more than they save.
LEAST_PAIRS = 64 * 64

Part = tuple[int, slice, slice]  # row, queries, keys


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask: Mask | None = None,
    *,
    window: int | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(query key^T * scale + bias) value over the keys that `mask` allows.

    Args:
        bias: float [1, heads, queries, keys]. The others: see `attention`.
    """
    by_parts = _by_parts(query, dropout)
    parts: list[Part] | None = None
    if mask is not None or window is not None:
        lowered = (mask or Mask()).lower(query, key, window, dropout=dropout, plain=not by_parts)
        if lowered.segments is not None:
            parts = [(row, slice(start, stop), slice(start, stop)) for row, start, stop in lowered.segments]
        if lowered.is_causal:
            future = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu_(1)
            bias = bias.masked_fill(future, -torch.inf)
        elif lowered.dense is not None:
            bias = bias.masked_fill(~lowered.dense, -torch.inf)
    if parts is None and by_parts and len(bias) == 1 and bias.requires_grad and bias[0, 0].numel() >= LEAST_PAIRS:
        parts = [(row, slice(None), slice(None)) for row in range(len(query))]
    if parts is not None:
        return _BiasedAttention.apply(query, key, value, bias, parts, scale)
    bias = bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)


def _by_parts(query: Tensor, dropout: float) -> bool:
    precise = query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64)
    return precise and not dropout and not torch.compiler.is_compiling()


class _BiasedAttention(torch.autograd.Function):
    """Attention of some queries of a row to some of its keys, one part after the other.

    The flash kernel gives no gradient of its bias; PyTorch's other road keeps all scores of all layers for it. Here
    they are computed again in the backward pass, a part at a time: 1.2 to 2 times faster for texts of 128 and more
    tokens, and no memory for [batch, heads, queries, keys].
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, parts: list[Part], scale: float | None
    ) -> Tensor:
        output = torch.empty_like(query)
        normalizers = []
        for row, queries, keys in parts:
            here, there = (slice(row, row + 1), slice(None), queries), (slice(row, row + 1), slice(None), keys)
            output[here], normalizer = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[here], key[there], value[there], 0.0, False, attn_mask=bias[:, :, queries, keys], scale=scale
            )
            normalizers.append(normalizer)
        ctx.save_for_backward(query, key, value, bias, output, *normalizers)
        ctx.parts, ctx.scale = parts, query.shape[-1] ** -0.5 if scale is None else scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        query, key, value, bias, output, *normalizers = ctx.saved_tensors
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), torch.zeros_like(bias)
        inner = torch.linalg.vecdot(grad, output).unsqueeze(-1)  # [batch, heads, queries, 1]
        for (row, queries, keys), normalizer in zip(ctx.parts, normalizers, strict=True):
            pairs = normalizer.shape[-1] * key[row, 0, keys].shape[0]
            heads = max(1, CHUNK_ELEMENTS // pairs)
            for first in range(0, query.shape[1], heads):
                some = slice(first, first + heads)
                here, there, block = (row, some, queries), (row, some, keys), (0, some, queries, keys)
                scores = torch.baddbmm(bias[block], query[here], key[there].mT, alpha=ctx.scale)
                weights = scores.sub_(normalizer[0, some].unsqueeze(-1)).exp_()
                grads[2][there] = weights.mT @ grad[here]
                # d(scores) = weights * (d(weights) - sum over the keys of weights * d(weights))
                grad_scores = weights.mul_((grad[here] @ value[there].mT).sub_(inner[here]))
                grads[3][block] += grad_scores
                grads[0][here] = grad_scores @ key[there]
                grads[1][there] = grad_scores.mT @ query[here]
        for scaled in grads[:2]:
            if ctx.scale != 1.0:
                scaled.mul_(ctx.scale)
        return *grads, None, None
