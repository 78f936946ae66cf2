"""Dropout for recurrent networks: of what is dropped at one step, all steps of a sequence go without."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VariationalDropout(nn.Module):
    """Dropout with one mask a sequence, constant in time (Gal and Ghahramani 2016, section 4.1)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Map float [batch, length, width] to the same shape, with the same numbers of the width dropped throughout."""
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(torch.ones_like(x[:, :1]), self.p)


class TypeDropout(nn.Module):
    """Dropout of whole rows of an embedding, that is of all occurrences of a token (Gal and Ghahramani 2016, 4.2)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, embedded: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
        """Map float [batch, length, width], the embeddings of int64 [batch, length], to the same shape."""
        if not self.training or self.p == 0:
            return embedded
        kept = F.dropout(embedded.new_ones(vocabulary), self.p)
        return embedded * kept[tokens].unsqueeze(-1)
