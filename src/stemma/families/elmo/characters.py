"""A word's vector from its characters: convolutions of several widths, highway layers, a projection.

Kim et al. 2015, "Character-Aware Neural Language Models"; as in Peters et al. 2018, section 3.4.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stemma.families.elmo.words import CHARACTERS, PADDING
from stemma.layers.linear import Linear

Activation = Literal["relu", "tanh"]
CHUNK = 1024  # words convolved at once


class Highway(nn.Module):
    """`gate * relu(transform(x)) + (1 - gate) * x`, where the gate multiplies what is new (Srivastava et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform = Linear(width, width)
        self.gate = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., width] to the same shape."""
        return torch.lerp(x, torch.relu(self.transform(x)), torch.sigmoid(self.gate(x)))


class CharacterEncoder(nn.Module):
    """Map the characters of words to vectors.

    Args:
        dimensions: of a character's embedding. filters: (width, number) of each convolution. highways: layers.
        projection: width of the vectors. activation: after the maximum over the places in a word.
    """

    def __init__(
        self,
        dimensions: int,
        filters: Sequence[tuple[int, int]],
        highways: int,
        projection: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, dimensions)
        self.convolutions = nn.ModuleList(nn.Conv1d(dimensions, number, width) for width, number in filters)
        total = sum(number for _, number in filters)
        self.highways = nn.ModuleList(Highway(total) for _ in range(highways))
        self.projection = Linear(total, projection)
        self.activation = torch.relu if activation == "relu" else torch.tanh
        self._widest = max(width for width, _ in filters)
        self._uniform = 0.05 if activation == "relu" else None
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew, as allenai/bilm-tf does."""
        nn.init.uniform_(self.embedding.weight, -1.0, 1.0)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv1d)
            if self._uniform is None:
                _, fan_in, width = convolution.weight.shape
                nn.init.normal_(convolution.weight, std=(width * fan_in) ** -0.5)
            else:
                nn.init.uniform_(convolution.weight, -self._uniform, self._uniform)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        for linear in (*self._highway_layers(), self.projection):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        for highway in self.highways:
            assert isinstance(highway, Highway)
            nn.init.constant_(highway.gate.bias, -2.0)  # at first a highway lets through what it is given

    def _highway_layers(self) -> list[Linear]:
        return [layer for highway in self.highways for layer in highway.children() if isinstance(layer, Linear)]

    def forward(self, characters: Tensor) -> Tensor:
        """Return float [words, projection] for integer characters [words, longest], as `words.spell` gives them."""
        x = torch.cat([self._pooled(part) for part in characters.split(CHUNK)]) if len(characters) else self._none()
        for highway in self.highways:
            x = highway(x)
        return self.projection(x)

    def _pooled(self, characters: Tensor) -> Tensor:
        # Padding takes part in the maximum, but places that see nothing else are all alike: one of them is enough.
        longest = int((characters != PADDING).sum(1).max())
        embedded = self.embedding(characters[:, : longest + self._widest].long()).transpose(
            1, 2
        )  # [words, dimensions, length]
        pooled = torch.cat([convolution(embedded).amax(-1) for convolution in self.convolutions], -1)
        return self.activation(pooled)

    def _none(self) -> Tensor:
        return self.projection.weight.new_zeros(0, self.projection.in_features)
