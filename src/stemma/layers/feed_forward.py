"""The position-wise feed-forward network (Vaswani et al. 2017, section 3.3), plain and gated."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from stemma.layers.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,  # the exact form, with the error function
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class FeedForward(nn.Module):
    """`down(activation(up(x)))`.

    Args:
        hidden: width; inner: width between the two maps; activation: a key of `ACTIVATIONS`; bias: of both maps.
        dropout: before the second map.
    """

    def __init__(
        self, hidden: int, inner: int, *, activation: str = "gelu_tanh", bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = Linear(hidden, inner, bias=bias)
        self.down = Linear(inner, hidden, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., hidden] to the same shape."""
        return self.down(self.dropout(self.activation(self.up(x))))


class GatedFeedForward(nn.Module):
    """`down(activation(gate(x)) * up(x))` (Shazeer 2020, "GLU Variants Improve Transformer"); options as above."""

    def __init__(
        self, hidden: int, inner: int, *, activation: str = "gelu_tanh", bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.gate = Linear(hidden, inner, bias=bias)
        self.up = Linear(hidden, inner, bias=bias)
        self.down = Linear(inner, hidden, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map float [..., hidden] to the same shape."""
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))
