"""T5 1.0 and 1.1: encoder-decoder Transformers with relative positions.

- T5 1.0: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
  section 2.1.
- T5 1.1: gated feed-forward, separate output projection, no dropout in pretraining (google-research/
  text-to-text-transfer-transformer, released_checkpoints.md).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.layers.attention import MultiHeadAttention
from stemma.layers.cross_attention import CrossAttention, SourceCache, source_mask
from stemma.layers.feed_forward import FeedForward, GatedFeedForward
from stemma.layers.linear import Linear, linear
from stemma.layers.masks import Mask
from stemma.layers.norms import RMSNorm


@dataclass(frozen=True)
class T5Config:
    """What a T5 is made of; the defaults are those of T5 1.0 small, with 60M parameters.

    Args:
        vocabulary: number of token ids. hidden, heads, head_dim: heads * head_dim may differ from hidden.
        layers: of the encoder. decoder_layers: default as many. feed_forward: inner width.
        gated, activation: T5 1.1 has a "gelu_tanh" gate, T5 1.0 a plain "relu".
        buckets, max_distance: of relative positions; all distances from `max_distance` on share a bucket.
        dropout: after the embeddings, each sublayer and each stack, of the attention weights and inside the
            feed-forward.
        tie_output: the output projection is the token embedding. scale_output: divide the decoder's states by
            sqrt(hidden) before it. T5 1.0 has both, T5 1.1 neither.
        start: the token that a decoder begins with; the reference uses its padding.
        vocabulary_multiple: the embedding has rows up to the next multiple, for speed; they are never predicted or
            saved.
    """

    vocabulary: int = 32128
    hidden: int = 512
    heads: int = 8
    head_dim: int = 64
    layers: int = 6
    decoder_layers: int | None = None
    feed_forward: int = 2048
    gated: bool = False
    activation: Literal["relu", "gelu_tanh", "gelu"] = "relu"
    buckets: int = 32
    max_distance: int = 128
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    tie_output: bool = True
    scale_output: bool = True
    start: int = 0
    vocabulary_multiple: int = 64

    @property
    def padded_vocabulary(self) -> int:
        return -(-self.vocabulary // self.vocabulary_multiple) * self.vocabulary_multiple


class BiasedSourceCache(SourceCache, Protocol):
    """A cache that knows how far the next tokens are from those before them."""

    def bias(self, of: "RelativeBias", length: int) -> Tensor:
        """Return the bias of the next `length` tokens' scores, in the form that `attend` takes."""
        ...


