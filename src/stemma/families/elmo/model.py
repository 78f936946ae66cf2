"""ELMo: a language model in both directions over words read as characters, whose layers are the words' vectors.

- Peters et al. 2018, "Deep contextualized word representations", sections 3.1 to 3.4; code: allenai/bilm-tf.
- Peters, Neumann, Zettlemoyer, Yih 2018, "Dissecting Contextual Word Embeddings": the same with a Transformer or gated
  convolutions instead of the LSTM. The architecture of the context is the only difference.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stemma.errors import InputError
from stemma.families.elmo.characters import Activation, CharacterEncoder
from stemma.families.elmo.gated_convolution import GatedConvolution, GatedConvolutionContext
from stemma.families.elmo.recurrent import RecurrentContext, States
from stemma.families.elmo.transformer import TransformerContext
from stemma.families.elmo.words import spell_boundaries
from stemma.layers.linear import Linear
from stemma.layers.projected_lstm import ProjectedLSTM

CONTEXTS: dict[str, type[nn.Module]] = {
    "lstm": RecurrentContext,
    "transformer": TransformerContext,
    "gated-cnn": GatedConvolutionContext,
}
# By the sum of their numbers the filters of the published models are 2,048.
FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))


@dataclass(frozen=True)
class ELMoConfig:
    """What an ELMo is made of; the defaults are those of the published "original" model of 93.6M parameters.

    Args:
        vocabulary: words with a number; 0: no softmax, vectors only. predicted: the first so many of them are
            predicted, the others as the unknown word (3 or more); None: all.
        characters: width of a character's embedding. filters: (width, number) of the convolutions over a word.
        highways: layers behind them. activation: between. longest_word: characters read of a word, its marks included.
        projection: width of a word's vector, and of each direction's states.
        architecture: what reads the words. layers: of it, in each direction.
        cell, cell_clip, projection_clip, residual: of the LSTM: cells, largest absolute values of cells and projected
            states (None: no limit), residual connections from the second layer on.
        heads, feed_forward: of the Transformer. bottleneck, kernel: of the gated CNN: width inside of a block, and how
            many words its convolution sees.
        dropout: on the input of each layer and on the last output.
    """

    vocabulary: int = 0
    predicted: int | None = None
    characters: int = 16
    filters: tuple[tuple[int, int], ...] = FILTERS
    highways: int = 2
    activation: Activation = "relu"
    longest_word: int = 50
    projection: int = 512
    architecture: Literal["lstm", "transformer", "gated-cnn"] = "lstm"
    layers: int = 2
    cell: int = 4096
    cell_clip: float | None = 3.0
    projection_clip: float | None = 3.0
    residual: bool = True
    heads: int = 8
    feed_forward: int = 2048
    bottleneck: int = 512
    kernel: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "filters", tuple((int(width), int(number)) for width, number in self.filters))
        if not self.filters or max(width for width, _ in self.filters) > self.longest_word:
            raise InputError(f"model: filters {self.filters} do not fit words of {self.longest_word} characters")
        if self.architecture not in CONTEXTS:
            raise InputError(f"model: no architecture '{self.architecture}', expected one of {', '.join(CONTEXTS)}")
        if self.architecture == "transformer" and (self.projection % self.heads or self.projection % 2):
            raise InputError(
                f"model: projection ({self.projection}) must be even and a multiple of heads ({self.heads})"
            )
        if self.predicted is not None and self.predicted < 3:
            raise InputError(f"model: predicted is {self.predicted}, expected 3 (ends and the unknown word) or more")

    @property
    def outputs(self) -> int:
        """Rows of the softmax."""
        return self.vocabulary if self.predicted is None else min(self.predicted, self.vocabulary)

    @property
    def hidden(self) -> int:
        """Width of a word's vector in each layer: both directions."""
        return 2 * self.projection


