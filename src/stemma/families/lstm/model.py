"""LSTM language models, the ancestors of pretraining.

- Dai and Le 2015, "Semi-supervised Sequence Learning": what an LSTM has learned by predicting texts, or by writing them
  again, is where a classifier begins.
- Merity, Keskar and Socher 2018, "Regularizing and Optimizing LSTM Language Models" (AWD-LSTM): the dropouts, sections
  2 and 4.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.layers.dropout import TypeDropout, VariationalDropout
from stemma.layers.linear import Linear, linear
from stemma.layers.lstm import LayerState, LSTMLayer

State = tuple[LayerState, ...]  # of every layer


@dataclass(frozen=True)
class LSTMConfig:
    """What an LSTM is made of; the defaults are Dai and Le's for IMDB.

    Args:
        vocabulary: number of token ids. embedding: width of their vectors. layers: of the stack.
        hidden: cells of the last layer, and so the width of the states. inner: of the layers below; default: `hidden`.
        tie_output: the output projection is the token embedding.
        embedding_dropout: of whole tokens of the vocabulary. input_dropout: of the embedded tokens, layer_dropout:
            between the layers, output_dropout: of the last layer's states, all three with one mask a sequence.
        weight_dropout: of the hidden-to-hidden matrices.
        forget_bias: what the forget gates' biases begin with.
    """

    vocabulary: int = 86934
    embedding: int = 512
    hidden: int = 1024
    layers: int = 1
    inner: int | None = None
    tie_output: bool = False
    embedding_dropout: float = 0.0
    input_dropout: float = 0.0
    layer_dropout: float = 0.0
    output_dropout: float = 0.0
    weight_dropout: float = 0.0
    forget_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise InputError(f"model: layers is {self.layers}, expected at least 1")
        if self.tie_output and self.embedding != self.hidden:
            raise InputError(
                f"model: with tie_output, embedding ({self.embedding}) and hidden ({self.hidden}) must be the same"
            )
        for name in ("embedding_dropout", "input_dropout", "layer_dropout", "output_dropout", "weight_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"model: {name} is {getattr(self, name)}, expected a probability below 1")

    def widths(self, layer: int) -> tuple[int, int]:
        """Return how many numbers layer number `layer` reads at each step, and how many it gives."""
        inner = self.inner or self.hidden
        return inner if layer else self.embedding, self.hidden if layer == self.layers - 1 else inner


class LSTM(nn.Module):
    """A recurrent language model; `model(tokens)` gives the logits of each next token.

    There is no longest text: the state carries what was read before, however much.
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.embedding)
        self.type_dropout = TypeDropout(config.embedding_dropout)
        self.input_dropout = VariationalDropout(config.input_dropout)
        self.blocks = nn.ModuleList(
            LSTMLayer(*config.widths(layer), weight_dropout=config.weight_dropout, forget_bias=config.forget_bias)
            for layer in range(config.layers)
        )
        self.layer_dropout = VariationalDropout(config.layer_dropout)
        self.output_dropout = VariationalDropout(config.output_dropout)
        self.output = None if config.tie_output else Linear(config.hidden, config.vocabulary, bias=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew: the output projection from U(-0.1, 0.1) (awd-lstm-lm), an embedding that is not
        also that from U(-1, 1) (adversarial_text): with small ones a model takes long to begin to learn."""
        for block in self.blocks:
            block.initialize()  # type: ignore[operator]
        nn.init.uniform_(self.token_embedding.weight, -1.0, 1.0)
        nn.init.uniform_(self.output_weight, -0.1, 0.1)

    def forward(self, tokens: Tensor, *, state: State | None = None, starts: Tensor | None = None) -> Tensor:
        """Return logits, float [batch, length, vocabulary], for int64 tokens [batch, length]; options of `read`."""
        return self.logits(self.output_dropout(self.read(tokens, state, starts)[0]))

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the last layer's states, float [batch, length, hidden]; logits are these times `output_weight`.

        Args:
            tokens: int64 [batch, length]; what stands behind a token makes no difference to its state.
        """
        return self.output_dropout(self.read(tokens)[0])

    def read(self, tokens: Tensor, state: State | None = None, starts: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the last layer's states before dropout, float [batch, length, hidden], and the state to go on from.

        Args:
            tokens: int64 [batch, length].
            state: in which the rows were left, of each layer float [batch, width] twice; default: nothing was read.
            starts: bool [batch, length]: before which tokens a row forgets what it has read.
        """
        x = self.token_embedding(tokens)
        x = self.input_dropout(self.type_dropout(x, tokens, self.config.vocabulary))
        after = []
        for number, block in enumerate(self.blocks):
            if number:
                x = self.layer_dropout(x)
            x, left = block(x, None if state is None else state[number], starts)
            after.append(left)
        return x, tuple(after)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float [..., vocabulary], the output projection of states, float [..., hidden]."""
        return linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output projection, float [vocabulary, hidden]."""
        return self.token_embedding.weight if self.output is None else self.output.weight


_PAPER = LSTMConfig()

PRESETS: dict[str, LSTMConfig] = {
    "tiny": LSTMConfig(vocabulary=4096, embedding=128, hidden=256),
    "imdb": _PAPER,
    # google-research/adversarial_text (Miyato et al. 2017), which goes on from Dai and Le.
    "adversarial": replace(_PAPER, embedding=256, input_dropout=0.5),
    # The defaults of salesforce/awd-lstm-lm, of which WikiText-2 changes one.
    "awd": LSTMConfig(
        vocabulary=33278,
        embedding=400,
        hidden=400,
        layers=3,
        inner=1150,
        tie_output=True,
        embedding_dropout=0.1,
        input_dropout=0.65,
        layer_dropout=0.3,
        output_dropout=0.4,
        weight_dropout=0.5,
    ),
}
