"""GLM: a bidirectional reader and an autoregressive writer in one Transformer (Du et al. 2022, "GLM: General Language
Model Pretraining with Autoregressive Blank Infilling").

A sequence is Part A, a text with blanks, and Part B, what stands in the blanks. Part A sees all of itself and nothing
of Part B; Part B sees Part A and, from left to right, itself (section 2.1, figure 2). Each token has two positions: in
the text with blanks, and inside its blank (section 2.3). The block is GPT-2's.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.layers.attention import KeyValueCache, MultiHeadAttention
from stemma.layers.feed_forward import FeedForward
from stemma.layers.linear import linear
from stemma.layers.masks import Mask


@dataclass(frozen=True)
class GLMConfig:
    """What a GLM is made of; the defaults are GLM-Base's (110M parameters).

    Args:
        vocabulary: number of token ids; in published checkpoints it counts the padding rows, over which their softmax
            runs too.
        context: longest text in tokens, before anything is taken out of it (512 or 1024).
        layers, hidden, heads: of the stack.
        dropout: after the embeddings and each residual branch. attention_dropout: of the attention weights.
        block_positions: whether there is the second position, inside a blank.
        vocabulary_multiple: the embedding has rows up to the next multiple (64 makes the output projection faster on
            GPUs); they are never predicted or saved.
    """

    vocabulary: int = 30592
    context: int = 512
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    norm_epsilon: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    block_positions: bool = True
    vocabulary_multiple: int = 1

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise InputError(f"model: hidden ({self.hidden}) must be a multiple of heads ({self.heads})")

    @property
    def padded_vocabulary(self) -> int:
        return -(-self.vocabulary // self.vocabulary_multiple) * self.vocabulary_multiple

    @property
    def position_rows(self) -> int:
        """Rows of a position table: positions 0 to `context`. Without the second table there is one row less."""
        return self.context + 1 if self.block_positions else self.context

    def window(self, layer: int) -> int | None:
        """Return None: every layer sees everything that the mask allows."""
        return None


class Block(nn.Module):
    """Attention and feed-forward, each in a residual branch behind its norm."""

    def __init__(self, config: GLMConfig, layer: int) -> None:
        super().__init__()
        hidden, epsilon = config.hidden, config.norm_epsilon
        self.attention_norm = nn.LayerNorm(hidden, epsilon)
        self.attention = MultiHeadAttention(hidden, config.heads, layer=layer, dropout=config.attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(hidden, epsilon)
        self.feed_forward = FeedForward(hidden, 4 * hidden, activation="gelu_tanh")
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Mask | None, cache: KeyValueCache | None = None, places: Tensor | None = None
    ) -> Tensor:
        """Map float [batch, length, hidden] to the same shape, or to [places, hidden] (see `GLM.hidden`)."""
        mixed = self.attention(self.attention_norm(x), mask, cache, places=places)
        x = (x if places is None else x.flatten(0, 1)[places]) + self.dropout(mixed)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class GLM(nn.Module):
    """A General Language Model; `model(tokens, positions, mask)` gives the logits of what each token predicts."""

    def __init__(self, config: GLMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocabulary, config.hidden)
        self.position_embedding = nn.Embedding(config.position_rows, config.hidden)
        self.block_position_embedding = (
            nn.Embedding(config.position_rows, config.hidden) if config.block_positions else None
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = nn.LayerNorm(config.hidden, config.norm_epsilon)
        self.output: nn.Module | None = None  # the output projection, where it is not the token embedding
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew: N(0, 0.02), the maps that write into the residual stream N(0, 0.02 / sqrt(2 L))."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for name, weight in self.named_parameters():
            if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                weight.mul_((2 * self.config.layers) ** -0.5)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        *,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return logits, float [batch, length, vocabulary], for int64 tokens [batch, length]; options of `hidden`."""
        return self.logits(self.hidden(tokens, positions, mask, cache=cache))

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
        *,
        cache: KeyValueCache | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Return the last layer's states, float [batch, length, hidden]; logits are these times `output_weight`.

        Args:
            tokens: int64 [batch, length].
            positions: int64 [batch, 2, length]: position in the text with blanks, and position in the blank, counted
                from 1 at its start token (0 outside blanks). Default: a text without blanks.
            mask: `Mask(causal=True, prefix_lengths=...)` with the lengths of Part A. Default: all of it is Part A.
            cache: keys and values of what was read before; it then gives the mask.
            places: int64 [places], counted through all rows: return the states of these only, float [places, hidden],
                which spares the others most of the last layer.
        Raises:
            InputError: more tokens without positions than there are positions.
        """
        if positions is None:
            positions = self._positions_without_blanks(tokens)
        x = self.token_embedding(tokens) + self.position_embedding(positions[:, 0])
        if self.block_position_embedding is not None:
            x = x + self.block_position_embedding(positions[:, 1])
        x = self.dropout(x)
        for block in self.blocks[:-1]:
            x = block(x, mask, cache)
        x = self.blocks[-1](x, mask, cache, places)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [..., vocabulary], the output projection of states, float [..., hidden]."""
        return linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output projection, float [vocabulary, hidden]: the token embedding without its padding rows."""
        weight: Any = self.token_embedding.weight if self.output is None else self.output.weight
        # A slice of everything would still cost a copy of its gradient.
        return weight if len(weight) == self.config.vocabulary else weight[: self.config.vocabulary]

    def _positions_without_blanks(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.config.position_rows:
            raise InputError(f"the model has {self.config.position_rows} positions, got {length} tokens without any")
        places = torch.arange(length, device=tokens.device)
        return torch.stack([places, torch.zeros_like(places)]).expand(len(tokens), -1, -1)


_BASE = GLMConfig()
_LARGE = replace(_BASE, layers=24, hidden=1024, heads=16)
_GPT2_TOKENS = replace(_BASE, vocabulary=50304, context=1024)

# Du et al. 2022, tables 1 to 3 and appendix A; the sizes of 2B and 10B from the authors' code.
PRESETS: dict[str, GLMConfig] = {
    "tiny": GLMConfig(vocabulary=4096, context=256, layers=4, hidden=192, heads=6, dropout=0.0, attention_dropout=0.0),
    "base": _BASE,
    "large": _LARGE,
    "410m": replace(_LARGE, layers=30),
    "515m": replace(_LARGE, layers=30, hidden=1152, heads=18),
    "2b": replace(_GPT2_TOKENS, layers=36, hidden=2048, heads=32),
    "10b": replace(_GPT2_TOKENS, layers=48, hidden=4096, heads=64),
}
