"""GPT-1, GPT-2 and GPT-3: decoder-only Transformers that predict the next token.

- GPT-1: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training".
- GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
- GPT-3: Brown et al. 2020, "Language Models are Few-Shot Learners", section 2.1.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.layers.attention import KeyValueCache, MultiHeadAttention
from stemma.layers.feed_forward import FeedForward
from stemma.layers.linear import Linear, linear
from stemma.layers.masks import Mask
from stemma.layers.positions import positions_of


@dataclass(frozen=True)
class GPTConfig:
    """What a GPT is made of; the defaults are GPT-2's of 124M parameters.

    Args:
        vocabulary: number of token ids. context: longest text in tokens. layers, hidden, heads: of the stack.
        feed_forward: inner width, default 4 * hidden.
        norm: "pre" (GPT-2, GPT-3: norms inside the residual branch and one at the end) or "post" (GPT-1: after it).
        activation: "gelu_tanh" (all three papers' code), "gelu" (error function) or "relu".
        dropout: after the embeddings and each residual branch. attention_dropout: of the attention weights.
        attention_pattern: repeated over the layers; "banded" layers see `band` tokens, themselves included. GPT-3
            alternates ("dense", "banded"), its band width is not published.
        tie_output: the output projection is the token embedding.
        position_std: of the initial position embeddings: 0.01 in OpenAI's GPT-2 code, 0.02 everywhere else.
        vocabulary_multiple: the embedding has rows up to the next multiple (64 makes the output projection
            faster on GPUs); they are never predicted or saved.
    """

    vocabulary: int = 50257
    context: int = 1024
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    feed_forward: int | None = None
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu_tanh", "gelu", "relu"] = "gelu_tanh"
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)
    band: int = 256
    tie_output: bool = True
    position_std: float = 0.01
    vocabulary_multiple: int = 1

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise InputError(f"model: hidden ({self.hidden}) must be a multiple of heads ({self.heads})")

    @property
    def padded_vocabulary(self) -> int:
        return -(-self.vocabulary // self.vocabulary_multiple) * self.vocabulary_multiple

    def window(self, layer: int) -> int | None:
        """Return how many tokens layer number `layer` sees back, itself included; None: all."""
        kind = self.attention_pattern[layer % len(self.attention_pattern)]
        return self.band if kind == "banded" else None


class Block(nn.Module):
    """Attention and feed-forward, each in a residual branch."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        hidden, epsilon = config.hidden, config.norm_epsilon
        self.pre_norm = config.norm == "pre"
        self.attention_norm = nn.LayerNorm(hidden, epsilon)
        self.attention = MultiHeadAttention(
            hidden, config.heads, layer=layer, dropout=config.attention_dropout, window=config.window(layer)
        )
        self.feed_forward_norm = nn.LayerNorm(hidden, epsilon)
        self.feed_forward = FeedForward(hidden, config.feed_forward or 4 * hidden, activation=config.activation)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Mask | None, cache: KeyValueCache | None = None) -> Tensor:
        """Map float [batch, length, hidden] to the same shape."""
        if self.pre_norm:  # GPT-2, section 2.3
            x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask, cache)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class GPT(nn.Module):
    """A decoder-only Transformer language model; `model(tokens)` gives the logits of each next token."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocabulary, config.hidden)
        self.position_embedding = nn.Embedding(config.context, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = nn.LayerNorm(config.hidden, config.norm_epsilon) if config.norm == "pre" else nn.Identity()
        self.output = None if config.tie_output else Linear(config.hidden, config.padded_vocabulary, bias=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew: N(0, 0.02), biases 0, norms 1.

        GPT-2 and GPT-3 scale the maps that write into the residual stream by 1 / sqrt(number of such maps).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.normal_(self.position_embedding.weight, std=self.config.position_std)
        if self.config.norm == "pre":
            for name, weight in self.named_parameters():
                if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                    weight.mul_((2 * self.config.layers) ** -0.5)

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return logits, float [batch, length, vocabulary], for int64 tokens [batch, length]; options of `hidden`."""
        return self.logits(self.hidden(tokens, mask=mask, positions=positions, cache=cache))

    def hidden(
        self,
        tokens: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the last layer's states, float [batch, length, hidden]; logits are these times `output_weight`.

        Args:
            tokens: int64 [batch, length].
            mask: what each token may see, described whole; default `Mask(causal=True)`.
            positions: int64 [batch, length]; default: restarting at each document of the mask, not counting padding.
            cache: keys and values of what was read before; it then gives mask and positions.
        """
        length = tokens.shape[1]
        if cache is not None:
            positions = cache.positions(length)
        elif length > self.config.context:
            raise InputError(f"the model reads at most {self.config.context} tokens at once, got {length}")
        if mask is None:
            mask = Mask(causal=True)
        if positions is None:
            positions = positions_of(mask, length, tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x, mask, cache)
        if cache is not None:
            cache.advance(length)
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [..., vocabulary], the output projection of states, float [..., hidden]."""
        return linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output projection, float [vocabulary, hidden], without the padding rows."""
        weight = self.token_embedding.weight if self.output is None else self.output.weight
        # A slice of everything would still cost a copy of its gradient.
        return weight if len(weight) == self.config.vocabulary else weight[: self.config.vocabulary]


_GPT1 = GPTConfig(vocabulary=40478, context=512, norm="post", dropout=0.1, attention_dropout=0.1, position_std=0.02)
_GPT2 = GPTConfig()
_GPT3 = GPTConfig(context=2048, attention_pattern=("dense", "banded"))

PRESETS: dict[str, GPTConfig] = {
    "tiny": replace(_GPT2, vocabulary=4096, context=256, layers=4, hidden=192, heads=6),
    "10m": replace(_GPT2, vocabulary=8192, context=256, layers=4, hidden=384, heads=6),
    "gpt1": _GPT1,
    "gpt2": _GPT2,
    "gpt2-medium": replace(_GPT2, layers=24, hidden=1024, heads=16),
    "gpt2-large": replace(_GPT2, layers=36, hidden=1280, heads=20),
    "gpt2-xl": replace(_GPT2, layers=48, hidden=1600, heads=25),
    # Brown et al. 2020, table 2.1. Two rows contradict themselves: XL's 24 heads of 128 do not make 2048 (16 do), and
    # 13B's width 5140 is not 40 heads of 128 (5120 is).
    "gpt3-125m": replace(_GPT3, layers=12, hidden=768, heads=12),
    "gpt3-350m": replace(_GPT3, layers=24, hidden=1024, heads=16),
    "gpt3-760m": replace(_GPT3, layers=24, hidden=1536, heads=16),
    "gpt3-1.3b": replace(_GPT3, layers=24, hidden=2048, heads=16),
    "gpt3-2.7b": replace(_GPT3, layers=32, hidden=2560, heads=32),
    "gpt3-6.7b": replace(_GPT3, layers=32, hidden=4096, heads=32),
    "gpt3-13b": replace(_GPT3, layers=40, hidden=5120, heads=40),
    "gpt3-175b": replace(_GPT3, layers=96, hidden=12288, heads=96),
}
