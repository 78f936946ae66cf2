"""Attention of one new token of each of many texts over keys and values that lie in blocks.

On a CPU a kernel in Numba (extra `serve`) reads each key and value once where it lies. Without it, and on a GPU, they
are gathered first.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.data.kept_kernels import kept

# From so many numbers of keys and values on, several threads are worth waking.
_MANY = 1 << 18


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    first: Tensor,
    scale: float | None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return softmax(query key^T * scale + bias) value for one query a text.

    Args:
        query: float [texts, heads, head_dim]. keys, values: float [blocks, key heads, block, head_dim].
        tables: int32 [texts, most blocks], the blocks of each text. lengths: int32 [texts], its tokens.
        first: int32 [texts], the first token that is seen. scale: default 1 / sqrt(head_dim).
        bias: float [heads, distances]: what is added for each distance from the last token back; None: 0.
    Returns:
        float [texts, heads, head_dim].
    """
    scale = scale or 1 / math.sqrt(query.shape[-1])
    kernels = _kernels() if query.device.type == "cpu" and query.dtype == torch.float32 else None
    if kernels is None:
        return _gathered(query, keys, values, tables, lengths, first, scale, bias)
    mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
    table = query.new_empty(0, 0) if bias is None else bias.contiguous()
    arrays = (part.numpy() for part in (query.contiguous(), keys, values, tables, lengths, first, table))
    alone, together = kernels
    several = torch.get_num_threads() > 1 and tables.numel() * keys[0].numel() * 2 >= _MANY
    (together if several else alone)(*arrays, scale, mixed.numpy())
    return mixed


def _gathered(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    lengths: Tensor,
    first: Tensor,
    scale: float,
    bias: Tensor | None,
) -> Tensor:
    texts, most = tables.shape
    block, heads = keys.shape[2], keys.shape[1]
    index = torch.arange(most * block, device=query.device)
    seen = ((index >= first.unsqueeze(1)) & (index < lengths.unsqueeze(1))).view(texts, 1, 1, -1)
    if bias is not None:
        distance = (lengths.unsqueeze(1) - 1 - index).clamp(0, bias.shape[1] - 1).long()  # [texts, tokens]
        added = bias[:, distance].transpose(0, 1).unflatten(1, (heads, -1))  # [texts, key heads, group, tokens]
        seen = added.masked_fill(~seen, -torch.inf)
    # [texts, most, key heads, block, head_dim] -> [texts, key heads, most * block, head_dim]
    key, value = (buffer[tables.long()].transpose(1, 2).flatten(2, 3) for buffer in (keys, values))
    grouped = query.unflatten(1, (heads, -1))  # the heads that share keys are the queries of one head
    mixed = F.scaled_dot_product_attention(grouped, key, value, attn_mask=seen, scale=scale)
    return mixed.flatten(1, 2)


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]] | None:
    """Return the kernel on one thread and on all, None without Numba."""
    try:
        import numba
    except ImportError:
        return None
    import numpy as np

    def kernel(parallel: bool) -> Callable[..., None]:
        def attend(  # type: ignore[no-untyped-def]
            query, keys, values, tables, lengths, first, bias, scale, mixed
        ):  # pragma: no cover
            texts, heads, width = query.shape
            key_heads, block = keys.shape[1], keys.shape[2]
            group = heads // key_heads
            _ = parallel  # what tells the two kernels apart on disk
            for task in numba.prange(texts * key_heads):
                text, head = task // key_heads, task % key_heads
                begin, end = first[text], lengths[text]
                scores = np.empty((group, end - begin), np.float32)
                for index in range(begin // block, (end - 1) // block + 1):
                    number = tables[text, index]
                    for inside in range(max(begin - index * block, 0), min(end - index * block, block)):
                        key = keys[number, head, inside]
                        for member in range(group):
                            vector = query[text, head * group + member]
                            total = np.float32(0)
                            for i in range(width):
                                total += vector[i] * key[i]
                            place = index * block + inside
                            score = total * np.float32(scale)
                            if len(bias):
                                score += bias[head * group + member, end - 1 - place]
                            scores[member, place - begin] = score
                for member in range(group):
                    row = scores[member]
                    largest = row.max()
                    total = np.float32(0)
                    for i in range(end - begin):
                        row[i] = np.exp(row[i] - largest)
                        total += row[i]
                    for i in range(end - begin):
                        row[i] /= total
                    mixed[text, head * group + member, :] = 0
                for index in range(begin // block, (end - 1) // block + 1):
                    number = tables[text, index]
                    for inside in range(max(begin - index * block, 0), min(end - index * block, block)):
                        value = values[number, head, inside]
                        for member in range(group):
                            weight = scores[member, index * block + inside - begin]
                            target = mixed[text, head * group + member]
                            for i in range(width):
                                target[i] += weight * value[i]

        found: Callable[..., None] = kept(attend, parallel=parallel, fastmath={"reassoc", "contract", "nsz"})
        return found

    return kernel(False), kernel(True)
