"""How likely continuations are after their contexts, what several have in common read once.

The beginning that all contexts share (the solved examples of a prompt) is read once, each context once behind it, and
each continuation behind its context: branches of one tree, in a cache of blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.inference.paged_cache import BLOCK, PagedCache, Pages
from stemma.inference.ragged import Piece, RaggedStep
from stemma.inference.text_stream import beginning_of_text

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]

CACHE_BYTES = 2**29
_TOKENS = 4096  # of contexts that are read together
_ROWS = 256  # whose logits are in memory together


@dataclass(frozen=True)
class ScoredContinuation:
    """A continuation's natural log-probabilities, token by token, and whether each token is the likeliest one."""

    log_probabilities: tuple[float, ...]
    is_greedy: bool


@dataclass(frozen=True)
class EncodedPair:
    """A context and its continuation.

    merged: the last token of the context and the first of the continuation became one where both were encoded together,
    so that the continuation begins later by its tokens than by its text.
    """

    context: Tokens
    continuation: Tokens
    merged: bool


def encode_pairs(tokenizer: "Tokenizer", pairs: Sequence[tuple[str, str]]) -> list[EncodedPair]:
    """Encode each context with its continuation and divide the tokens where those of the context alone end.

    Blanks that end a context belong to the continuation, whose tokens begin with them. An empty context is the token
    that begins texts, else the one that separates them.

    Raises:
        InputError: a continuation without tokens of its own.
    """
    kept = [context.rstrip() for context, _ in pairs]
    alone = dict(zip(dict.fromkeys(kept), tokenizer.encode_batch(list(dict.fromkeys(kept))), strict=True))
    found = []
    for start, whole, (context, continuation) in zip(
        (alone[context] for context in kept),
        tokenizer.encode_batch([context + continuation for context, continuation in pairs]),
        pairs,
        strict=True,
    ):
        before, after = whole[: len(start)], whole[len(start) :]
        if not after:
            raise InputError(f"the continuation {continuation!r} has no tokens of its own after {context[-20:]!r}")
        if not before:
            before = [beginning_of_text(tokenizer)]
        found.append(EncodedPair(tuple(before), tuple(after), whole[: len(start)] != start))
    return found


@torch.inference_mode()
def score_continuations(model: Any, pairs: Sequence[Pair], *, memory: int = CACHE_BYTES) -> list[ScoredContinuation]:
    """Score continuations of at least one token after contexts of at least one; equal pairs are computed once.

    Of what is longer than the model reads, the end is kept, the continuation always whole.

    Args:
        model: a GPT, Mistral or Mixtral of `stemma.load`. memory: bytes for keys and values.
    Raises:
        InputError: a continuation that is longer than the model reads.
    """
    fitting = [_fitting(pair, model.config.context) for pair in pairs]
    branches: dict[Tokens, dict[Tokens, ScoredContinuation | None]] = {}
    for context, continuation in fitting:
        branches.setdefault(context, {})[continuation] = None
    contexts = sorted(branches)  # those that begin alike are next to each other
    cache = PagedCache.for_model(model, memory)
    shared = _common(contexts[0], contexts[-1]) if contexts else ()
    trunk = cache.open()
    if shared:
        _read(model, cache, [(trunk, shared)])
    for batch in _batches(cache, contexts, branches, len(shared)):
        stems = [cache.fork(trunk) for _ in batch]
        ends = _read(
            model, cache, [(stem, context[len(shared) :]) for stem, (context, _) in zip(stems, batch, strict=True)]
        )
        twigs = [(stem, after) for stem, (_, own) in zip(stems, batch, strict=True) for after in own]
        leaves = [(cache.fork(stem), after[:-1]) for stem, after in twigs]
        states = _read(model, cache, leaves)
        last = [end[-1:] for end, (_, own) in zip(ends, batch, strict=True) for _ in own]
        scores = _scores(model, [torch.cat(pair) for pair in zip(last, states, strict=True)], [a for _, a in twigs])
        places = [(context, after) for context, own in batch for after in own]
        for (context, after), score in zip(places, scores, strict=True):
            branches[context][after] = score
        for pages in [*(pages for pages, _ in leaves), *stems]:
            cache.close(pages)
    return [found for pair in fitting if (found := branches[pair[0]][pair[1]]) is not None]


def _fitting(pair: Pair, most: int) -> Pair:
    context, continuation = pair
    if len(continuation) > most:
        raise InputError(f"a continuation has {len(continuation)} tokens, the model's context is {most}")
    return context[-(most + 1 - len(continuation)) :], continuation  # the very last token is not read


def _common(first: Tokens, last: Tokens) -> Tokens:
    """Return what the first and the last of sorted contexts, and so all, begin with, but for the last token."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last[:-1], strict=False))
    return tuple(token for token, _ in same)


def _batches(
    cache: PagedCache, contexts: Sequence[Tokens], branches: dict[Tokens, dict[Tokens, Any]], shared: int
) -> Iterator[list[tuple[Tokens, list[Tokens]]]]:
    """Yield contexts with their continuations, as many as are read together and fit into the cache."""
    room = min(group.pool.free for group in cache.groups)
    batch: list[tuple[Tokens, list[Tokens]]] = []
    tokens = blocks = 0
    for context in contexts:
        own = list(branches[context])
        cost = len(context) - shared
        # Each branch copies the block in which it leaves, and may end inside another one.
        needed = cost // BLOCK + 2 + sum(len(after) // BLOCK + 2 for after in own)
        if batch and (tokens + cost > _TOKENS or blocks + needed > room):
            yield batch
            batch, tokens, blocks = [], 0, 0
        batch.append((context, own))
        tokens, blocks = tokens + cost, blocks + needed
    if batch:
        yield batch


def _read(model: Any, cache: PagedCache, pieces: Sequence[tuple[Pages, Tokens]]) -> list[Tensor]:
    """Read the next tokens of each text, if there are any; return the states, float [tokens, hidden] of each."""
    for pages, tokens in pieces:
        if not cache.reserve(pages, len(tokens)):
            raise InputError("too many continuations of one context for the memory of the cache")
    width = model.output_weight.shape[1]
    found = [model.output_weight.new_empty(0, width)] * len(pieces)
    made = [(place, Piece(pages, tokens)) for place, (pages, tokens) in enumerate(pieces) if tokens]
    made.sort(key=lambda pair: not pair[1].is_short)
    if not made:
        return found
    step = RaggedStep(cache, [piece for _, piece in made])
    hidden = model.hidden(step.tokens, cache=step)[0]
    for (place, piece), end in zip(made, step.ends.tolist(), strict=True):
        found[place] = hidden[end - len(piece.tokens) : end]
        piece.pages.length += len(piece.tokens)
    return found


def _scores(model: Any, states: Sequence[Tensor], continuations: Sequence[Tokens]) -> list[ScoredContinuation]:
    rows = torch.cat(list(states))
    targets = torch.tensor([token for after in continuations for token in after], device=rows.device)
    own: list[float] = []
    best: list[bool] = []
    for part, wanted in zip(rows.split(_ROWS), targets.split(_ROWS), strict=True):
        scores = model.logits(part).float().log_softmax(-1)
        chosen = scores.gather(-1, wanted[:, None])[:, 0]
        own += chosen.tolist()
        best += (chosen == scores.amax(-1)).tolist()
    found, start = [], 0
    for after in continuations:
        stop = start + len(after)
        found.append(ScoredContinuation(tuple(own[start:stop]), all(best[start:stop])))
        start = stop
    return found
