"""A pretrained model under a new output layer, as each family's reference adds it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stemma.families.bert.model import BERT
from stemma.families.elmo.model import ELMo
from stemma.families.elmo.scalar_mix import ScalarMix
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.inference.states import states_of
from stemma.layers.linear import Linear

_UNITS = 30


class WithHead(nn.Module):
    """Backbone and output layer; `model(batch)` gives the logits of the places that the batch reads.

    A text's vector is BERT's pooled output, in GLM and T5 tanh of a new linear map of the state (as in the classifiers
    of THUDM/GLM and transformers), in GPT the state itself; in LSTM 30 rectified units see the state (Dai and Le 2015,
    section 4.1), of a pair both states, their distance and their product (Conneau et al. 2017, section 3.1); in ELMo
    tanh of a new map of the mean over its words. Single words' states are taken as they are. An ELMo's states are a
    learned mix of its layers.

    Args:
        outputs: numbers for each place. pooled: places stand for whole texts. pair: for two of them, where the
            backbone is an LSTM. dropout: before the output layer.
    """

    def __init__(self, backbone: Any, outputs: int, pooled: bool, pair: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone, self.pooled, self.frozen = backbone, pooled, False
        hidden = backbone.config.hidden
        self.mix = ScalarMix(backbone.config.layers + 1) if isinstance(backbone, ELMo) else None
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

    def freeze(self) -> None:
        """Leave the backbone as it is, and without dropout: its states are features of the task."""
        self.frozen = True
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "WithHead":
        """Set the mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return float [reads, outputs]; the batch as `reading.collate` makes it."""
        return self.logits(self.read(batch))

    def states(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the backbone's states, float [batch, length, hidden]."""
        if self.mix is not None:
            return self.mix(self._layers(batch))
        return states_of(self.backbone, batch["tokens"], batch["lengths"], batch.get("segments"))

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the backbone's states where the batch reads them, float [*read, hidden]; of an ELMo's texts the means
        over each row."""
        places = batch["read"]
        if self.mix is not None:
            states = self.states(batch)  # zeros behind the end of a row
            return states.sum(1) / batch["lengths"].unsqueeze(1) if self.pooled else states.flatten(0, 1)[places]
        states = states_of(self.backbone, batch["tokens"], batch["lengths"], batch.get("segments"), places.flatten())
        return states.view(*places.shape, -1)

    def _layers(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return an ELMo's layers, float [1 + layers, batch, length, hidden]; each word's characters are read once."""
        tokens, lengths = batch["tokens"], batch["lengths"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            types, place = tokens.unique(return_inverse=True)
            somewhere = torch.arange(tokens.numel(), device=tokens.device)
            one = torch.empty_like(types).scatter_(0, place.flatten(), somewhere)  # a place where each word stands
            words = self.backbone.words(batch["characters"].flatten(0, 1)[one])[place]
            return self.backbone.layers(words, lengths)[0]

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
