"""Beam search: the likeliest continuations, by keeping the best `beams` unfinished ones at each step."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens, their natural log-probabilities, and its score (see `beam_search`)."""

    tokens: list[int]
    log_probabilities: list[float]
    score: float


class Rows(Protocol):
    """What is searched: `beams` rows a prompt (`inference.decoder.Decoder`)."""

    def read_prompts(self) -> Tensor:
        """Return float32 [rows, vocabulary]: the logits of the first tokens."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append int64 [rows]; return float32 [rows, vocabulary]: the logits of the tokens after them."""

    def keep(self, order: list[int]) -> None:
        """Make row order[i] row i and drop the others."""

    def reorder(self, parents: Tensor) -> None:
        """Make row parents[i] row i."""


@torch.inference_mode()
def beam_search(
    rows: Rows,
    *,
    beams: int,
    limits: list[int],
    end: int | None = None,
    length_penalty: float = 1.0,
    length_offset: int = 0,
    exhaustive: bool = False,
    must_end: bool = False,
) -> list[list[Hypothesis]]:
    """Return each prompt's best hypotheses, at most `beams`, best first.

    The procedure is that of transformers' `generate(num_beams=beams)`: at each step the best 2 * beams continuations
    of all beams are ranked; those among the first `beams` that end become hypotheses, the best `beams` that do not end
    go on. A prompt's search ends when it has `beams` hypotheses that its beams can no longer beat.

    Args:
        limits: of each prompt, most new tokens; a continuation of that length is finished.
        end: the token that finishes a continuation and is its last.
        length_penalty, length_offset: a score is a sum of log-probabilities, divided by length ** length_penalty, the
            end counted: above 0 favours long ones. The length is (offset + tokens) / (offset + 1), with an offset of 0
            the number of tokens; Wu et al. 2016 (equation 14) have an offset of 5.
        exhaustive: judge what a beam may still reach by the most favourable length, which is certain (transformers'
            `early_stopping="never"`), and not by its present one, which ends sooner (transformers' default).
        must_end: the last token within the limit can only be `end`, so that every score holds the end's probability.
    """
    logits = rows.read_prompts()
    most = torch.tensor(limits, device=logits.device)
    search = _Search(beams, most, end, length_penalty, length_offset, exhaustive, must_end)
    while True:
        tokens, parents, alive = search.extend(logits)
        if not alive.any():
            return search.found
        if not alive.all():
            kept = alive.repeat_interleave(beams).nonzero().squeeze(1)
            rows.keep(kept.tolist())
            tokens, parents = search.drop(alive, tokens, parents)
        first = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * beams
        rows.reorder((parents + first).flatten())
        logits = rows.step(tokens.flatten())


class _Search:
    """The beams of the prompts still searched, and the hypotheses of all.

    `scores` [prompts, beams] are sums of log-probabilities; `history` and `steps` [prompts, beams, longest] hold the
    tokens and their log-probabilities.
    """

    def __init__(
        self,
        beams: int,
        limits: Tensor,
        end: int | None,
        length_penalty: float,
        length_offset: int,
        exhaustive: bool,
        must_end: bool,
    ) -> None:
        self.beams, self.limits, self.end = beams, limits, end
        self.length_penalty, self.length_offset = length_penalty, length_offset
        self.exhaustive, self.must_end = exhaustive, must_end
        self.numbers = list(range(len(limits)))
        self.found: list[list[Hypothesis]] = [[] for _ in limits]
        self.length = 0
        # All beams of a prompt begin equal; only the first may be continued, or the same text would fill them all.
        self.scores = limits.new_full((len(limits), beams), -torch.inf, dtype=torch.float32)
        self.scores[:, 0] = 0.0
        self.history = limits.new_zeros(len(limits), beams, int(limits.max()))
        self.steps = self.history.float()

    def extend(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the beams' next tokens and the beams they continue, [prompts, beams] each, and bool [prompts]: who
        goes on."""
        vocabulary = logits.shape[-1]
        log_probabilities = logits.log_softmax(-1).view(-1, self.beams, vocabulary)
        if self.must_end:
            others = torch.arange(vocabulary, device=logits.device) != self.end
            last = (self.length + 1 >= self.limits).view(-1, 1, 1)
            log_probabilities = log_probabilities.masked_fill(others & last, -torch.inf)
        totals = (self.scores.unsqueeze(-1) + log_probabilities).flatten(1)
        best, index = totals.topk(2 * self.beams, dim=1)
        parents, tokens = index // vocabulary, index % vocabulary
        history = self.history.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.history.shape[-1]))
        steps = self.steps.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.steps.shape[-1]))
        history[:, :, self.length] = tokens
        steps[:, :, self.length] = log_probabilities.flatten(1).gather(1, index)
        self.length += 1
        ended = (self.length >= self.limits).unsqueeze(1).expand_as(tokens)
        if self.end is not None:
            ended = ended | (tokens == self.end)
        self._collect(ended[:, : self.beams] & best[:, : self.beams].isfinite(), best, history, steps)
        self.scores, chosen = best.masked_fill(ended, -torch.inf).topk(self.beams, dim=1)
        width = chosen.unsqueeze(-1).expand(-1, -1, history.shape[-1])
        self.history, self.steps = history.gather(1, width), steps.gather(1, width)
        alive = [self._can_improve(place, score) for place, score in enumerate(self.scores[:, 0].tolist())]
        return tokens.gather(1, chosen), parents.gather(1, chosen), torch.tensor(alive, device=logits.device)

    def drop(self, alive: Tensor, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Forget the prompts that are done; return what is left of the next tokens and of the beams they continue."""
        self.scores, self.limits = self.scores[alive], self.limits[alive]
        self.history, self.steps = self.history[alive], self.steps[alive]
        self.numbers = [number for number, goes_on in zip(self.numbers, alive.tolist(), strict=True) if goes_on]
        return tokens[alive], parents[alive]

    def _collect(self, ended: Tensor, best: Tensor, history: Tensor, steps: Tensor) -> None:
        for place, rank in ended.nonzero().tolist():
            score = self._score(best[place, rank].item(), self.length)
            text, log_probabilities = history[place, rank, : self.length], steps[place, rank, : self.length]
            found = self.found[self.numbers[place]]
            found.append(Hypothesis(text.tolist(), log_probabilities.tolist(), score))
            found.sort(key=lambda hypothesis: -hypothesis.score)
            del found[self.beams :]

    def _can_improve(self, place: int, best: float) -> bool:
        """Whether a prompt's best beam, with sum of log-probabilities `best`, may still become a hypothesis."""
        found = self.found[self.numbers[place]]
        if best == -torch.inf or len(found) < self.beams:
            return best != -torch.inf
        favourable = self.exhaustive and self.length_penalty > 0
        length = int(self.limits[place]) if favourable else self.length
        return self._score(best, length) > found[-1].score

    def _score(self, total: float, tokens: int) -> float:
        offset = self.length_offset
        return total / ((offset + tokens) / (offset + 1)) ** self.length_penalty
