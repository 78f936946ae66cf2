"""Writing with a masked language model: at each step a [MASK] stands where the next token will (Dong et al. 2019).

A step reads the token just accepted and a [MASK] behind it, and predicts at the [MASK]; only the token stays cached.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.bert.tokens import BERTTokens
from stemma.families.unilm.model import SEGMENTS, Kind, read
from stemma.inference.beam import beam_search
from stemma.inference.cache import DenseCache
from stemma.inference.infilling import PackedContexts, rows_to_keep
from stemma.inference.sampling import Sampling, log_probabilities_of, uniforms


class MaskedDecoder:
    """Rows of a cache in which texts are written from left to right (`inference.beam.Rows`).

    Args:
        model: a UniLM. prompts: token ids with their special tokens: `[CLS] source [SEP]`, or of the kind
            "left_to_right" just [CLS]. copies: rows a prompt. new_tokens: most tokens that will be written a row.
    """

    def __init__(
        self,
        model: Any,
        ids: BERTTokens,
        prompts: Sequence[Sequence[int]],
        *,
        new_tokens: int,
        kind: Kind = "seq2seq",
        copies: int = 1,
        segment_ids: bool = True,
    ) -> None:
        config, weight = model.config, model.masked_weight
        self.model, self.prompts, self.copies, self.mask, self.device = model, prompts, copies, ids.mask, weight.device
        self.segments = SEGMENTS[kind] if segment_ids else (0, 0)
        self.cache = DenseCache(
            layers=config.layers,
            heads=config.heads,
            head_dim=config.hidden // config.heads,
            rows=len(prompts) * copies,
            capacity=max(map(len, prompts)) + new_tokens + 1,  # and the [MASK]
            dtype=weight.dtype,
            device=weight.device,
        )

    @torch.inference_mode()
    def read_prompts(self) -> Tensor:
        """Read the prompts, each of which sees all of itself; return float32 [rows, vocabulary]: the first tokens'
        logits."""
        self.cache.begin([len(prompt) for prompt in self.prompts for _ in range(self.copies)])
        packed = PackedContexts(self.cache, range(0, len(self.prompts) * self.copies, self.copies))
        tokens = torch.tensor([[token for prompt in self.prompts for token in prompt]], device=self.device)
        places = torch.cat([torch.arange(len(prompt), device=self.device) for prompt in self.prompts]).unsqueeze(0)
        read(self.model, tokens, places, torch.full_like(tokens, self.segments[0]), packed)
        self.cache.spread([self.copies] * len(self.prompts))
        return self._predict(torch.zeros(self.cache.rows, 0, dtype=torch.int64, device=self.device))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Append int64 [rows]; return float32 [rows, vocabulary]: the logits of the tokens after them."""
        return self._predict(tokens.unsqueeze(1))

    def keep(self, order: Sequence[int]) -> None:
        """Make row order[i] row i and drop the others."""
        self.cache.keep(order)

    def reorder(self, parents: Tensor) -> None:
        """Make row parents[i], of the same prompt, row i."""
        self.cache.reorder(parents)

    def _predict(self, accepted: Tensor) -> Tensor:
        count = accepted.shape[1]
        tokens = torch.cat([accepted, accepted.new_full((len(accepted), 1), self.mask)], dim=1)
        positions = self.cache.positions(count + 1).expand(len(tokens), -1)
        segments = torch.full_like(tokens, self.segments[1])
        hidden = read(self.model, tokens, positions, segments, self.cache, advance=count)
        return self.model.logits(hidden[:, -1]).float()


@dataclass
class Written:
    """What was written for one prompt.

    Args:
        tokens: without the [SEP] that ended them. log_probabilities: of each token, and of the [SEP].
        ended: whether the model ended it; else it is of the greatest length.
    """

    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    ended: bool = False


