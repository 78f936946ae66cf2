"""A model that reads a batch of prompts and then one token a row at a time, through a key-value cache."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from stemma.inference.cache import DenseCache
from stemma.inference.compiled_step import SLOTS, CompiledStep

PIECE_TOKENS = 1024  # prompts are packed to about so many tokens a forward pass: enough for the products to be fast


class Decoder:
    """The texts in hand: `copies[i]` rows for prompt i, one behind the other.

    Args:
        model: with `hidden(tokens, cache=)`, `logits(hidden)`, `output_weight` and a `config` as `DenseCache.for_model`
            needs it. prompts: token ids, at least one each. copies: default one row a prompt.
        new_tokens: most tokens that will be generated a row.
        compiled: run `step` as compiled code (see `inference.compiled_step`).
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        copies: Sequence[int] | None = None,
        new_tokens: int,
        compiled: bool = False,
    ) -> None:
        self.model, self.prompts = model, prompts
        self.copies = list(copies) if copies is not None else [1] * len(prompts)
        self.device = model.output_weight.device
        longest = max(len(prompt) for prompt in prompts)
        capacity = longest + new_tokens
        self.cache = self.new_cache(sum(self.copies), -(-capacity // SLOTS) * SLOTS if compiled else capacity)
        self._compiled = CompiledStep(model, self.cache) if compiled else None

    def new_cache(self, rows: int, capacity: int) -> DenseCache:
        """Return an empty cache for the model."""
        return DenseCache.for_model(self.model, rows, capacity)

    @torch.inference_mode()
    def read_prompts(self) -> Tensor:
        """Read each prompt once, without padding; return float32 [rows, vocabulary], the logits of the next tokens."""
        lengths = [len(prompt) for prompt in self.prompts]
        self.cache.begin([length for length, count in zip(lengths, self.copies, strict=True) for _ in range(count)])
        first_rows = [0, *accumulate(self.copies)]
        logits = []
        for piece in self._pieces():
            packed = self.cache.prompts([first_rows[number] for number in piece])
            tokens = torch.tensor([[token for number in piece for token in self.prompts[number]]], device=self.device)
            hidden = self.model.hidden(tokens, cache=packed)
            logits.append(self.model.logits(hidden[0, packed.last]).float())
        self.cache.spread(self.copies)
        return torch.cat(logits).repeat_interleave(torch.tensor(self.copies, device=self.device), dim=0)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Read the next token of each row, int64 [rows]; return float32 [rows, vocabulary], the logits of the next."""
        if self._compiled is not None:
            return self._compiled(tokens)
        hidden = self.model.hidden(tokens.unsqueeze(1), cache=self.cache)
        return self.model.logits(hidden.squeeze(1)).float()

    def keep(self, order: Sequence[int]) -> None:
        """Make row order[i] row i and drop the others (see `DenseCache.keep`)."""
        self.cache.keep(order)

    def reorder(self, parents: Tensor) -> None:
        """Make row parents[i], of the same prompt, row i."""
        self.cache.reorder(parents)

    def _pieces(self) -> Iterator[list[int]]:
        """Yield numbers of prompts to read together."""
        piece: list[int] = []
        total = 0
        for number, prompt in enumerate(self.prompts):
            if piece and total + len(prompt) > PIECE_TOKENS:
                yield piece
                piece, total = [], 0
            piece.append(number)
            total += len(prompt)
        yield piece
