"""What each family makes of a blank in a text: how likely a piece is there, which of several fits best, what it writes.

GLM and T5 do this by design. The others do the nearest that they can, and `Way.note` says what:

    GLM     log p(piece, end | both sides)                                       (Du et al. 2022, section 2.1)
    T5      log p(piece, next sentinel | both sides)                             (Raffel et al. 2020, section 3.1.4)
    GPT     log p(piece | what is before), likewise Mistral; to choose, log p(piece and what follows | what is before)
    BERT    log p(piece | both sides, the number of tokens): masks are filled from left to right
    UniLM   as BERT, under its bidirectional mask
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemma.data import collation
from stemma.data.tokenizers import Tokenizer
from stemma.families.bert.model import BERT
from stemma.families.bert.tokens import BERTTokens
from stemma.families.dispatch import by_family
from stemma.families.glm.examples import collate, filled_example
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import GLMTokens
from stemma.families.gpt.model import GPT
from stemma.families.mistral.model import Mistral
from stemma.families.t5.model import T5
from stemma.families.t5.tokens import sentinel_ids
from stemma.inference.decoders import decoder_of
from stemma.inference.encoder_decoder import SourceDecoder
from stemma.inference.filling_scores import target_scores
from stemma.inference.infilling import fill_contexts
from stemma.inference.sampling import Sampling
from stemma.inference.states import states_of

_ROWS = 64  # texts at once


@dataclass(frozen=True)
class Blank:
    """A text with a piece taken out of it, as token ids without special tokens."""

    before: tuple[int, ...]
    piece: tuple[int, ...]
    after: tuple[int, ...]

    def holding(self, piece: Sequence[int]) -> "Blank":
        """Return the blank with another piece taken out of it."""
        return Blank(self.before, tuple(piece), self.after)


@dataclass(frozen=True)
class Way:
    """How a model deals with blanks.

    Args:
        log_probabilities: of blanks: for each, float64 [tokens] in nats of its piece given its text (see above), that
            of its end last where `ends`.
        choice: of blanks: for each, the score by which one of several pieces is chosen.
        write: of blanks: for each, the piece that the model writes, taking the likeliest token each time.
        by_design: whether the framework was made for this. note: what is done instead.
    """

    log_probabilities: Callable[[Sequence[Blank]], list[np.ndarray]]
    choice: Callable[[Sequence[Blank]], list[float]]
    write: Callable[[Sequence[Blank]], list[list[int]]]
    ends: bool
    by_design: bool
    note: str = ""


def way_of(model: Any, tokenizer: Tokenizer, *, most: int = 16) -> Way:
    """Return how a model in eval mode deals with blanks.

    Args:
        most: no piece that GLM or T5 write is longer.
    Raises:
        InputError: the model is of no family that can.
    """
    kinds: dict[type, Callable[[Any, Tokenizer, int], Way]] = {
        GLM: _glm, T5: _t5, GPT: _causal, Mistral: _causal, BERT: _bert
    }  # fmt: skip
    return by_family(model, kinds, "knows no blanks")(model, tokenizer, most)


def _sums(scores: Callable[[Sequence[Blank]], list[np.ndarray]]) -> Callable[[Sequence[Blank]], list[float]]:
    return lambda blanks: [float(score.sum()) for score in scores(blanks)]


def _batched(blanks: Sequence[Blank]) -> Iterator[list[int]]:
    """Yield the numbers of blanks of about equal length."""
    order = sorted(
        range(len(blanks)), key=lambda i: len(blanks[i].before) + len(blanks[i].piece) + len(blanks[i].after)
    )
    for start in range(0, len(order), _ROWS):
        yield order[start : start + _ROWS]


def _glm(model: GLM, tokenizer: Tokenizer, most: int) -> Way:
    ids = GLMTokens.of(tokenizer)

    def context(blank: Blank) -> list[int]:
        return [ids.beginning, *blank.before, ids.mask, *blank.after, ids.end]

    @torch.inference_mode()
    def scores(blanks: Sequence[Blank]) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.zeros(0)] * len(blanks)
        for numbers in _batched(blanks):
            examples = [
                filled_example(
                    context(blanks[i]), [1 + len(blanks[i].before)], [blanks[i].piece], ids.piece_start, ids.piece_end
                )
                for i in numbers
            ]
            batch = {name: tensor.to(model.output_weight.device) for name, tensor in collate(examples, ids.end).items()}
            for i, row in zip(numbers, target_scores(model, batch), strict=True):
                found[i] = np.array(row)
        return found

    def write(blanks: Sequence[Blank]) -> list[list[int]]:
        contexts = [context(blank) for blank in blanks]
        rows = fill_contexts(model, ids, contexts, sampling=Sampling(0.0), limit=most)
        return [row.pieces[0] for row in rows]

    return Way(scores, _sums(scores), write, ends=True, by_design=True)


def _t5(model: T5, tokenizer: Tokenizer, most: int) -> Way:
    first, second = sentinel_ids(tokenizer)[:2]

    def source(blank: Blank) -> list[int]:
        return [*blank.before, first, *blank.after, tokenizer.separator]

    @torch.inference_mode()
    def scores(blanks: Sequence[Blank]) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.zeros(0)] * len(blanks)
        for numbers in _batched(blanks):
            sources, real = padded([source(blanks[i]) for i in numbers], model.output_weight.device)
            targets, written = padded([[first, *blanks[i].piece, second] for i in numbers], sources.device)
            hidden = model.hidden(sources, targets, source_padding=None if bool(real.all()) else real)
            chosen = chosen_log_probabilities(model.logits(hidden), targets)
            for row, i in enumerate(numbers):
                found[i] = chosen[row, 1 : int(written[row].sum())].cpu().numpy()  # not of the first sentinel
        return found

    def write(blanks: Sequence[Blank]) -> list[list[int]]:
        def decoder(part: list[Blank]) -> tuple[Any, Tensor]:
            rows = SourceDecoder(model, [source(blank) for blank in part], new_tokens=most + 2)
            rows.read_prompts()
            return rows, rows.step(torch.full((len(part),), first, device=model.output_weight.device))

        ends = (second, tokenizer.separator)
        return _written(decoder, blanks, [most] * len(blanks), ends)

    return Way(scores, _sums(scores), write, ends=True, by_design=True)


def _causal(model: GPT | Mistral, tokenizer: Tokenizer, most: int) -> Way:
    start = tokenizer.separator

    @torch.inference_mode()
    def whole(blanks: Sequence[Blank]) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.zeros(0)] * len(blanks)
        for numbers in _batched(blanks):
            texts = [[start, *blanks[i].before, *blanks[i].piece, *blanks[i].after] for i in numbers]
            tokens, real = padded(texts, model.output_weight.device)
            chosen = chosen_log_probabilities(model.logits(model.hidden(tokens[:, :-1])), tokens[:, 1:])
            for row, i in enumerate(numbers):
                found[i] = chosen[row, : int(real[row].sum()) - 1].cpu().numpy()
        return found

    def scores(blanks: Sequence[Blank]) -> list[np.ndarray]:
        cut = [Blank(blank.before, blank.piece, ()) for blank in blanks]
        return [row[len(blank.before) :] for row, blank in zip(whole(cut), blanks, strict=True)]

    def choice(blanks: Sequence[Blank]) -> list[float]:
        return [float(row[len(blank.before) :].sum()) for row, blank in zip(whole(blanks), blanks, strict=True)]

    def write(blanks: Sequence[Blank]) -> list[list[int]]:
        def decoder(part: list[Blank]) -> tuple[Any, Tensor]:
            longest = max(len(blank.piece) for blank in part)
            rows = decoder_of(model)(model, [[start, *blank.before] for blank in part], new_tokens=longest)
            return rows, rows.read_prompts()

        return _written(decoder, blanks, [len(blank.piece) for blank in blanks], ())

    note = "sees only what is before the blank, writes as many tokens as were taken out, does not say where it ends"
    return Way(scores, choice, write, ends=False, by_design=False, note=note)


def _bert(model: BERT, tokenizer: Tokenizer, most: int) -> Way:
    ids = BERTTokens.of(tokenizer)
    two_kinds = model.config.segments > 2  # UniLM: segment 0 is its bidirectional mask's

    @torch.inference_mode()
    def logits_at(blanks: Sequence[Blank], written: Sequence[Sequence[int]]) -> Tensor:
        """Return float32 [blanks, vocabulary]: of the first token of each piece that is not written yet."""
        texts = []
        for blank, piece in zip(blanks, written, strict=True):
            masks = [ids.mask] * (len(blank.piece) - len(piece))
            texts.append([ids.first, *blank.before, *piece, *masks, *blank.after, ids.last])
        tokens, real = padded(texts, model.masked_weight.device)
        hidden = states_of(model, tokens, real.sum(1))
        places = [1 + len(blank.before) + len(piece) for blank, piece in zip(blanks, written, strict=True)]
        return model.logits(hidden[torch.arange(len(texts)), torch.tensor(places)]).float()

    def scores(blanks: Sequence[Blank]) -> list[np.ndarray]:
        jobs = [(i, place) for i, blank in enumerate(blanks) for place in range(len(blank.piece))]
        found = [np.zeros(len(blank.piece)) for blank in blanks]
        for start in range(0, len(jobs), _ROWS):
            part = jobs[start : start + _ROWS]
            rows = logits_at([blanks[i] for i, _ in part], [blanks[i].piece[:place] for i, place in part])
            expected = torch.tensor([blanks[i].piece[place] for i, place in part], device=rows.device)
            for (i, place), score in zip(part, chosen_log_probabilities(rows, expected).tolist(), strict=True):
                found[i][place] = score
        return found

    def write(blanks: Sequence[Blank]) -> list[list[int]]:
        pieces: list[list[int]] = [[] for _ in blanks]
        while todo := [i for i, blank in enumerate(blanks) if len(pieces[i]) < len(blank.piece)]:
            for start in range(0, len(todo), _ROWS):
                part = todo[start : start + _ROWS]
                rows = logits_at([blanks[i] for i in part], [pieces[i] for i in part])
                for i, token in zip(part, rows.argmax(1).tolist(), strict=True):
                    pieces[i].append(token)
        return pieces

    note = "is told how many tokens were taken out" + (", under its bidirectional mask" if two_kinds else "")
    return Way(scores, _sums(scores), write, ends=False, by_design=False, note=note)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return int64 [rows, longest], padded with 0, and bool of the same shape: True where a token is real."""
    lengths, tokens = torch.tensor([len(row) for row in rows]), collation.padded(rows)
    return tokens.to(device), (torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)).to(device)


def chosen_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities of tokens, float64 [...], of logits [..., vocabulary]."""
    return logits.double().log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@torch.inference_mode()
def _written(
    decoder: Callable[[list[Blank]], tuple[Any, Tensor]],
    blanks: Sequence[Blank],
    limits: Sequence[int],
    ends: Sequence[int],
) -> list[list[int]]:
    """Return the likeliest tokens one after the other, of each blank until an end or its limit."""
    pieces: list[list[int]] = [[] for _ in blanks]
    for first in range(0, len(blanks), _ROWS):
        numbers = [i for i in range(first, min(first + _ROWS, len(blanks))) if limits[i] > 0]
        if not numbers:
            continue
        rows, logits = decoder([blanks[i] for i in numbers])
        while True:
            tokens = logits.argmax(1).tolist()
            going = [row for row, token in enumerate(tokens) if token not in ends]
            for row in going:
                pieces[numbers[row]].append(tokens[row])
            going = [row for row in going if len(pieces[numbers[row]]) < limits[numbers[row]]]
            if not going:
                break
            if len(going) < len(numbers):
                rows.keep(going)
                numbers = [numbers[row] for row in going]
            logits = rows.step(torch.tensor([pieces[i][-1] for i in numbers], device=logits.device))
    return pieces