@torch.inference_mode()
def write(
    model: Any,
    ids: BERTTokens,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    kind: Kind = "seq2seq",
    sampling: Sampling | None = None,
    seed: int = 0,
    beams: int = 1,
    length_penalty: float = 0.0,
) -> list[Written]:
    """Write a text for each prompt (token ids with their special tokens) until [SEP].

    Args:
        limit: most tokens of a text. sampling: default the likeliest token each time.
        beams: more than 1 searches the likeliest text, with `length_penalty` (see `inference.beam`).
    Raises:
        InputError: a prompt and its text do not fit into the model's context.
    """
    longest = max(map(len, prompts)) + limit + 1
    if longest > model.config.context:
        raise InputError(f"{longest} tokens of prompt and text, the model reads at most {model.config.context}")
    decoder = MaskedDecoder(model, ids, prompts, new_tokens=limit, kind=kind, copies=beams)
    if beams > 1:
        found = beam_search(
            decoder, beams=beams, limits=[limit] * len(prompts), end=ids.last, length_penalty=length_penalty
        )
        return [_written(best[0].tokens, best[0].log_probabilities, ids.last) for best in found]
    sampling = sampling or Sampling(temperature=0)
    draws = torch.tensor([[]] * len(prompts), dtype=torch.float64)
    if not sampling.greedy:
        draws = torch.stack([torch.from_numpy(uniforms(seed, 0, prompt, limit)) for prompt in prompts])
    done = [Written() for _ in prompts]
    rows = list(range(len(prompts)))
    logits = decoder.read_prompts()
    for step in range(limit):
        uniform = None if sampling.greedy else draws[rows, step].to(logits.device)
        chosen = sampling.choose(logits, uniform)
        scores = log_probabilities_of(chosen, logits).tolist()
        for row, token, score in zip(rows, chosen.tolist(), scores, strict=True):
            done[row].log_probabilities.append(score)
            done[row].ended = token == ids.last
            if not done[row].ended:
                done[row].tokens.append(token)
        order = rows_to_keep([done[row].ended for row in rows])
        if not order or step + 1 == limit:
            break
        if len(order) < len(rows):
            decoder.keep(order)
            rows, chosen = [rows[index] for index in order], chosen[order]
        logits = decoder.step(chosen)
    return done


@torch.inference_mode()
def score_left_to_right(
    model: Any, ids: BERTTokens, texts: Sequence[Sequence[int]], *, segment_ids: bool = True
) -> list[list[float]]:
    """Return the log-probability of each token of each text (ids without special tokens) given those before it.

    By the chain rule their sum is a true likelihood of the text. It takes a forward pass of two new positions a token.

    Raises:
        InputError: a text does not fit into the model's context, or is empty.
    """
    longest = max(map(len, texts))
    if longest + 1 > model.config.context or not all(texts):
        raise InputError(f"texts of up to {longest} tokens, expected 1 to {model.config.context - 1}")
    decoder = MaskedDecoder(
        model, ids, [[ids.first]] * len(texts), new_tokens=longest, kind="left_to_right", segment_ids=segment_ids
    )
    scores: list[list[float]] = [[] for _ in texts]
    rows = list(range(len(texts)))
    logits = decoder.read_prompts()
    for step in range(longest):
        tokens = torch.tensor([texts[row][step] for row in rows], device=logits.device)
        for row, score in zip(rows, log_probabilities_of(tokens, logits).tolist(), strict=True):
            scores[row].append(score)
        order = rows_to_keep([len(texts[row]) == step + 1 for row in rows])
        if not order:
            break
        if len(order) < len(rows):
            decoder.keep(order)
            rows, tokens = [rows[index] for index in order], tokens[order]
        logits = decoder.step(tokens)
    return scores


def _written(tokens: list[int], log_probabilities: list[float], end: int) -> Written:
    ended = bool(tokens) and tokens[-1] == end
    return Written(tokens[:-1] if ended else tokens, log_probabilities, ended)
