"""BERT: a bidirectional Transformer encoder, pretrained on masked tokens and on pairs of sentences.

- Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", section 3.
- Where the paper is silent, the authors' code (google-research/bert, modeling.py).
- Its relatives, of which only little is different: RoBERTa (Liu et al. 2019) with XLM-R and CamemBERT, and DistilBERT
  (Sanh et al. 2019).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.layers.attention import MultiHeadAttention
from stemma.layers.feed_forward import ACTIVATIONS, FeedForward
from stemma.layers.linear import Linear, linear
from stemma.layers.masks import Mask
from stemma.layers.positions import positions_of

Relative = Literal["bert", "roberta", "xlm-roberta", "camembert", "distilbert"]


@dataclass(frozen=True)
class BERTConfig:
    """What a BERT is made of; the defaults are BERT-base's of 110M parameters.

    Args:
        vocabulary: number of token ids. context: longest text in tokens. segments: number of segment ids, 0: no
            segments are told apart.
        layers, hidden, heads: of the stack. feed_forward: inner width, default 4 * hidden.
        activation: "gelu" (error function: what the published weights are run with), "gelu_tanh" (the authors' code;
            outputs differ by about 1e-3) or "relu"; of the feed-forward networks and of the masked tokens' head.
        dropout: after the embeddings and each residual branch. attention_dropout: of the attention weights.
        tie_output: masked tokens are predicted by the token embedding.
        initial_std: of the initial weights. What a block adds at first grows with std * sqrt(hidden): a narrow model
            with the paper's 0.02 spends its first hundreds of updates on little but that.
        relative: whose details and published names it has. The RoBERTas' first position is number 2, behind that of
            padding, which is token 1; DistilBERT's pooled output is made by ReLU.
    """

    vocabulary: int = 30522
    context: int = 512
    segments: int = 2
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    feed_forward: int | None = None
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    norm_epsilon: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    tie_output: bool = True
    initial_std: float = 0.02
    relative: Relative = "bert"

    @property
    def first_position(self) -> int:
        """The row of the position embedding that a text's first token has."""
        return 2 if self.is_roberta else 0

    @property
    def is_roberta(self) -> bool:
        """Whether it is a RoBERTa or one of the two that are like it."""
        return self.relative in ("roberta", "xlm-roberta", "camembert")

    @property
    def separators(self) -> int:
        """How many [SEP] stand between two texts."""
        return 2 if self.is_roberta else 1

    @property
    def second_segment(self) -> int:
        """The segment of the second of two texts; those of a RoBERTa are alike."""
        return 1 if self.relative == "bert" and self.segments > 1 else 0

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise InputError(f"model: hidden ({self.hidden}) must be a multiple of heads ({self.heads})")


class Embeddings(nn.Module):
    """The sum of token, position and segment embedding, normalised (figure 2 of the paper)."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocabulary, config.hidden)
        self.first_position = config.first_position
        self.position = nn.Embedding(config.context + self.first_position, config.hidden)
        self.segment = nn.Embedding(config.segments, config.hidden) if config.segments else None
        self.norm = nn.LayerNorm(config.hidden, config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        """Return float [batch, length, hidden] for int64 [batch, length] each (positions also [length])."""
        x = self.token(tokens) + self.position(positions + self.first_position)
        if self.segment is not None:
            alike = segments is None or self.segment.num_embeddings == 1
            x = x + (self.segment.weight[0] if alike else self.segment(segments))
        return self.dropout(self.norm(x))


class Block(nn.Module):
    """Attention and feed-forward network, each in a residual branch with the norm after the sum."""

    def __init__(self, config: BERTConfig, layer: int) -> None:
        super().__init__()
        hidden, epsilon = config.hidden, config.norm_epsilon
        self.attention = MultiHeadAttention(hidden, config.heads, layer=layer, dropout=config.attention_dropout)
        self.attention_norm = nn.LayerNorm(hidden, epsilon)
        self.feed_forward = FeedForward(hidden, config.feed_forward or 4 * hidden, activation=config.activation)
        self.feed_forward_norm = nn.LayerNorm(hidden, epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Mask | None, places: Tensor | None = None) -> Tensor:
        """Map float [batch, length, hidden] to the same shape, or to [places, hidden] (see `BERT.hidden`)."""
        mixed = self.attention(x, mask, places=places)
        x = x if places is None else x.flatten(0, 1)[places]
        x = self.attention_norm(x + self.dropout(mixed))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Pooler(nn.Module):
    """A text's vector: tanh (DistilBERT: ReLU) of a linear map of its first token's state."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden, config.hidden)
        self.activation = torch.relu if config.relative == "distilbert" else torch.tanh

    def forward(self, first: Tensor) -> Tensor:
        """Map the states of [CLS], float [..., hidden], to the same shape."""
        return self.activation(self.dense(first))


