"""A decode step in fixed shapes, compiled by `torch.compile`: on a GPU a step of hundreds of small kernels becomes the
replay of one CUDA graph.

Everything that changes from step to step is in tensors that stay where they are. The price is that each step attends
to all slots of the cache, also those that are empty still, and that the first one takes a minute.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stemma.inference.cache import DenseCache
from stemma.inference.rolling_cache import RollingCache
from stemma.layers.attention import KeyValueCache

SLOTS = 256  # capacities are multiples of it, so that prompts of other lengths need no other graph


class CompiledStep(KeyValueCache):
    """The cache of a step that reads one token of every row, as `Decoder.step` does with the cache itself.

    Rows that have been dropped are computed too, up to the number that the cache was made for, and thrown away.
    """

    def __init__(self, model: Any, cache: DenseCache | RollingCache) -> None:
        self.keys, self.values = list(cache.keys), list(cache.values)  # [rows, heads, slots, head_dim] of each layer
        rows, device = len(self.keys[0]), self.keys[0].device
        # int64 [rows, 1] each: the slot of a row's first token, and that of its next one if slots had no end.
        self.starts = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.ends, self.tokens = torch.zeros_like(self.starts), torch.zeros_like(self.starts)
        for tensor in (*self.keys, *self.values, self.starts, self.ends, self.tokens):
            torch._dynamo.mark_static_address(tensor)
        self._model, self._cache = model, cache

    def __call__(self, tokens: Tensor) -> Tensor:
        """Read the next token of each row in use, int64 [rows]; return float32 [rows, vocabulary] logits."""
        starts, ends = self._cache.starts_and_ends()
        for tensor, numbers in (
            (self.starts, torch.tensor(starts)),
            (self.ends, torch.tensor(ends)),
            (self.tokens, tokens),
        ):
            tensor[: len(starts), 0] = numbers
            tensor[len(starts) :] = 0
        logits = _compiled()(self._model, self)[: len(starts)].clone()  # the next step overwrites what this one returns
        self._cache.advance(1)
        return logits

    def positions(self, length: int) -> Tensor:
        """Return int64 [rows, 1]: the positions of the next tokens."""
        return self.ends - self.starts

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None = None,
        scale: float | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Write keys and values [rows, key heads, 1, head_dim]; return what each query, of the same shape, sees."""
        if bias is not None:
            raise ValueError("no bias of the scores: models with relative positions are not decoded in fixed shapes")
        keys, values = self.keys[layer], self.values[layer]
        size = keys.shape[2]
        place = (self.ends % size).view(-1, 1, 1, 1).expand_as(key)
        keys.scatter_(2, place, key.to(keys.dtype))
        values.scatter_(2, place, value.to(values.dtype))
        slots = torch.arange(size, device=keys.device)
        seen = (slots >= self.starts) & (slots <= self.ends)
        if window is not None and window < size:  # a buffer of a window's size holds nothing else
            seen &= slots > self.ends - window
        groups = query.squeeze(2).unflatten(1, (keys.shape[1], -1)).to(keys.dtype)  # heads that share keys
        mask = seen.view(-1, 1, 1, size)
        mixed = F.scaled_dot_product_attention(groups, keys, values, attn_mask=mask, scale=scale)
        return mixed.flatten(1, 2).unsqueeze(2)

    def advance(self, length: int) -> None:
        """Nothing to count here: `__call__` does, outside of what is compiled."""


def _step(model: Any, step: CompiledStep) -> Tensor:
    hidden = model.hidden(step.tokens, cache=step)
    return model.logits(hidden.squeeze(1)).float()


@cache
def _compiled() -> Any:
    return torch.compile(_step, mode="reduce-overhead", dynamic=False)
