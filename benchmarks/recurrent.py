"""Speed of the recurrent families beside plain PyTorch doing the same work: tokens/s of one whole update.

    python benchmarks/recurrent.py [--quick] [--layers 2] [--hidden 512] [--vocabulary 8192] [--rounds 4]

LSTM language model: the peer is `nn.Embedding`, `nn.LSTM` and `nn.Linear` with `F.cross_entropy` over all logits, its
state carried from window to window and detached, as in PyTorch's word_language_model example. Both arms have the same
sizes, start from the same weights, read the same rows of a corpus, clip and make the same fused AdamW updates; float32.
That they compute the same is checked before, by the losses of the first updates. "awd" adds AWD-LSTM's dropouts to
both, in the peer as its authors' code does it: the recurrent matrix as a dropped copy.

One update of each arm in turn; medians.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import interleave, machine, median, table
from stemma.data.streams import Streams
from stemma.data.token_arrays import FileArray
from stemma.families.lstm.model import LSTM, LSTMConfig
from stemma.families.lstm.objective import CarriedCausal
from stemma.training.batches import Batches, Plan
from stemma.training.hardware import prepare_processor
from stemma.training.optimizer import adamw

DROPOUTS = {"input_dropout": 0.65, "layer_dropout": 0.3, "output_dropout": 0.4, "weight_dropout": 0.5}


class Peer(nn.Module):
    """A language model of torch's own layers, with the weights of ours."""

    def __init__(self, ours: LSTM) -> None:
        super().__init__()
        config = self.config = ours.config
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        self.output = nn.Linear(config.hidden, config.vocabulary, bias=False)
        self.embedding.weight.data = ours.token_embedding.weight.detach().clone()
        self.output.weight = self.embedding.weight
        self.lstm = nn.LSTM(config.embedding, config.hidden, config.layers, batch_first=True)
        for number, block in enumerate(ours.blocks):
            for name, value in block.named_parameters():
                self.lstm.get_parameter(f"{name}_l{number}").data = value.detach().clone()
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of the next rows."""
        x = self.dropped(self.embedding(tokens), self.config.input_dropout)
        if self.config.weight_dropout:
            x, self.state = self.layer_by_layer(x)
        else:
            x, self.state = self.lstm(x, self.state)
        self.state = tuple(part.detach() for part in self.state)
        logits = self.output(self.dropped(x, self.config.output_dropout))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def layer_by_layer(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        lasts = []
        for number in range(self.config.layers):
            if number:
                x = self.dropped(x, self.config.layer_dropout)
            weights = [self.lstm.get_parameter(f"{name}_l{number}") for name in ("weight_ih", "weight_hh")]
            weights += [self.lstm.get_parameter(f"{name}_l{number}") for name in ("bias_ih", "bias_hh")]
            weights[1] = F.dropout(weights[1], self.config.weight_dropout)
            zeros = x.new_zeros(1, len(x), self.config.hidden)
            state = (zeros, zeros) if self.state is None else tuple(part[number, None] for part in self.state)
            x, *last = torch.lstm(x, state, weights, True, 1, 0.0, True, False, True)
            lasts.append(last)
        hidden, cells = (torch.cat(parts) for parts in zip(*lasts, strict=True))
        return x, (hidden, cells)

    def dropped(self, x: Tensor, p: float) -> Tensor:
        """Drop with one mask a row, as awd-lstm-lm's LockedDropout."""
        if not p:
            return x
        return x * x.new_empty(len(x), 1, x.shape[2]).bernoulli_(1 - p).div_(1 - p)


def windows(corpus: FileArray, options: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of our objective, update after update."""
    split: Any = SimpleNamespace(tokens=corpus, fingerprint="")
    sequences = Streams(split, options.length, options.batch, seed=1)
    batches = Batches(sequences, CarriedCausal(0), Plan(options.batch), seed=1)
    step = 0
    while True:
        yield batches.micro_batches(step)[0]
        step += 1


def update(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], float]:
    """Return what makes one update and gives its loss."""
    model.train()
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0.0)

    def step() -> float:
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def arms_of(corpus: FileArray, options: argparse.Namespace, **dropouts: float) -> dict[str, Callable[[], float]]:
    torch.manual_seed(0)
    hidden = options.hidden
    ours = LSTM(LSTMConfig(options.vocabulary, hidden, hidden, options.layers, tie_output=True, **dropouts))
    peer, objective = Peer(ours), CarriedCausal(0)
    mine, theirs = windows(corpus, options), windows(corpus, options)

    def peer_loss() -> Tensor:
        batch = next(theirs)
        return peer(batch["tokens"], batch["targets"])

    return {
        "stemma": update(ours, lambda: objective.loss(ours, next(mine))[0]),
        "peer": update(peer, peer_loss),
    }


def measure(name: str, corpus: FileArray, options: argparse.Namespace, **dropouts: float) -> list[str]:
    arms = arms_of(corpus, options, **dropouts)
    if not dropouts:
        for _ in range(3):
            ours, theirs = (arm() for arm in arms.values())
            assert abs(ours - theirs) < 1e-3, f"the arms compute different losses: {ours}, {theirs}"
    tokens = options.batch * options.length
    rates = {arm: tokens / median(times) for arm, times in interleave(arms, options.rounds).items()}
    return [name, f"{rates['stemma']:,.0f}", f"{rates['peer']:,.0f}", f"{rates['stemma'] / rates['peer']:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one layer of 256, three rounds")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.hidden, options.rounds = 1, 256, 3
    prepare_processor()
    sizes = f"{options.layers} layers of {options.hidden}, {options.vocabulary:,} tokens of vocabulary"
    print(f"{machine()}\nLSTM: {sizes}, {options.batch} rows of {options.length} tokens an update\n")
    rows = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokens"
        np.random.default_rng(0).integers(options.vocabulary, size=2**20).astype("<u2").tofile(path)
        corpus = FileArray([path], "<u2")
        rows.append(measure("LSTM", corpus, options))
        rows.append(measure("LSTM, awd", corpus, options, **DROPOUTS))
    heads = ["training", "stemma, tokens/s", "plain PyTorch, tokens/s", "times the peer"]
    print(f"{table(heads, rows)}\n\npython {' '.join(sys.argv)}")


if __name__ == "__main__":
    main()