class MaskedHead(nn.Module):
    """What prepares states for the product with the output matrix; `bias` is the output's."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden, config.hidden)
        self.activation = ACTIVATIONS["gelu" if config.is_roberta else config.activation]
        self.norm = nn.LayerNorm(config.hidden, config.norm_epsilon)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))
        self.output = None if config.tie_output else Linear(config.hidden, config.vocabulary, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map float [..., hidden] to the same shape."""
        return self.norm(self.activation(self.dense(hidden)))


class NextSentence(nn.Module):
    """Does the second text follow the first (0), or is it a random one (1)?"""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits, float [..., 2], of pooled outputs, float [..., hidden]."""
        return self.dense(pooled)


class BERT(nn.Module):
    """A bidirectional encoder with BERT's two pretraining heads; `model(tokens)` gives the masked tokens' logits.

    The heads are computed only where they are asked for: `hidden`, then `pool` or `masked_head` on the states that
    matter.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.pooler = Pooler(config)
        self.masked_head = MaskedHead(config)
        self.next_sentence = NextSentence(config)
        self.initialize()

    def initialize(self) -> None:
        """Draw all parameters anew (see `initialize`)."""
        initialize(self, self.config.initial_std)

    def forward(self, tokens: Tensor, segments: Tensor | None = None, mask: Mask | None = None) -> Tensor:
        """Return the logits of what stands at each place, float [batch, length, vocabulary]; arguments of `hidden`."""
        return self.logits(self.hidden(tokens, segments, mask))

    def hidden(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        mask: Mask | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Return the last layer's states, float [batch, length, hidden].

        Args:
            tokens: int64 [batch, length], with [CLS] and [SEP].
            segments: int64 [batch, length], 0 for the first text and 1 for the second; default: all 0.
            mask: what each token may see; default: every other. Positions restart at each document of the mask, so
                that a row may hold many texts and be longer than the context, and do not count padding.
            places: int64 [places], counted through all rows: return the states of these only, float [places, hidden],
                which spares the others most of the last layer.
        Raises:
            InputError: a text is longer than the context.
        """
        x = self._embed(tokens, segments, mask)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        return self.blocks[-1](x, mask, places)

    def hidden_states(self, tokens: Tensor, segments: Tensor | None = None, mask: Mask | None = None) -> list[Tensor]:
        """Return the embeddings and the states of every layer, float [batch, length, hidden] each; see `hidden`."""
        states = [self._embed(tokens, segments, mask)]
        for block in self.blocks:
            states.append(block(states[-1], mask))
        return states

    def pool(self, first: Tensor) -> Tensor:
        """Return the pooled output, float [..., hidden], of the states of [CLS], float [..., hidden]."""
        return self.pooler(first)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [..., vocabulary], the logits of the tokens at the given states, float [..., hidden]."""
        return linear(self.masked_head(hidden), self.masked_weight, self.masked_head.bias)

    @property
    def masked_weight(self) -> Tensor:
        """The output matrix, float [vocabulary, hidden], by which `masked_head`'s result is multiplied."""
        output = self.masked_head.output
        return self.embeddings.token.weight if output is None else output.weight

    def _embed(self, tokens: Tensor, segments: Tensor | None, mask: Mask | None) -> Tensor:
        length, context = tokens.shape[1], self.config.context
        positions = positions_of(mask, length, tokens.device)
        if length > context:
            longest = int(positions.max()) + 1
            if longest > context:
                raise InputError(f"the model reads at most {context} tokens at once, got {longest}")
        return self.embeddings(tokens, positions, segments)


@torch.no_grad()
def initialize(root: nn.Module, std: float) -> None:
    """Draw the parameters of a module anew: N(0, std) cut at two standard deviations, biases 0, norms 1."""
    for module in root.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(bias := getattr(module, "bias", None), Tensor):
            nn.init.zeros_(bias)


_BASE = BERTConfig()

PRESETS: dict[str, BERTConfig] = {
    "tiny": replace(
        _BASE,
        vocabulary=4096,
        context=256,
        layers=4,
        hidden=192,
        heads=6,
        dropout=0.0,
        attention_dropout=0.0,
        initial_std=0.04,  # 0.02 * sqrt(768 / 192)
    ),
    "base": _BASE,
    "large": replace(_BASE, layers=24, hidden=1024, heads=16),
}
