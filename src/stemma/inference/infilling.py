"""Filling blanks with a GLM: several in one text, in order, of unknown lengths (Du et al. 2022, section 2.1).

    infill(model, tokenizer, "The [MASK] sat on the [MASK].")[0].text
    continue_text(model, tokenizer, "Once upon a time")[0].text

Part A is read once; then Part B grows by a token a row at a time, and what is in one blank is seen by the later ones.
"""

import secrets
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.glm.tokens import GLMTokens, encode_context
from stemma.inference.beam import beam_search
from stemma.inference.cache import DenseCache, PackedPrompts
from stemma.inference.prepacked import prepacked
from stemma.inference.sampling import Sampling, log_probabilities_of, uniforms
from stemma.layers.masks import Mask

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

_MOST_ROWS = 64  # more texts are filled one batch after another
_PIECE_TOKENS = 1024  # contexts are packed to about so many tokens a forward pass
_PACK_FROM = 16  # tokens from which packing the weights pays


@dataclass(frozen=True)
class Filling:
    """One filled text.

    Args:
        text: the context with its blanks filled. pieces: what is in each blank, in the order of the text.
        tokens: the ids of the pieces, without the token that ends one.
        log_probabilities: of each token given all before it, and of the end of its piece where the model ended it
            (natural, by the model's own distribution).
        finish_reasons: of each piece: "end" (the model ended it) or "length".
        context, sample: number of the text, and of this filling of it. seed: what gives the same filling again.
    """

    text: str
    pieces: list[str]
    tokens: list[list[int]]
    log_probabilities: list[list[float]]
    finish_reasons: list[Literal["end", "length"]]
    context: int
    sample: int
    seed: int

    @property
    def log_probability(self) -> float:
        """The natural logarithm of the probability of all pieces, written from left to right."""
        return sum(map(sum, self.log_probabilities))


