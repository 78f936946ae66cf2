"""The Transformer: an encoder and a decoder made of attention (Vaswani et al. 2017, "Attention Is All You Need")."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.layers.attention import MultiHeadAttention
from stemma.layers.cross_attention import CrossAttention, SourceCache, source_mask
from stemma.layers.feed_forward import FeedForward
from stemma.layers.linear import Linear, linear
from stemma.layers.masks import Mask
from stemma.layers.positions import sinusoids

NORM_EPSILON = 1e-5
LONGER = 50  # tokens that a target may have more than its source (section 6.1)


@dataclass(frozen=True)
class TransformerConfig:
    """What a Transformer is made of; the defaults are the paper's base model (table 3).

    Args:
        vocabulary: number of token ids, of source and target together (section 3.4).
        hidden, heads: of both stacks. layers: of the encoder. decoder_layers: default as many.
        feed_forward, activation: inner width and what follows it; Marian's published models have "silu".
        norm: "post" (section 5.4: after each residual sum) or "pre" (inside each residual branch, and one at the end
            of a stack, as tensor2tensor's later versions have it).
        attention_bias: whether the maps of the attention have biases; the paper's have none, Marian's do.
        output_bias: whether each token's logit has one, as published Marian models do.
        scale_embedding: multiply embeddings by sqrt(hidden) (section 3.4).
        dropout: of each sublayer's result and of the sums of embeddings and positions (section 5.4).
        attention_dropout: of the attention weights. feed_forward_dropout: inside the feed-forward.
        padding: the token that a decoder begins with; sources and targets do not contain it. Its embedding stays zero,
            as in tensor2tensor and Marian.
        vocabulary_multiple: the embedding has rows up to the next multiple, for speed; they are never predicted or
            saved.
    Raises:
        InputError: sizes that do not fit together.
    """

    vocabulary: int = 37000
    hidden: int = 512
    heads: int = 8
    layers: int = 6
    decoder_layers: int | None = None
    feed_forward: int = 2048
    activation: Literal["relu", "silu", "gelu", "gelu_tanh"] = "relu"
    norm: Literal["post", "pre"] = "post"
    attention_bias: bool = False
    output_bias: bool = False
    scale_embedding: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.0
    feed_forward_dropout: float = 0.0
    padding: int = 0
    vocabulary_multiple: int = 64

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.hidden % 2:
            raise InputError(f"model: hidden ({self.hidden}) must be even and a multiple of heads ({self.heads})")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def start(self) -> int:
        """The token that a decoder begins with."""
        return self.padding

    @property
    def padded_vocabulary(self) -> int:
        return -(-self.vocabulary // self.vocabulary_multiple) * self.vocabulary_multiple


class Residual(nn.Module):
    """A sublayer's place: `norm(x + dropout(sublayer(x)))`, or `x + dropout(sublayer(norm(x)))` (section 3.1, 5.4)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden, NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)
        self.norm_first = config.norm == "pre"

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Map float [batch, length, hidden] to the same shape."""
        if self.norm_first:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


def _self_attention(config: TransformerConfig, layer: int) -> MultiHeadAttention:
    return MultiHeadAttention(
        config.hidden, config.heads, layer=layer, bias=config.attention_bias, dropout=config.attention_dropout
    )


def _feed_forward(config: TransformerConfig) -> FeedForward:
    return FeedForward(
        config.hidden, config.feed_forward, activation=config.activation, dropout=config.feed_forward_dropout
    )


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward (section 3.1)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention = _self_attention(config, layer)
        self.attention_residual = Residual(config)
        self.feed_forward = _feed_forward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, x: Tensor, mask: Mask | None) -> Tensor:
        """Map float [batch, source, hidden] to the same shape."""
        x = self.attention_residual(x, lambda y: self.attention(y, mask))
        return self.feed_forward_residual(x, self.feed_forward)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the source and feed-forward (section 3.1)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.attention = _self_attention(config, layer)
        self.attention_residual = Residual(config)
        self.cross_attention = CrossAttention(
            config.hidden, config.heads, bias=config.attention_bias, dropout=config.attention_dropout
        )
        self.cross_attention_residual = Residual(config)
        self.feed_forward = _feed_forward(config)
        self.feed_forward_residual = Residual(config)
        self.layer = layer

    def forward(self, x: Tensor, mask: Mask, source: Tensor | SourceCache, seen_source: Mask | None) -> Tensor:
        """Map float [batch, length, hidden] to the same shape; `source` as in `Transformer.decode`."""

        def attend_to_source(y: Tensor) -> Tensor:
            if isinstance(source, Tensor):
                return self.cross_attention(y, *self.cross_attention.project(source), seen_source)
            return source.cross_attend(self.layer, self.cross_attention, y)

        cache = None if isinstance(source, Tensor) else source
        x = self.attention_residual(x, lambda y: self.attention(y, mask, cache))
        x = self.cross_attention_residual(x, attend_to_source)
        return self.feed_forward_residual(x, self.feed_forward)


class Stack(nn.Module):
    """The encoder's or the decoder's blocks, and, of norms inside the branches, the one at the end."""

    def __init__(self, config: TransformerConfig, blocks: list[EncoderBlock] | list[DecoderBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = nn.LayerNorm(config.hidden, NORM_EPSILON) if config.norm == "pre" else nn.Identity()

    def forward(self, x: Tensor, *seen: object) -> Tensor:
        """Map float [batch, length, hidden] to the same shape; `seen` is what the blocks take besides."""
        for block in self.blocks:
            x = block(x, *seen)
        return self.final_norm(x)


class Transformer(nn.Module):
    """An encoder-decoder; `model(source, target)` gives the logits of each target token.

    One matrix embeds sources and targets and is the output projection (section 3.4).
    """

    length_offset = 5  # of the length penalty in a beam search (section 6.1, Wu et al. 2016, equation 14)

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocabulary, config.hidden, padding_idx=config.padding)
        self.encoder = Stack(config, [EncoderBlock(config, layer) for layer in range(config.layers)])
        decoder_layers = config.layers if config.decoder_layers is None else config.decoder_layers
        self.decoder = Stack(config, [DecoderBlock(config, layer) for layer in range(decoder_layers)])
        self.dropout = nn.Dropout(config.dropout)
        self.output: Linear | None = None  # until the weights are rounded, when it is no longer the embedding's
        self.final_bias = nn.Parameter(torch.empty(1, config.vocabulary)) if config.output_bias else None
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew, as tensor2tensor does: Glorot and Bengio's uniform distribution; embeddings normal
        with a deviation of 1 / sqrt(hidden), so that they are of the positions' size once multiplied."""
        nn.init.normal_(self.token_embedding.weight, std=self.config.hidden**-0.5)
        self.token_embedding.weight[self.config.padding].zero_()
        if self.final_bias is not None:
            nn.init.zeros_(self.final_bias)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, source: Tensor, target: Tensor, *, source_padding: Tensor | None = None) -> Tensor:
        """Return logits, float [batch, length, vocabulary]: each target token's, given those before it and the source.

        Args:
            source: int64 [batch, source]. target: int64 [batch, length]; what is no target may be negative.
            source_padding: bool [batch, source], True where a source token is real; None: everywhere.
        """
        return self.logits(self.hidden(source, target, source_padding=source_padding))

    def hidden(self, source: Tensor, target: Tensor, *, source_padding: Tensor | None = None) -> Tensor:
        """Return the decoder's states, float [batch, length, hidden], ready for `logits`."""
        encoded = self.encode(source, Mask(key_padding=source_padding) if source_padding is not None else None)
        return self.decode(self.shifted(target), encoded, source_padding=source_padding)

    def encode(self, source: Tensor, mask: Mask | None = None) -> Tensor:
        """Return the encoder's states, float [batch, source, hidden], of int64 tokens [batch, source].

        Args:
            mask: what the tokens may see of each other (padding); None: everything.
        """
        return self.encoder(self._embed(source, self._positions(source.shape[1])), mask)

    def decode(self, tokens: Tensor, source: Tensor | SourceCache, *, source_padding: Tensor | None = None) -> Tensor:
        """Return the decoder's states, float [batch, length, hidden], ready for `logits`.

        Args:
            tokens: int64 [batch, length], what the decoder reads: the start token and the text so far, or, with a
                cache, what follows what was read before.
            source: what `encode` gave, float [batch, source, hidden], with its `source_padding`; or a cache that holds
                what the decoder needs of it.
        """
        length = tokens.shape[1]
        if isinstance(source, Tensor):
            positions = self._positions(length)
        else:
            places = source.positions(length)
            positions = self._positions(int(places.max()) + 1)[places]
        x = self.decoder(self._embed(tokens, positions), Mask(causal=True), source, source_mask(source_padding))
        if not isinstance(source, Tensor):
            source.advance(length)
        return x

    def source_keys_and_values(self, encoded: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what each decoder layer's cross-attention makes of the encoder's states, for a cache."""
        for block in self.decoder.blocks:
            assert isinstance(block, DecoderBlock)
            yield block.cross_attention.project(encoded)

    def most_new(self, source: int) -> int:
        """Return how many tokens are written at most about so many of a source (section 6.1)."""
        return source + LONGER

    def shifted(self, target: Tensor) -> Tensor:
        """Return what the decoder reads to predict `target`: the start token and all but the last target token."""
        start = target.new_full((len(target), 1), self.config.start)
        return torch.cat([start, target[:, :-1].clamp_min(0)], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [..., vocabulary], the output projection of states, float [..., hidden]."""
        return linear(hidden, self.output_weight, self.output_bias)

    @property
    def output_weight(self) -> Tensor:
        """The output projection, float [vocabulary, hidden], without the padding rows.

        In training the row of the padding is a constant 0, which no gradient moves.
        """
        weight = self.token_embedding.weight if self.output is None else self.output.weight
        weight = weight if len(weight) == self.config.vocabulary else weight[: self.config.vocabulary]
        if not self.training:
            return weight
        rows = torch.arange(len(weight), device=weight.device)
        return weight.masked_fill((rows == self.config.padding).unsqueeze(1), 0.0)

    @property
    def output_bias(self) -> Tensor | None:
        """What is added to the logits, float [vocabulary]; None: nothing."""
        return None if self.final_bias is None else self.final_bias[0]

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.token_embedding(tokens)
        if self.config.scale_embedding:
            x = x * self.config.hidden**0.5
        return self.dropout(x + positions.to(x.dtype))

    def _positions(self, length: int) -> Tensor:
        """Return float32 [length, hidden]; the table that is kept is of a round length."""
        table = sinusoids(1 << max(length - 1, 63).bit_length(), self.config.hidden, self.token_embedding.weight.device)
        return table[:length]


_BASE = TransformerConfig()

PRESETS: dict[str, TransformerConfig] = {
    "tiny": replace(_BASE, vocabulary=4096, hidden=128, heads=4, layers=2, feed_forward=512),
    # Small enough for 29,000 pairs of sentences.
    "multi30k": replace(_BASE, vocabulary=8192, hidden=256, heads=4, layers=3, feed_forward=1024, dropout=0.3),
    # Vaswani et al. 2017, table 3; the big model had a dropout of 0.1 for English-French.
    "base": _BASE,
    "big": replace(_BASE, hidden=1024, heads=16, feed_forward=4096, dropout=0.3),
}
