"""Mistral 7B and Mixtral 8x7B: decoder-only Transformers with sliding windows, grouped queries and sparse experts.

- Jiang et al. 2023, "Mistral 7B" (arXiv 2310.06825), section 2.
- Jiang et al. 2024, "Mixtral of Experts" (arXiv 2401.04088), section 2.

A Llama is a Mistral without windows.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.layers.attention import KeyValueCache, attention
from stemma.layers.experts import SparseExperts
from stemma.layers.feed_forward import GatedFeedForward
from stemma.layers.linear import Linear, linear
from stemma.layers.masks import Mask
from stemma.layers.norms import RMSNorm
from stemma.layers.positions import positions_of
from stemma.layers.rotary import Angles, rotary_angles, rotate


@dataclass(frozen=True)
class MistralConfig:
    """What a Mistral is made of; the defaults are Mistral 7B's, version 0.1.

    Args:
        vocabulary: number of token ids. context: longest text in tokens. layers, hidden, heads: of the stack.
        key_value_heads: heads of keys and values; so many consecutive query heads share one.
        head_dim: width of a head, even; default hidden / heads.
        feed_forward: inner width, of each expert where there are experts.
        windows: repeated over the layers: how many tokens a layer sees back, itself included; None: all.
        rope_theta: base of the rotary wave lengths.
        experts: feed-forward networks a layer has; 0: one, which is not routed to. experts_per_token: how many of them
            a token meets.
        tie_output: the output projection is the token embedding.
        initial_std: of the initial weights.
    """

    vocabulary: int = 32000
    context: int = 32768
    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    key_value_heads: int = 8
    head_dim: int | None = None
    feed_forward: int = 14336
    windows: tuple[int | None, ...] = (4096,)
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    experts: int = 0
    experts_per_token: int = 2
    tie_output: bool = False
    initial_std: float = 0.02

    def __post_init__(self) -> None:
        if self.head_dim is None and self.hidden % self.heads:
            raise InputError(f"model: hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.heads % self.key_value_heads:
            raise InputError(
                f"model: heads ({self.heads}) must be a multiple of key_value_heads ({self.key_value_heads})"
            )
        if self.head_size % 2:
            raise InputError(f"model: heads are {self.head_size} wide, rotary positions need an even width")
        if not self.windows or any(window is not None and window < 1 for window in self.windows):
            raise InputError(f"model: windows is {self.windows}, expected numbers of at least 1 or null (no window)")
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise InputError(
                f"model: experts_per_token is {self.experts_per_token}, expected 1 to experts ({self.experts})"
            )

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads if self.head_dim is None else self.head_dim

    def window(self, layer: int) -> int | None:
        """Return how many tokens layer number `layer` sees back, itself included; None: all."""
        return self.windows[layer % len(self.windows)]


class GroupedQueryAttention(nn.Module):
    """Attention in which groups of query heads share the keys and values of one head; no maps have biases."""

    def __init__(self, config: MistralConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.window = layer, config.window(layer)
        self.heads, self.key_value_heads = config.heads, config.key_value_heads
        self.query = Linear(config.hidden, config.heads * config.head_size, bias=False)
        self.key = Linear(config.hidden, config.key_value_heads * config.head_size, bias=False)
        self.value = Linear(config.hidden, config.key_value_heads * config.head_size, bias=False)
        self.output = Linear(config.heads * config.head_size, config.hidden, bias=False)

    def forward(self, x: Tensor, angles: Angles, mask: Mask | None, cache: KeyValueCache | None = None) -> Tensor:
        """Map float [batch, length, hidden] to the same shape; angles: of the tokens' positions."""
        query, key, value = self.project(x)
        query, key = rotate(query, angles), rotate(key, angles)
        if cache is not None:  # keys are cached as they are rotated, so that it does not matter where they lie
            mixed = cache.attend(self.layer, query, key, value, window=self.window)
        else:
            mixed = attention(query, key, value, mask, window=self.window)
        return self.output(mixed.transpose(1, 2).flatten(2).to(x.dtype))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query [batch, heads, length, head_dim], key and value [batch, key_value_heads, length, head_dim]."""
        shared = self.key_value_heads
        return _split(self.query(x), self.heads), _split(self.key(x), shared), _split(self.value(x), shared)


class Block(nn.Module):
    """Attention and feed-forward, each in a residual branch behind its norm."""

    def __init__(self, config: MistralConfig, layer: int) -> None:
        super().__init__()
        hidden, inner = config.hidden, config.feed_forward
        self.attention_norm = RMSNorm(hidden, config.norm_epsilon)
        self.attention = GroupedQueryAttention(config, layer)
        self.feed_forward_norm = RMSNorm(hidden, config.norm_epsilon)
        self.feed_forward: nn.Module = (
            SparseExperts(hidden, inner, experts=config.experts, chosen=config.experts_per_token)
            if config.experts
            else GatedFeedForward(hidden, inner, activation="silu", bias=False)
        )

    def forward(
        self, x: Tensor, angles: Angles, mask: Mask | None, cache: KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Map float [batch, length, hidden] to the same shape; also the router's logits, [tokens, experts], if any."""
        x = x + self.attention(self.attention_norm(x), angles, mask, cache)
        y = self.feed_forward(self.feed_forward_norm(x))
        y, routing = y if isinstance(y, tuple) else (y, None)
        return x + y, routing


