"""The bidirectional gated CNN of "Dissecting contextual word embeddings" (Peters, Neumann, Zettlemoyer, Yih 2018).

Blocks of Dauphin et al. 2016, "Language Modeling with Gated Convolutional Networks", figure 1 and section 3: each ends
in a gated linear unit; a bottleneck narrows the rows for the wide convolution and widens them again.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from stemma.families.elmo.model import ELMoConfig


class GatedConvolution(nn.Module):
    """A causal convolution with normalised weights under a gated linear unit: a * sigmoid(b).

    Each filter is `gain * direction / |direction|` (Salimans and Kingma 2016).
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(2 * outputs, inputs, width))
        self.gain = nn.Parameter(torch.empty(2 * outputs))
        self.bias = nn.Parameter(torch.empty(2 * outputs))
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the weights so that the variance of what goes through is kept (Gehring et al. 2017, section 3.5)."""
        _, inputs, width = self.direction.shape
        nn.init.normal_(self.direction, std=(4.0 / (width * inputs)) ** 0.5)
        self.gain.copy_(self.direction.flatten(1).norm(dim=1))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [batch, inputs, length] to [batch, outputs, length]; a place sees itself and those before."""
        norm = self.direction.flatten(1).norm(dim=1)
        weight = self.direction * (self.gain / norm)[:, None, None]
        return F.glu(F.conv1d(F.pad(x, (weight.shape[2] - 1, 0)), weight, self.bias), 1)


class Block(nn.Module):
    """A bottleneck of three gated convolutions in a residual branch, scaled so that the variance is kept."""

    def __init__(self, config: "ELMoConfig") -> None:
        super().__init__()
        self.narrow = GatedConvolution(config.projection, config.bottleneck, 1)
        self.wide = GatedConvolution(config.bottleneck, config.bottleneck, config.kernel)
        self.widen = GatedConvolution(config.bottleneck, config.projection, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [batch, projection, length] to the same shape."""
        return (x + self.widen(self.wide(self.narrow(self.dropout(x))))) * 0.5**0.5


class GatedConvolutionContext(nn.Module):
    """A stack of blocks for each direction, with weights of its own."""

    def __init__(self, config: "ELMoConfig") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(Block(config) for _ in range(config.layers)) for _ in range(2))

    def forward(self, x: Tensor, lengths: Tensor, states: None = None) -> tuple[list[Tensor], None]:
        """Map float [2, batch, length, projection], the second direction from the end of each row, to that of each
        layer. Padding stands behind what is real, where causality hides it."""
        directions = []
        for row, blocks in zip(x.transpose(2, 3), self.blocks, strict=True):
            outputs = []
            for block in blocks:  # type: ignore[attr-defined]
                row = block(row)
                outputs.append(row.transpose(1, 2))
            directions.append(outputs)
        return [torch.stack(both) for both in zip(*directions, strict=True)], None
