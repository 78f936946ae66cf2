"""`Decoder` for recurrent models: their cache is the state, equally large after a text of any length."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from stemma.families.lstm.model import State
from stemma.inference.decoder import Decoder


class RecurrentDecoder(Decoder):
    """The texts in hand of a model such as `LSTM`."""

    state: State

    def new_cache(self, rows: int, capacity: int) -> None:  # type: ignore[override]
        """There is none beside the state."""

    @torch.inference_mode()
    def read_prompts(self) -> Tensor:
        """Read each prompt once, those of a length together; return float32 [rows, vocabulary], the logits of the next
        tokens."""
        order = sorted(range(len(self.prompts)), key=lambda number: len(self.prompts[number]))
        logits, states = [], []
        for _, numbers in groupby(order, key=lambda number: len(self.prompts[number])):
            tokens = torch.tensor([list(self.prompts[number]) for number in numbers], device=self.device)
            hidden, state = self.model.read(tokens)
            logits.append(self.model.logits(hidden[:, -1]).float())
            states.append(state)
        self.state = tuple(
            (torch.cat([hidden for hidden, _ in layer]), torch.cat([cells for _, cells in layer]))
            for layer in zip(*states, strict=True)
        )
        places = torch.tensor(order, device=self.device).argsort()
        rows = places.repeat_interleave(torch.tensor(self.copies, device=self.device))
        self.reorder(rows)
        return torch.cat(logits)[rows]

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Read the next token of each row, int64 [rows]; return float32 [rows, vocabulary], the logits of the next."""
        hidden, self.state = self.model.read(tokens.unsqueeze(1), self.state)
        return self.model.logits(hidden.squeeze(1)).float()

    @torch.inference_mode()
    def keep(self, order: Sequence[int]) -> None:
        """Make row order[i] row i and drop the others."""
        self.reorder(torch.tensor(order, device=self.device))

    @torch.inference_mode()
    def reorder(self, parents: Tensor) -> None:
        """Make row parents[i] row i."""
        self.state = tuple((hidden[parents], cells[parents]) for hidden, cells in self.state)