@torch.inference_mode()
def infill(
    model: Any,
    tokenizer: "Tokenizer",
    text: str | Sequence[str],
    *,
    max_piece_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    samples: int = 1,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[Filling]:
    """Fill all blanks of one or several texts; return `samples` fillings of each, in the order of the texts.

    A filling depends on the model, its text, its number among the samples and the seed, not on what else is in the
    batch, except where two tokens are equally likely up to rounding.

    Args:
        model: a GLM in eval mode. tokenizer: the model's, with GLM's special tokens.
        text: with [MASK] (a few words), [sMASK] (a sentence) or [gMASK] (everything that follows) in it.
        max_piece_tokens: a piece ends there at the latest.
        temperature: 0 takes the most likely token each time. top_k, top_p, min_p: see `inference.sampling.Sampling`.
        beams: more than 1 searches the likeliest piece of each blank in turn, with `length_penalty` (see
            `inference.beam`).
    Raises:
        InputError: a text without a blank or longer than the context, or an option out of its range.
    """
    texts = [text] if isinstance(text, str) else list(text)
    ids = GLMTokens.of(tokenizer)
    contexts = [encode_context(tokenizer, ids, one) for one in texts]
    sampling = Sampling(temperature, top_k, top_p, min_p)
    if beams != 1 and (temperature or samples > 1 or beams < 1):
        raise InputError(f"beams is {beams}, expected 1 or more; more than 1 goes with temperature 0 and one sample")
    seed = secrets.randbits(32) if seed is None else seed
    rows = fill_contexts(
        model, ids, contexts, sampling=sampling, limit=max_piece_tokens, seed=seed, samples=samples, beams=beams,
        length_penalty=length_penalty,
    )  # fmt: skip
    return [_filling(row, tokenizer, seed) for row in rows]


def continue_text(model: Any, tokenizer: "Tokenizer", text: str | Sequence[str], **options: Any) -> list[Filling]:
    """Write on from left to right, after a final [gMASK]; options as in `infill`, the text of a result begins with the
    given one."""
    texts = [text] if isinstance(text, str) else list(text)
    return infill(model, tokenizer, [f"{one}[gMASK]" for one in texts], **options)


@dataclass
class Row:
    """One context in the course of being filled.

    Args:
        places: of its blanks. ends: for each blank, the tokens that end its piece. limit: of a piece, in tokens.
    """

    context: list[int]
    number: int
    sample: int
    places: list[int]
    ends: Sequence[tuple[int, ...]]
    limit: int
    pieces: list[list[int]] = field(default_factory=lambda: [[]])
    log_probabilities: list[list[float]] = field(default_factory=lambda: [[]])
    reasons: list[Literal["end", "length"]] = field(default_factory=list)
    steps: int = 0

    @property
    def finished(self) -> bool:
        return len(self.reasons) == len(self.places)

    def next_input(self, start: int) -> tuple[int, int, int]:
        """Return the token to read next and its two positions."""
        piece = self.pieces[-1]
        return (piece[-1] if piece else start), self.places[len(self.reasons)], len(piece) + 1

    def accept(self, token: int, log_probability: float) -> None:
        """Take the token that the model chose after the last input."""
        self.steps += 1
        ended = token in self.ends[len(self.reasons)]
        # A piece of full length has been read to its last token, so that the next ones see all of it.
        if not ended and len(self.pieces[-1]) < self.limit:
            self.pieces[-1].append(token)
            self.log_probabilities[-1].append(log_probability)
            return
        if ended:
            self.log_probabilities[-1].append(log_probability)
        self.reasons.append("end" if ended else "length")
        if not self.finished:
            self.pieces.append([])
            self.log_probabilities.append([])


@torch.inference_mode()
def fill_contexts(
    model: Any,
    ids: GLMTokens,
    contexts: Sequence[list[int]],
    *,
    sampling: Sampling,
    limit: int,
    seed: int = 0,
    samples: int = 1,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[Row]:
    """Fill the blanks of contexts that are token ids already; see `infill`.

    Raises:
        InputError: see `infill`.
    """
    _check(model, ids, contexts, limit, samples)
    limit = min(limit, model.config.context - 1)  # the last token of a piece has the last position of the table
    rows = [
        _row(ids, context, number, sample, limit)
        for number, context in enumerate(contexts)
        for sample in range(samples)
    ]
    most = max((len(row.places) for row in rows), default=0) * (limit + 1)
    with prepacked(model, min(len(rows), _MOST_ROWS)) if most >= _PACK_FROM else nullcontext():
        if beams > 1:
            for row in rows:
                _search(model, ids, row, beams, length_penalty)
        else:
            for first in range(0, len(rows), _MOST_ROWS):
                _fill(model, ids, rows[first : first + _MOST_ROWS], sampling, seed)
    return rows


def _row(ids: GLMTokens, context: list[int], number: int, sample: int, limit: int) -> Row:
    places = [place for place, token in enumerate(context) if token in ids.blanks]
    # What follows [gMASK] ended with its document in half of the training examples, without an end of piece.
    to_the_end = {ids.document_mask: (ids.piece_end, ids.end)} if ids.document_mask != ids.mask else {}
    ends = [to_the_end.get(context[place], (ids.piece_end,)) for place in places]
    return Row(context, number, sample, places, ends, limit)


def _fill(model: Any, ids: GLMTokens, rows: list[Row], sampling: Sampling, seed: int) -> None:
    """Write all pieces of some rows, one token a row at a time."""
    most = max(len(row.places) * (row.limit + 1) for row in rows)
    decoder = BlankDecoder(model, rows, new_tokens=most)
    draws = None if sampling.greedy else {id(row): uniforms(seed, row.sample, row.context, most) for row in rows}
    while rows:
        logits = decoder.step([row.next_input(ids.piece_start) for row in rows])
        uniform = None
        if draws is not None:
            uniform = torch.tensor([draws[id(row)][row.steps] for row in rows], device=logits.device)
        chosen = sampling.choose(logits, uniform)
        scores = log_probabilities_of(chosen, logits)
        for row, token, score in zip(rows, chosen.tolist(), scores.tolist(), strict=True):
            row.accept(token, score)
        order = rows_to_keep([row.finished for row in rows])
        if len(order) < len(rows):
            decoder.cache.keep(order)
            rows = [rows[index] for index in order]


class BlankDecoder:
    """Rows of a cache that have read their contexts, and read Part B one token at a time."""

    def __init__(self, model: Any, rows: Sequence[Row], *, new_tokens: int, copies: int = 1) -> None:
        self.model, self.device = model, model.output_weight.device
        longest = max(len(row.context) for row in rows)
        self.cache = DenseCache.for_model(model, len(rows) * copies, longest + new_tokens)
        self.cache.begin([len(row.context) for row in rows for _ in range(copies)])
        totals = list(accumulate(len(row.context) for row in rows))
        start = 0
        while start < len(rows):
            before = totals[start - 1] if start else 0
            stop = start + 1
            while stop < len(rows) and totals[stop] - before <= _PIECE_TOKENS:
                stop += 1
            self._read(rows, range(start, stop), copies)
            start = stop
        self.cache.spread([copies] * len(rows))

    def _read(self, rows: Sequence[Row], numbers: range, copies: int) -> None:
        packed = PackedContexts(self.cache, [number * copies for number in numbers])
        contexts = [rows[number].context for number in numbers]
        tokens = torch.tensor([[token for context in contexts for token in context]], device=self.device)
        places = torch.cat([torch.arange(len(context), device=self.device) for context in contexts])
        positions = torch.stack([places, torch.zeros_like(places)]).unsqueeze(0)
        self.model.hidden(tokens, positions, cache=packed)

    def step(self, inputs: Sequence[tuple[int, int, int]]) -> Tensor:
        """Read a token a row with its two positions; return float32 [rows, vocabulary], the logits of what follows."""
        read = torch.tensor(inputs, device=self.device)
        hidden = self.model.hidden(read[:, :1], read[:, 1:].unsqueeze(-1), cache=self.cache)
        return self.model.logits(hidden.squeeze(1)).float()


class PackedContexts(PackedPrompts):
    """Contexts packed one behind the other, each of which sees all of itself."""

    def mask(self, length: int, window: int | None = None) -> Mask:
        """Return: within the context, in both directions."""
        return self._masks.setdefault(window, Mask(document_ids=self._document_ids))


def _search(model: Any, ids: GLMTokens, row: Row, beams: int, length_penalty: float) -> None:
    """Write the pieces of a row, each the likeliest that beam search finds."""
    while not row.finished:
        written = _BeamRows(model, ids, row, beams)
        end = row.ends[len(row.reasons)][-1]
        best = beam_search(written, beams=beams, limits=[row.limit], end=end, length_penalty=length_penalty)[0][0]
        for token, log_probability in zip(best.tokens, best.log_probabilities, strict=True):
            row.accept(token, log_probability)
        if best.tokens[-1] != end:
            row.accept(-1, 0.0)  # of full length


class _BeamRows:
    """The beams of one blank: `inference.beam.Rows`."""

    def __init__(self, model: Any, ids: GLMTokens, row: Row, beams: int) -> None:
        self.decoder = BlankDecoder(model, [row], new_tokens=len(row.places) * (row.limit + 1), copies=beams)
        self.row, self.ids, self.beams = row, ids, beams
        self.place, self.ends = row.places[len(row.reasons)], row.ends[len(row.reasons)]
        self.read = 1

    def read_prompts(self) -> Tensor:
        """Read the pieces that are written, and the start of the next."""
        for place, piece in zip(self.row.places, self.row.pieces[:-1], strict=False):
            for offset, token in enumerate([self.ids.piece_start, *piece]):
                self.decoder.step([(token, place, offset + 1)] * self.beams)
        return self._with_one_end(self.decoder.step([(self.ids.piece_start, self.place, 1)] * self.beams))

    def step(self, tokens: Tensor) -> Tensor:
        """Read int64 [rows]."""
        self.read += 1
        return self._with_one_end(self.decoder.step([(token, self.place, self.read) for token in tokens.tolist()]))

    def _with_one_end(self, logits: Tensor) -> Tensor:
        """Where two tokens end a piece, give the search one that has the probability of both."""
        for other in self.ends[:-1]:
            logits[:, self.ends[-1]] = logits[:, self.ends[-1]].logaddexp(logits[:, other])
            logits[:, other] = -torch.inf
        return logits

    def keep(self, order: list[int]) -> None:
        """Keep some rows."""
        self.decoder.cache.keep(order)

    def reorder(self, parents: Tensor) -> None:
        """Make row parents[i] row i."""
        self.decoder.cache.reorder(parents)


@torch.inference_mode()
def search_fillings(
    model: Any, ids: GLMTokens, context: list[int], *, beams: int, limit: int
) -> list[tuple[float, list[list[int]]]]:
    """Return the likeliest fillings of one context, at most `beams`, best first, as log-probability and pieces.

    The blanks are filled from left to right; after each, the `beams` likeliest fillings so far are kept. No piece has
    more than `limit` tokens, and each one's probability holds that it ends where it does.

    Raises:
        InputError: see `infill`.
    """
    _check(model, ids, [context], limit, 1)
    limit = min(limit, model.config.context - 1)
    found: list[tuple[float, list[list[int]]]] = [(0.0, [])]
    for number in range(len(_row(ids, context, 0, 0, limit).places)):
        longer: list[tuple[float, list[list[int]]]] = []
        for total, pieces in found:
            row = _row(ids, context, 0, 0, limit)
            row.pieces, row.reasons = [*pieces, []], ["end"] * number
            end = row.ends[number][-1]
            rows = _BeamRows(model, ids, row, beams)
            limits = [limit + 1]
            for one in beam_search(rows, beams=beams, limits=limits, end=end, length_penalty=0.0, must_end=True)[0]:
                longer.append((total + one.score, [*pieces, one.tokens[:-1]]))
        found = sorted(longer, key=lambda pair: -pair[0])[:beams]
    return found


def _check(model: Any, ids: GLMTokens, contexts: Sequence[list[int]], limit: int, samples: int) -> None:
    if model.training:
        raise InputError("the model is in training mode, where dropout is random: call model.eval() first")
    if max(ids.piece_start, ids.piece_end, *ids.blanks) >= model.config.vocabulary:
        raise InputError(f"the tokenizer has more ids than the model's {model.config.vocabulary}: not its tokenizer")
    if limit < 1 or samples < 1:
        raise InputError(f"max_piece_tokens is {limit} and samples {samples}, expected 1 or more")
    for number, context in enumerate(contexts):
        most = model.config.position_rows
        if len(context) > most:
            raise InputError(f"text {number + 1} has {len(context)} tokens, the model {most} positions: shorten it")


def rows_to_keep(finished: Sequence[bool]) -> list[int]:
    """Return the rows that are not finished, in an order that fills the places of finished ones from the end."""
    kept = [row for row, done in enumerate(finished) if not done]
    return [row if not finished[row] else kept.pop() for row in range(len(kept))]


def _filling(row: Row, tokenizer: "Tokenizer", seed: int) -> Filling:
    pieces = dict(zip(row.places, row.pieces, strict=True))
    filled = [token for place, kept in enumerate(row.context) for token in pieces.get(place, [kept])]
    return Filling(
        text=tokenizer.decode(filled),
        pieces=[tokenizer.decode(piece) for piece in row.pieces],
        tokens=row.pieces,
        log_probabilities=row.log_probabilities,
        finish_reasons=row.reasons,
        context=row.number,
        sample=row.sample,
        seed=seed,
    )
