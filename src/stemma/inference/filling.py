"""Filling blanks with whatever model can: the likeliest fillings of a text, best first.

    fill(model, tokenizer, "The [MASK] sat on the [MASK].")[0][0].text

BERT (Devlin et al. 2018, section 3.1) puts one token in each blank, T5 (Raffel et al. 2020, section 3.1.4) and GLM
(Du et al. 2022, section 2.1) put as many as they like.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.bert.tokens import frame_and_mask
from stemma.families.dispatch import by_family
from stemma.families.glm.model import GLM
from stemma.families.glm.tokens import MASK, GLMTokens, encode_context
from stemma.families.t5.model import T5
from stemma.families.t5.tokens import encode_source, sentinel_ids, split_spans
from stemma.inference.beam import beam_search
from stemma.inference.encoder_decoder import SourceDecoder
from stemma.inference.infilling import search_fillings
from stemma.inference.job import PACK_FROM
from stemma.inference.prepacked import prepacked
from stemma.layers.masks import Mask

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

_BATCH_TOKENS = 4096  # a BERT reads so many at once, texts packed one behind the other


@dataclass(frozen=True)
class Candidate:
    """One way to fill a text.

    Args:
        text: with its blanks filled. pieces: what is in each blank, in the order of the text.
        log_probability: natural, of all pieces together. BERT predicts each of several blanks without knowing the
            others' pieces, so there it is the sum over them; T5's and GLM's includes that the pieces end where they do.
    """

    text: str
    pieces: list[str]
    log_probability: float


@torch.inference_mode()
def fill(
    model: Any, tokenizer: "Tokenizer", text: str | Sequence[str], *, top_k: int = 5, max_piece_tokens: int = 16
) -> list[list[Candidate]]:
    """Return the `top_k` likeliest fillings of each text, best first (fewer, if fewer are found).

    Args:
        model: a BERT, T5 or GLM in eval mode. tokenizer: the model's.
        text: with [MASK] (or the tokenizer's own mask) in it; the blank space before one belongs to what fills it. GLM
            also takes [sMASK] and [gMASK].
        top_k: of T5 and GLM it is also the width of the beam search by which they are found.
        max_piece_tokens: no piece of a GLM is longer, nor are T5's in the mean; only pieces that end by then count.
    Raises:
        InputError: a model that cannot fill blanks, a text without a blank or longer than the context, or an option
            out of its range.
    """
    texts = [text] if isinstance(text, str) else list(text)
    if top_k < 1 or max_piece_tokens < 1:
        raise InputError(f"top_k is {top_k} and max_piece_tokens {max_piece_tokens}, expected 1 or more")
    if model.training:
        raise InputError("the model is in training mode, where dropout is random: call model.eval() first")
    fill_one = by_family(model, {BERT: None, T5: _fill_t5, GLM: _fill_glm}, "cannot fill blanks")
    if fill_one is None:
        return _fill_bert(model, tokenizer, texts, top_k)  # all texts at once
    return [fill_one(model, tokenizer, one, top_k, max_piece_tokens) for one in texts]


def _fill_bert(model: BERT, tokenizer: "Tokenizer", texts: Sequence[str], top_k: int) -> list[list[Candidate]]:
    first, last, mask = frame_and_mask(tokenizer)
    if tokenizer.vocabulary > model.config.vocabulary:
        raise InputError(f"the tokenizer has more ids than the model's {model.config.vocabulary}: not its tokenizer")
    rows = []
    for one in texts:
        parts = tokenizer.encode_batch(_around_blanks(tokenizer, one))
        inner = [token for part in parts[:-1] for token in [*part, mask]] + parts[-1]
        rows.append(np.array([first, *inner, last]))
        if len(rows[-1]) > model.config.context:
            raise InputError(f"{one[:60]!r} has {len(rows[-1])} tokens, the model reads {model.config.context}")
    found = []
    for numbers in _packs([len(row) for row in rows]):
        blanks = [(row == mask).sum() for row in (rows[number] for number in numbers)]
        scores, tokens = _likeliest_tokens(model, [rows[number] for number in numbers], mask, top_k)
        start = 0
        for number, count in zip(numbers, blanks, strict=True):
            best = _best_products(scores[start : start + count], tokens[start : start + count], top_k)
            found.append([_candidate(tokenizer, rows[number], mask, chosen, score) for score, chosen in best])
            start += count
    return found


def _likeliest_tokens(
    model: BERT, rows: Sequence[np.ndarray], mask: int, top_k: int
) -> tuple[list[list[float]], list[list[int]]]:
    """Return the best log-probabilities and tokens, best first, of each blank of texts that are read packed."""
    packed = np.concatenate(rows)
    documents = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    device = model.masked_weight.device
    tokens = torch.from_numpy(packed).to(device).unsqueeze(0)
    seen = None if len(rows) == 1 else Mask(document_ids=torch.from_numpy(documents).to(device).unsqueeze(0))
    blanks = torch.from_numpy(np.flatnonzero(packed == mask)).to(device)
    logits = model.logits(model.hidden(tokens, mask=seen, places=blanks)).float()
    best = logits.log_softmax(-1).topk(min(top_k, logits.shape[-1]))
    return best.values.tolist(), best.indices.tolist()


def _best_products(
    scores: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]], top_k: int
) -> list[tuple[float, list[int]]]:
    """Return the `top_k` combinations of one token a blank with the greatest sums, each with its sum."""
    best: list[tuple[float, list[int]]] = [(0.0, [])]
    for blank_scores, blank_tokens in zip(scores, tokens, strict=True):
        longer = [
            (total + score, [*chosen, token])
            for total, chosen in best
            for score, token in zip(blank_scores, blank_tokens, strict=True)
        ]
        best = sorted(longer, key=lambda pair: -pair[0])[:top_k]
    return best


def _candidate(tokenizer: "Tokenizer", row: np.ndarray, mask: int, chosen: list[int], score: float) -> Candidate:
    filled = row.copy()
    filled[row == mask] = chosen
    pieces = [tokenizer.decode([token], skip_special=False).strip(" ") for token in chosen]
    return Candidate(tokenizer.decode(filled).strip(" "), pieces, score)


def _fill_glm(model: GLM, tokenizer: "Tokenizer", text: str, top_k: int, limit: int) -> list[Candidate]:
    ids = GLMTokens.of(tokenizer)
    context = encode_context(tokenizer, ids, text)
    rows = search_fillings(model, ids, context, beams=top_k, limit=limit)
    return [_written(tokenizer, context, ids.blanks, pieces, score) for score, pieces in rows]


def _fill_t5(model: T5, tokenizer: "Tokenizer", text: str, top_k: int, limit: int) -> list[Candidate]:
    sentinels = sentinel_ids(tokenizer)
    if not sentinels:
        raise InputError("the tokenizer has no <extra_id_0>, so that this T5 knows no blanks")
    parts = _around_blanks(tokenizer, text)
    count = len(parts) - 1
    if count > len(sentinels):
        raise InputError(f"{text[:60]!r} has {count} blanks, the tokenizer names for {len(sentinels)}")
    source = "".join(f"{part}<extra_id_{number}>" for number, part in enumerate(parts[:-1])) + parts[-1]
    encoded, beams, end = encode_source(tokenizer, source), max(top_k, 2), tokenizer.separator
    most = count * (limit + 1) + 2  # a name and a piece for each blank, one more name, the end
    with prepacked(model, beams) if most >= PACK_FROM else nullcontext():
        rows = SourceDecoder(model, [encoded], copies=[beams], new_tokens=most)
        targets = beam_search(rows, beams=beams, limits=[most], end=end, length_penalty=0.0, must_end=True)[0]
    merged: dict[tuple[tuple[int, ...], ...], float] = {}  # targets may differ in what is behind the last piece only
    for target in targets:
        pieces = tuple(map(tuple, split_spans(target.tokens[:-1], sentinels, count)))
        merged[pieces] = float(np.logaddexp(merged.get(pieces, -np.inf), target.score))
    ranked = sorted(merged.items(), key=lambda pair: -pair[1])[:top_k]
    return [_written(tokenizer, encoded[:-1], frozenset(sentinels), pieces, score) for pieces, score in ranked]


def _around_blanks(tokenizer: "Tokenizer", text: str) -> list[str]:
    """Return the text between its blanks, without the space before each."""
    names = {MASK, tokenizer.names.get("mask_token", MASK)}
    parts = re.split("|".join(map(re.escape, sorted(names))), text)
    if len(parts) == 1:
        raise InputError(f"no blank in {text[:60]!r}: expected {' or '.join(sorted(names))} in it")
    return [*(part.rstrip() for part in parts[:-1]), parts[-1]]


def _written(
    tokenizer: "Tokenizer",
    context: Sequence[int],
    blanks: frozenset[int],
    pieces: Sequence[Sequence[int]],
    log_probability: float,
) -> Candidate:
    """Return the candidate that has the pieces in a context's blanks, in their order."""
    left = iter(pieces)
    filled = [token for kept in context for token in (next(left, ()) if kept in blanks else (kept,))]
    texts = [tokenizer.decode(piece).strip(" ") for piece in pieces]
    return Candidate(tokenizer.decode(filled).strip(" "), texts, log_probability)


def _packs(lengths: Sequence[int]) -> Iterator[range]:
    """Yield runs of texts with at most `_BATCH_TOKENS` tokens, or one text."""
    start, total = 0, 0
    for number, length in enumerate(lengths):
        if number > start and total + length > _BATCH_TOKENS:
            yield range(start, number)
            start, total = number, 0
        total += length
    if lengths:
        yield range(start, len(lengths))