class ELMo(nn.Module):
    """Characters of words to the layers of a bidirectional language model.

    `model(characters, lengths)` gives float [1 + layers, batch, length, 2 * projection].
    """

    def __init__(self, config: ELMoConfig) -> None:
        super().__init__()
        self.config = config
        self.words = CharacterEncoder(
            config.characters, config.filters, config.highways, config.projection, config.activation
        )
        self.context = CONTEXTS[config.architecture](config)
        self.dropout = nn.Dropout(config.dropout)
        self.output = Linear(config.projection, config.outputs) if config.outputs else None
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew."""
        for module in self.modules():
            if isinstance(module, CharacterEncoder | ProjectedLSTM | GatedConvolution):
                module.initialize()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if self.config.architecture == "transformer":
            for module in self.context.modules():
                if isinstance(module, Linear):
                    nn.init.normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=self.config.projection**-0.5)
            nn.init.zeros_(self.output.bias)

    def drop_softmax(self) -> None:
        """Leave out what only predicts words."""
        self.output, self.config = None, replace(self.config, vocabulary=0, predicted=None)

    def forward(self, characters: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return float [1 + layers, batch, length, 2 * projection]: each word's layers, zeros behind a row's end.

        Args:
            characters: integer [batch, length, longest_word], as `words.spell` gives them, of sentences without marks.
            lengths: int64 [batch]: words of each row; default: all.
        """
        batch, length, longest = characters.shape
        if lengths is None:
            lengths = torch.full((batch,), length, device=characters.device)
        real = torch.arange(length, device=characters.device) < lengths.unsqueeze(1)
        embedded = self.words(characters[real])
        words = embedded.new_zeros(batch, length, self.config.projection)
        words[real] = embedded
        return self.layers(words, lengths)[0]

    def boundaries(self) -> Tensor:
        """Return float [2, projection]: the vectors of the begin and the end of a sentence."""
        device = self.words.projection.weight.device
        return self.words(torch.from_numpy(spell_boundaries(self.config.longest_word)).to(device))

    def layers(
        self, words: Tensor, lengths: Tensor, *, boundaries: Tensor | None = None, states: States | None = None
    ) -> tuple[Tensor, Any]:
        """Return all layers of sentences, and of an LSTM the states after them, for parity with code that carries them.

        The vector of a word does not depend on the other rows, nor (without `states`) on other calls. The first layer
        is the words themselves, in both halves.

        Args:
            words: float [batch, length, projection], the words' vectors. lengths: int64 [batch].
            boundaries: what `boundaries()` gives, where it is at hand.
        Returns:
            float [1 + layers, batch, length, 2 * projection], zeros behind a row's end; states.
        """
        outputs, states = self.directions(words, lengths, boundaries=boundaries, states=states)
        real = torch.arange(words.shape[1], device=words.device) < lengths.unsqueeze(1)
        layers = [torch.cat([words, words], -1)]
        layers += [torch.cat(both, -1)[:, 1:-1] for both in outputs]
        return torch.stack(layers) * real.unsqueeze(-1), states

    def directions(
        self, words: Tensor, lengths: Tensor, *, boundaries: Tensor | None = None, states: States | None = None
    ) -> tuple[list[tuple[Tensor, Tensor]], Any]:
        """Return the states of each layer behind the words, forward and backward, the marks round a sentence included.

        Arguments as of `layers`. Word i is predicted from the last layer's forward state i and its backward state
        i + 2, those of its neighbours.

        Returns:
            for each layer two of float [batch, length + 2, projection]; states.
        """
        begin, end = self.boundaries() if boundaries is None else boundaries
        batch, length, _ = words.shape
        framed = torch.cat([begin.expand(batch, 1, -1), words, words.new_zeros(batch, 1, words.shape[2])], 1)
        framed[torch.arange(batch, device=words.device), lengths + 1] = end
        back = reversal(lengths + 2, length + 2)
        outputs, states = self.context(torch.stack([framed, turned(framed, back)]), lengths + 2, states)
        return [(ahead, turned(behind, back)) for ahead, behind in outputs], states


def reversal(lengths: Tensor, length: int) -> Tensor:
    """Return int64 [batch, length]: the places of each row from its end on; padding stays where it is."""
    places = torch.arange(length, device=lengths.device)
    mirrored = lengths.unsqueeze(1) - 1 - places
    return mirrored.where(mirrored >= 0, places)


def turned(rows: Tensor, places: Tensor) -> Tensor:
    """Return float [batch, length, width] with each row's steps taken from `places`, int64 [batch, length]."""
    return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, rows.shape[2]))


_ORIGINAL = ELMoConfig()
_TINY = ELMoConfig(
    filters=((1, 16), (2, 32), (3, 64), (4, 80), (5, 64)), highways=1, projection=96, cell=384, longest_word=24,
    heads=6, feed_forward=384, bottleneck=96,
)  # fmt: skip

PRESETS: dict[str, ELMoConfig] = {
    "tiny": _TINY,
    "tiny-transformer": replace(_TINY, architecture="transformer", layers=6),
    "tiny-gated-cnn": replace(_TINY, architecture="gated-cnn", layers=6),
    # The published sizes: 13.6M, 28.0M and 93.6M parameters beside the softmax.
    "small": replace(_ORIGINAL, highways=1, projection=128, cell=1024),
    "medium": replace(_ORIGINAL, highways=1, projection=256, cell=2048),
    "original": _ORIGINAL,
    "lstm-4": replace(_ORIGINAL, layers=4),
    "transformer": replace(_ORIGINAL, architecture="transformer", layers=6),
    "gated-cnn": replace(_ORIGINAL, architecture="gated-cnn", layers=16),
}
