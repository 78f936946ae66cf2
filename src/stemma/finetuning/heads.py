"""A pretrained model under a new output layer, as each family's reference adds it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stemma.families.bert.model import BERT
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.inference.states import states_of
from stemma.layers.linear import Linear

_UNITS = 30


class WithHead(nn.Module):
    """Backbone and output layer; `model(batch)` gives the logits of the places that the batch reads.

    A text's vector is BERT's pooled output, in GLM and T5 tanh of a new linear map of the state (as in the classifiers
    of THUDM/GLM and transformers), in GPT the state itself; in LSTM 30 rectified units see the state (Dai and Le 2015,
    section 4.1), of a pair both states, their distance and their product (Conneau et al. 2017, section 3.1). Single
    words' states are taken as they are.

    Args:
        outputs: numbers for each place. pooled: places stand for whole texts. pair: for two of them, where the
            backbone is an LSTM. dropout: before the output layer.
    """

    def __init__(self, backbone: Any, outputs: int, pooled: bool, pair: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone, self.pooled = backbone, pooled
        hidden = backbone.config.hidden
        self.dense: Linear | None = None
        if pooled and isinstance(backbone, LSTM):
            self.dense = Linear(4 * hidden if pair else hidden, _UNITS)
            hidden = _UNITS
        elif pooled and not isinstance(backbone, BERT | GPT):
            self.dense = Linear(hidden, hidden)
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
        those of their sums, of an LSTM of both together."""
        if read.dim() == 3 and isinstance(self.backbone, LSTM):
            first, second = read.unbind(1)
            read = torch.cat([first, second, (first - second).abs(), first * second], 1)
        elif read.dim() == 3:
            read = read.sum(1)
        if self.pooled and isinstance(self.backbone, BERT):
            read = self.backbone.pool(read)
        elif self.dense is not None:
            activation = torch.relu if isinstance(self.backbone, LSTM) else torch.tanh
            read = activation(self.dense(self.dropout(read)))
        return self.output(self.dropout(read))
