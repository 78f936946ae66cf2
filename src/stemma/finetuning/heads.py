"""A pretrained model under a new output layer, as each family's reference adds it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stemma.families.bert.model import BERT
from stemma.families.gpt.model import GPT
from stemma.inference.states import states_of
from stemma.layers.linear import Linear


class WithHead(nn.Module):
    """Backbone and output layer; `model(batch)` gives the logits of the places that the batch reads.

    A text's vector is BERT's pooled output, in GLM and T5 tanh of a new linear map of the state (as in the classifiers
    of THUDM/GLM and transformers), in GPT the state itself. Single words' states are taken as they are.

    Args:
        outputs: numbers for each place. pooled: places stand for whole texts. dropout: before the output layer.
    """

    def __init__(self, backbone: Any, outputs: int, pooled: bool, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone, self.pooled = backbone, pooled
        hidden = backbone.config.hidden
        own = pooled and not isinstance(backbone, BERT | GPT)
        self.dense = Linear(hidden, hidden) if own else None
        self.dropout = nn.Dropout(dropout)
        self.output = Linear(hidden, outputs, bias=not (pooled and isinstance(backbone, GPT)))
        for layer in (self.dense, self.output):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    @property
    def config(self) -> Any:
        """The backbone's."""
        return self.backbone.config

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return float [reads, outputs]; the batch as `reading.collate` makes it."""
        return self.logits(self.read(batch))

    def states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the backbone's states, float [batch, length, hidden]."""
        return states_of(self.backbone, batch["tokens"], batch["lengths"], batch.get("segments"))

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the backbone's states where the batch reads them, float [*read, hidden]."""
        places = batch["read"]
        states = states_of(self.backbone, batch["tokens"], batch["lengths"], batch.get("segments"), places.flatten())
        return states.view(*places.shape, -1)

    def logits(self, read: Tensor) -> Tensor:
        """Return float [reads, outputs] of the states that are read, float [reads, hidden]; of [reads, several, hidden]
        those of their sums."""
        if read.dim() == 3:
            read = read.sum(1)
        if self.pooled and isinstance(self.backbone, BERT):
            read = self.backbone.pool(read)
        elif self.dense is not None:
            read = torch.tanh(self.dense(self.dropout(read)))
        return self.output(self.dropout(read))
