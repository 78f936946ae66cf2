"""The same model from torch's own layers, and small corpora."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stemma.data.token_arrays import FileArray
from stemma.data.tokenized_corpus import TokenizedSplit
from stemma.families.lstm.model import LSTM, LSTMConfig

SMALL = LSTMConfig(vocabulary=31, embedding=12, hidden=12, layers=3, inner=17, tie_output=True)


def model_of(config: LSTMConfig = SMALL) -> LSTM:
    """Return a model with weights so large that what was read before matters."""
    torch.manual_seed(0)
    model = LSTM(config)
    for name, parameter in model.named_parameters():
        parameter.data *= 3 if "blocks" in name else 10
    return model


class Plain(nn.Module):
    """`nn.Embedding`, `nn.LSTM` of one layer each, `nn.Linear`, with the weights of ours."""

    def __init__(self, ours: LSTM) -> None:
        super().__init__()
        config = ours.config
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        self.embedding.weight.data = ours.token_embedding.weight.detach().clone()
        self.layers = nn.ModuleList(nn.LSTM(*config.widths(n), batch_first=True) for n in range(config.layers))
        for block, layer in zip(ours.blocks, self.layers, strict=True):
            layer.load_state_dict({f"{name}_l0": value for name, value in block.state_dict().items()})
        self.output = nn.Linear(config.hidden, config.vocabulary, bias=False)
        if config.tie_output:
            self.output.weight = self.embedding.weight
        else:
            assert ours.output is not None
            self.output.weight.data = ours.output.weight.detach().clone()

    def states(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x, _ = layer(x)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.states(tokens))


def nll(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """Return the summed loss of predicting all tokens but the first."""
    row = torch.tensor([list(tokens)])
    return F.cross_entropy(model(row[:, :-1])[0], row[0, 1:], reduction="sum")


def split_of(folder: Path, documents: Sequence[Sequence[int]], separator: int = 0) -> TokenizedSplit:
    """Return a split of these documents, each behind the separator."""
    folder.mkdir(exist_ok=True)
    stream = np.concatenate([[separator, *document] for document in documents])
    starts = np.cumsum([0] + [1 + len(document) for document in documents])[:-1]
    stream.astype("<u4").tofile(folder / "tokens")
    starts.astype("<i8").tofile(folder / "documents")
    places = FileArray([folder / "documents"], "<i8")
    tokens = FileArray([folder / "tokens"], "<u4")
    return TokenizedSplit(tokens, places, places, len(stream), separator, int(stream.max()) + 1, str(documents))
