"""Attention inside each document of packed rows, on a CPU, at the cost of the documents and not of the rows."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Segment = tuple[int, int, int]  # row, start, stop


def document_segments(document_ids: Tensor) -> list[Segment]:
    """Return where each document stands in int [batch, length] ids (a document is a run of equal ids in a row)."""
    batch, length = document_ids.shape
    starts = torch.ones_like(document_ids, dtype=torch.bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    begin = starts.flatten().nonzero().squeeze(1).tolist()
    end = begin[1:] + [batch * length]
    return [(b // length, b % length, e - b // length * length) for b, e in zip(begin, end, strict=True)]


def document_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: list[Segment], scale: float | None, causal: bool = True
) -> Tensor:
    """Return attention of each segment to itself; shapes as in `attention`, first derivatives only.

    The flash kernel has no notion of documents: a dense mask makes it compute every pair of tokens of a row and throw
    most of them away. Calling it once a document computes only the pairs that count: 1.5 to 5 times faster for rows
    of 512 and more tokens.
    """
    return _DocumentAttention.apply(query, key, value, segments, scale, causal)


class _DocumentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: list[Segment],
        scale: float | None,
        causal: bool,
    ) -> Tensor:
        output = torch.empty_like(query)
        normalizers = []
        for row, start, stop in segments:
            part = (slice(row, row + 1), slice(None), slice(start, stop))
            output[part], normalizer = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[part], key[part], value[part], 0.0, causal, scale=scale
            )
            normalizers.append(normalizer)
        ctx.save_for_backward(query, key, value, output, *normalizers)
        ctx.segments, ctx.scale, ctx.causal = segments, scale, causal
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, output, *normalizers = ctx.saved_tensors
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for (row, start, stop), normalizer in zip(ctx.segments, normalizers, strict=True):
            part = (slice(row, row + 1), slice(None), slice(start, stop))
            pieces = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[part],
                query[part],
                key[part],
                value[part],
                output[part],
                normalizer,
                0.0,
                ctx.causal,
                scale=ctx.scale,
            )
            for whole, piece in zip(grads, pieces, strict=True):
                whole[part] = piece
        return *grads, None, None, None