class Mistral(nn.Module):
    """A Mistral or Mixtral language model; `model(tokens)` gives the logits of each next token."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.output = None if config.tie_output else Linear(config.hidden, config.vocabulary, bias=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew: N(0, initial_std), norms 1; maps into the residual stream scaled as GPT-2's.

        The papers do not say how they began.
        """
        for name, weight in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(weight)
                continue
            nn.init.normal_(weight, std=self.config.initial_std)
            if name.endswith(("attention.output.weight", "down.weight")):
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
            mask: what each token may see, described whole but for the windows; default `Mask(causal=True)`.
            positions: int64 [batch, length]; default: restarting at each document of the mask, not counting padding.
            cache: keys and values of what was read before; it then gives mask and positions.
        """
        return self.hidden_and_routing(tokens, mask=mask, positions=positions, cache=cache)[0]

    def hidden_and_routing(
        self,
        tokens: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return `hidden`, and the logits of each layer's router, float [batch * length, experts] (none: [])."""
        length = tokens.shape[1]
        if cache is not None:
            positions = cache.positions(length)
        elif length > self.config.context:
            raise InputError(f"the model reads at most {self.config.context} tokens at once, got {length}")
        if mask is None:
            mask = Mask(causal=True)
        if positions is None:
            positions = positions_of(mask, length, tokens.device)
        angles = rotary_angles(positions, self.config.head_size, self.config.rope_theta)
        x = self.token_embedding(tokens)
        routings = []
        for block in self.blocks:
            x, routing = block(x, angles, mask, cache)
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.advance(length)
        return self.final_norm(x), routings

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [..., vocabulary], the output projection of states, float [..., hidden]."""
        return linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output projection, float [vocabulary, hidden]."""
        return self.token_embedding.weight if self.output is None else self.output.weight


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [batch, heads, length, head_dim]


_MISTRAL = MistralConfig()
_MIXTRAL = MistralConfig(windows=(None,), rope_theta=1e6, experts=8)

PRESETS: dict[str, MistralConfig] = {
    "tiny": replace(
        _MISTRAL, vocabulary=4096, context=256, layers=4, hidden=192, heads=6, key_value_heads=2, feed_forward=512,
        windows=(64,),
    ),
    "mixtral-tiny": replace(
        _MIXTRAL, vocabulary=4096, context=256, layers=4, hidden=192, heads=6, key_value_heads=2, feed_forward=256,
        experts=4,
    ),
    "mistral-7b": _MISTRAL,
    "mistral-7b-v0.3": replace(_MISTRAL, vocabulary=32768, windows=(None,), rope_theta=1e6),
    "mixtral-8x7b": _MIXTRAL,
}  # fmt: skip
