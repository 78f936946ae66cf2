"""The bidirectional Transformer of "Dissecting contextual word embeddings" (Peters, Neumann, Zettlemoyer, Yih 2018)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stemma.layers.attention import MultiHeadAttention
from stemma.layers.feed_forward import FeedForward
from stemma.layers.masks import Mask
from stemma.layers.positions import sinusoids

if TYPE_CHECKING:
    from stemma.families.elmo.model import ELMoConfig


class Block(nn.Module):
    """Attention to what was read before and a feed-forward network, each normalised first, in a residual branch."""

    def __init__(self, config: "ELMoConfig", layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.projection)
        self.attention = MultiHeadAttention(config.projection, config.heads, layer=layer, dropout=config.dropout)
        self.feed_forward_norm = nn.LayerNorm(config.projection)
        self.feed_forward = FeedForward(
            config.projection, config.feed_forward, activation="relu", dropout=config.dropout
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [batch, length, projection] to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x), Mask(causal=True)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class TransformerContext(nn.Module):
    """A stack of blocks for each direction, with weights of its own."""

    def __init__(self, config: "ELMoConfig") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(config, layer) for layer in range(config.layers)) for _ in range(2)
        )
        self.final_norm = nn.ModuleList(nn.LayerNorm(config.projection) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, lengths: Tensor, states: None = None) -> tuple[list[Tensor], None]:
        """Map float [2, batch, length, projection], the second direction from the end of each row, to that of each
        layer. Padding stands behind what is real, where causality hides it."""
        x = self.dropout(x * x.shape[-1] ** 0.5 + sinusoids(x.shape[2], x.shape[3], x.device))
        directions = []
        for row, blocks, norm in zip(x, self.blocks, self.final_norm, strict=True):
            outputs = []
            for block in blocks:  # type: ignore[attr-defined]
                row = block(row)
                outputs.append(row)
            directions.append([*outputs[:-1], norm(outputs[-1])])
        return [torch.stack(both) for both in zip(*directions, strict=True)], None