def relative_bucket(offsets: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Return the bucket, int64 of any shape, of each `offset` = key's position - query's position (section 2.1).

    Half of the buckets are for one distance each, the others grow logarithmically up to `max_distance`. An encoder
    has one half of all for each direction; a decoder sees nothing ahead (offsets above 0 fall in bucket 0).
    """
    start = torch.zeros_like(offsets)
    if bidirectional:
        buckets //= 2
        start = (offsets > 0) * buckets
        distance = offsets.abs()
    else:
        distance = (-offsets).clamp_min(0)
    exact = buckets // 2
    growth = (distance.clamp_min(1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (growth * (buckets - exact)).long()).clamp_max(buckets - 1)
    return start + torch.where(distance < exact, distance, far)


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # what is kept may be part of a training step later
def _buckets_of_offsets(
    first: int, stop: int, buckets: int, max_distance: int, bidirectional: bool, device: torch.device
) -> Tensor:
    return relative_bucket(torch.arange(first, stop, device=device), buckets, max_distance, bidirectional)


class RelativeBias(nn.Module):
    """What is added to the scores for each relative position: one table, shared by all layers of a stack."""

    def __init__(self, config: T5Config, *, bidirectional: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.buckets, config.heads))
        self.max_distance, self.bidirectional = config.max_distance, bidirectional

    def forward(self, queries: int, keys: int) -> Tensor:
        """Return float [1, heads, queries, keys] for the last `queries` of `keys` positions."""
        scheme = (len(self.weight), self.max_distance, self.bidirectional)
        bucket = _buckets_of_offsets(1 - keys, queries, *scheme, self.weight.device)
        by_offset = F.embedding(bucket, self.weight).t().contiguous()  # [heads, keys + queries - 1]
        # Window number i holds the offsets that the i-th query from the end sees.
        return by_offset.unfold(1, keys, 1).flip(1).unsqueeze(0)

    def by_distance(self, distances: int) -> Tensor:
        """Return float [heads, distances]: what is added for a key so many tokens before the query, 0 on."""
        return self(1, distances)[0, :, 0].flip(-1)


def _self_attention(config: T5Config, layer: int) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.hidden,
        config.heads,
        layer=layer,
        bias=False,
        dropout=config.dropout,
        head_dim=config.head_dim,
        scale=1.0,  # the initialisation of the queries contains 1 / sqrt(head_dim)
    )


def _feed_forward(config: T5Config) -> FeedForward | GatedFeedForward:
    kind = GatedFeedForward if config.gated else FeedForward
    return kind(config.hidden, config.feed_forward, activation=config.activation, bias=False, dropout=config.dropout)


class EncoderBlock(nn.Module):
    """Self-attention in both directions and feed-forward, each in a residual branch behind its norm."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.attention = _self_attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.feed_forward = _feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor, mask: Mask | None) -> Tensor:
        """Map float [batch, source, hidden] to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, bias=bias))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the source and feed-forward, each in a residual branch behind its norm."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.attention = _self_attention(config, layer)
        self.cross_attention_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.cross_attention = CrossAttention(
            config.hidden, config.heads, bias=False, dropout=config.dropout, head_dim=config.head_dim, scale=1.0
        )
        self.feed_forward_norm = RMSNorm(config.hidden, config.norm_epsilon)
        self.feed_forward = _feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layer = layer

    def forward(
        self, x: Tensor, bias: Tensor, mask: Mask, source: Tensor | BiasedSourceCache, seen_source: Mask | None
    ) -> Tensor:
        """Map float [batch, length, hidden] to the same shape; `source` as in `T5.decode`."""
        cache = None if isinstance(source, Tensor) else source
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache, bias))
        y = self.cross_attention_norm(x)
        if isinstance(source, Tensor):
            y = self.cross_attention(y, *self.cross_attention.project(source), seen_source)
        else:
            y = source.cross_attend(self.layer, self.cross_attention, y)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Encoder(nn.Module):
    """The stack that reads the source."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.relative_bias = RelativeBias(config, bidirectional=True)
        self.blocks = nn.ModuleList(EncoderBlock(config, layer) for layer in range(config.layers))
        self.final_norm = RMSNorm(config.hidden, config.norm_epsilon)

    def forward(self, x: Tensor, mask: Mask | None) -> Tensor:
        """Map embeddings, float [batch, source, hidden], to states of the same shape."""
        bias = self.relative_bias(x.shape[1], x.shape[1])
        for block in self.blocks:
            x = block(x, bias, mask)
        return self.final_norm(x)


class Decoder(nn.Module):
    """The stack that writes the target."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.relative_bias = RelativeBias(config, bidirectional=False)
        layers = config.layers if config.decoder_layers is None else config.decoder_layers
        self.blocks = nn.ModuleList(DecoderBlock(config, layer) for layer in range(layers))
        self.final_norm = RMSNorm(config.hidden, config.norm_epsilon)

    def forward(self, x: Tensor, source: Tensor | BiasedSourceCache, seen_source: Mask | None) -> Tensor:
        """Map embeddings, float [batch, length, hidden], to states of the same shape; `source` as in `T5.decode`."""
        length, mask = x.shape[1], Mask(causal=True)
        if isinstance(source, Tensor):
            bias = self.relative_bias(length, length)
        else:
            bias = source.bias(self.relative_bias, length)
        for block in self.blocks:
            x = block(x, bias, mask, source, seen_source)
        if not isinstance(source, Tensor):
            source.advance(length)
        return self.final_norm(x)


class T5(nn.Module):
    """An encoder-decoder that maps text to text; `model(source, target)` gives the logits of each target token."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocabulary, config.hidden)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.output = None if config.tie_output else Linear(config.hidden, config.padded_vocabulary, bias=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew from normal distributions, as Mesh TensorFlow does (transformer/attention.py)."""
        config = self.config
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=config.hidden**-0.5)
        inner = config.heads * config.head_dim
        width_of_input = {"output": inner, "down": config.feed_forward}  # by the map's name; else hidden
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, RelativeBias):
                nn.init.normal_(module.weight, std=config.hidden**-0.5)
            elif isinstance(module, nn.Linear) and module is not self.output:
                kind = name.rpartition(".")[2]
                std = width_of_input.get(kind, config.hidden) ** -0.5
                # the attention's missing 1 / sqrt(head_dim)
                nn.init.normal_(module.weight, std=std * config.head_dim**-0.5 if kind == "query" else std)

    def forward(self, source: Tensor, target: Tensor, *, source_padding: Tensor | None = None) -> Tensor:
        """Return logits, float [batch, length, vocabulary]: each target token's, given those before it and the source.

        Args:
            source: int64 [batch, source]. target: int64 [batch, length]; what is no target may be negative.
            source_padding: bool [batch, source], True where a source token is real; None: everywhere.
        """
        return self.logits(self.hidden(source, target, source_padding=source_padding))

    def hidden(self, source: Tensor, target: Tensor, *, source_padding: Tensor | None = None) -> Tensor:
        """Return the decoder's states, float [batch, length, hidden]; logits are these times `output_weight`."""
        encoded = self.encode(source, Mask(key_padding=source_padding) if source_padding is not None else None)
        return self.decode(self.shifted(target), encoded, source_padding=source_padding)

    def encode(self, source: Tensor, mask: Mask | None = None) -> Tensor:
        """Return the encoder's states, float [batch, source, hidden], of int64 tokens [batch, source].

        Args:
            mask: what the tokens may see of each other (padding, packed documents); None: everything.
        """
        return self.dropout(self.encoder(self.dropout(self.token_embedding(source)), mask))

    def decode(
        self, tokens: Tensor, source: Tensor | BiasedSourceCache, *, source_padding: Tensor | None = None
    ) -> Tensor:
        """Return the decoder's states, float [batch, length, hidden], ready for `logits`.

        Args:
            tokens: int64 [batch, length], what the decoder reads: the start token and the text so far, or, with a
                cache, what follows what was read before.
            source: what `encode` gave, float [batch, source, hidden], with its `source_padding`; or a cache that holds
                what the decoder needs of it.
        """
        seen_source = source_mask(source_padding)
        x = self.dropout(self.token_embedding(tokens))
        x = self.dropout(self.decoder(x, source, seen_source))
        return x * self.config.hidden**-0.5 if self.config.scale_output else x

    def source_keys_and_values(self, encoded: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what each decoder layer's cross-attention makes of the encoder's states, for a cache."""
        for block in self.decoder.blocks:
            assert isinstance(block, DecoderBlock)
            yield block.cross_attention.project(encoded)

    def shifted(self, target: Tensor) -> Tensor:
        """Return what the decoder reads to predict `target`: the start token and all but the last target token."""
        start = target.new_full((len(target), 1), self.config.start)
        return torch.cat([start, target[:, :-1].clamp_min(0)], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [..., vocabulary], the output projection of states, float [..., hidden]."""
        return linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output projection, float [vocabulary, hidden], without the padding rows."""
        weight = self.token_embedding.weight if self.output is None else self.output.weight
        return weight if len(weight) == self.config.vocabulary else weight[: self.config.vocabulary]


_V1 = T5Config(dropout=0.1)
_V1_1 = T5Config(gated=True, activation="gelu_tanh", tie_output=False, scale_output=False)

PRESETS: dict[str, T5Config] = {
    "tiny": replace(_V1_1, vocabulary=4096, hidden=192, heads=6, head_dim=32, layers=2, feed_forward=384),
    # Raffel et al. 2020, section 3.7.
    "small": _V1,
    "base": replace(_V1, hidden=768, heads=12, layers=12, feed_forward=3072),
    "large": replace(_V1, hidden=1024, heads=16, layers=24, feed_forward=4096),
    "3b": replace(_V1, hidden=1024, heads=32, head_dim=128, layers=24, feed_forward=16384),
    "11b": replace(_V1, hidden=1024, heads=128, head_dim=128, layers=24, feed_forward=65536),
    "1.1-small": replace(_V1_1, hidden=512, heads=6, layers=8, feed_forward=1024),
    "1.1-base": replace(_V1_1, hidden=768, heads=12, layers=12, feed_forward=2048),
    "1.1-large": replace(_V1_1, hidden=1024, heads=16, layers=24, feed_forward=2816),
    "1.1-xl": replace(_V1_1, hidden=2048, heads=32, layers=24, feed_forward=5120),
    "1.1-xxl": replace(_V1_1, hidden=4096, heads=64, layers=24, feed_forward=10240),
}
