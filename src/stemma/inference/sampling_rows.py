"""Choosing the next tokens of texts that each have their own parameters, all at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stemma.inference.sampling import Sampling, draw, keep_min_p, keep_top_k, keep_top_p


@dataclass(frozen=True)
class Preferences:
    """What changes the logits of a request beside its `Sampling`.

    Args:
        presence_penalty, frequency_penalty: taken off the logit of each token that was generated: once, and for each
            time. bias: added to the logits of tokens by their ids.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def none(self) -> bool:
        """Whether nothing is changed."""
        return not (self.presence_penalty or self.frequency_penalty or self.bias)


@dataclass
class Row:
    """What the choice of one text's next token depends on.

    Args:
        sampling, preferences: the request's. uniform: its draw, in [0, 1).
        prompt, generated: how often each token is in them. allowed: bool [vocabulary], None: every token.
    """

    sampling: Sampling
    preferences: Preferences
    uniform: float
    prompt: Mapping[int, int]
    generated: Mapping[int, int]
    allowed: np.ndarray | None = None


def choose(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the next tokens, int64 [rows], of logits, float32 [rows, vocabulary], which are left as they are.

    The order is: bias, presence and frequency penalty, what a constraint allows, then as in `Sampling`.
    """
    changed = _preferred(logits, rows)
    drawn = [number for number, row in enumerate(rows) if not row.sampling.greedy]
    if not drawn:
        return changed.argmax(-1)
    device = logits.device
    uniform = torch.tensor([rows[number].uniform for number in drawn], dtype=torch.float64, device=device)
    if len(drawn) == len(rows):
        return draw(_filtered(changed, [row.sampling for row in rows]), uniform)
    chosen = changed.argmax(-1)
    chosen[drawn] = draw(_filtered(changed[drawn], [rows[number].sampling for number in drawn]), uniform)
    return chosen


def _preferred(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    places: list[tuple[int, int]] = []
    added: list[float] = []
    for number, row in enumerate(rows):
        wishes = row.preferences
        for token, bias in wishes.bias.items():
            places.append((number, token))
            added.append(bias)
        if wishes.presence_penalty or wishes.frequency_penalty:
            for token, count in row.generated.items():
                places.append((number, token))
                added.append(-wishes.presence_penalty - wishes.frequency_penalty * count)
    if places:
        where = torch.tensor(places, device=logits.device).T
        logits = logits.index_put((where[0], where[1]), torch.tensor(added, device=logits.device), accumulate=True)
    limited = [number for number, row in enumerate(rows) if row.allowed is not None]
    if limited:
        allowed = torch.from_numpy(np.stack([rows[number].allowed for number in limited]))  # type: ignore[misc]
        logits = logits if places else logits.clone()
        logits[limited] = logits[limited].masked_fill(~allowed.to(logits.device), -torch.inf)
    repeated = [
        (number, token, row.sampling.repetition_penalty)
        for number, row in enumerate(rows)
        if row.sampling.repetition_penalty != 1
        for token in {**row.prompt, **row.generated}
    ]
    if repeated:
        numbers, tokens, penalties = zip(*repeated, strict=True)
        index = (torch.tensor(numbers, device=logits.device), torch.tensor(tokens, device=logits.device))
        values, penalty = logits[index], torch.tensor(penalties, device=logits.device)
        logits = logits.index_put(index, torch.where(values < 0, values * penalty, values / penalty))
    return logits


def _filtered(logits: Tensor, rows: Sequence[Sampling]) -> Tensor:
    """Return the logits to draw from. A filter that sorts sees the rows that ask for it alone: with a number that keeps
    every token it would sort the whole vocabulary."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device).unsqueeze(1)

    if any(row.temperature != 1 for row in rows):
        logits = logits / column([row.temperature for row in rows])
    limits = {number: min(row.top_k, logits.shape[-1]) for number, row in enumerate(rows) if row.top_k is not None}
    if limits:
        kept = keep_top_k(logits[[*limits]], column([*limits.values()], torch.int64))
        logits = logits.index_copy(0, torch.tensor([*limits], device=logits.device), kept)
    shares = {number: row.top_p for number, row in enumerate(rows) if row.top_p is not None and row.top_p < 1}
    if shares:
        kept = keep_top_p(logits[[*shares]], column([*shares.values()]))
        logits = logits.index_copy(0, torch.tensor([*shares], device=logits.device), kept)
    if any(row.min_p is not None for row in rows):
        logits = keep_min_p(logits, column([row.min_p or 0.0 for row in rows]))
    return logits
