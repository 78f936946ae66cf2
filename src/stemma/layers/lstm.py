"""One layer of long short-term memory (Hochreiter and Schmidhuber 1997), on the fused kernel that the device has."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of one layer: what it gave last, and its cells, float [batch, hidden] both.
LayerState = tuple[Tensor, Tensor]


class LSTMLayer(nn.Module):
    """`torch.nn.LSTM` of one layer, with its parameters (gates in the order input, forget, cell, output), and with
    dropout of the hidden-to-hidden matrix and states that are forgotten inside of a sequence.

    Args:
        inputs, hidden: widths.
        weight_dropout: of the hidden-to-hidden matrix, one mask for all steps (Merity et al. 2018, section 2).
        forget_bias: what the forget gate's bias begins with (Jozefowicz et al. 2015: 1).
    """

    def __init__(self, inputs: int, hidden: int, *, weight_dropout: float = 0.0, forget_bias: float = 0.0) -> None:
        super().__init__()
        self.hidden, self.weight_dropout, self.forget_bias = hidden, weight_dropout, forget_bias
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden))
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all parameters anew: U(-1 / sqrt(hidden), 1 / sqrt(hidden)), as torch does."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.hidden**-0.5), self.hidden**-0.5)
        if self.forget_bias:  # in one of the two biases: they are added
            for bias, value in ((self.bias_ih, self.forget_bias), (self.bias_hh, 0.0)):
                nn.init.constant_(bias[self.hidden : 2 * self.hidden], value)

    def forward(
        self, x: Tensor, state: LayerState | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """Return the outputs, float [batch, length, hidden], and the state after the last step.

        Args:
            x: float [batch, length, inputs].
            state: before the first step; default: zeros.
            starts: bool [batch, length]: before which steps a row's state is forgotten.
        """
        if state is None:
            zeros = x.new_zeros(len(x), self.hidden)
            state = zeros, zeros
        weight_hh = F.dropout(self.weight_hh, self.weight_dropout, self.training)
        weights = (self.weight_ih, weight_hh, self.bias_ih, self.bias_hh)
        if starts is None:
            return _run(x, state, weights)
        # The kernel knows no such steps: it runs from one to the next, whichever row it is of.
        edges = sorted({0, *starts.any(0).nonzero().flatten().tolist(), x.shape[1]})
        outputs = []
        for begin, end in pairwise(edges):
            kept = ~starts[:, begin, None]
            output, state = _run(x[:, begin:end], (state[0] * kept, state[1] * kept), weights)
            outputs.append(output)
        return torch.cat(outputs, 1), state


def _run(x: Tensor, state: LayerState, weights: tuple[Tensor, ...]) -> tuple[Tensor, LayerState]:
    hidden, cells = (part.unsqueeze(0) for part in state)
    # Has biases, one layer, no dropout, whether there will be a backward pass, one direction, batch first.
    output, hidden, cells = torch.lstm(x, (hidden, cells), weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return output, (hidden.squeeze(0), cells.squeeze(0))
