"""`POST /v1/score`: how likely given continuations are after a context."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from stemma.evaluation.left_to_right import likelihood_of
from stemma.inference.requests import Request as EngineRequest
from stemma.serving.connections import while_connected
from stemma.serving.context import Context, context_of
from stemma.serving.errors import wrong
from stemma.serving.sampling import check_tokens
from stemma.serving.schemas import ScoreBody
from stemma.serving.served import Served
from stemma.serving.texts import collect, finite

router = APIRouter()

Pair = tuple[list[int], list[int], bool]


@router.post("/v1/score")
async def score(body: ScoreBody, http: Request) -> Response:
    """Score continuations of a context: the natural log-probability of each as a whole and token by token.

    `boundary_merged` says that the last token of the context and the first of the continuation became one where they
    were encoded together, so that the continuation begins later by its tokens than by its text.
    """
    context = context_of(http)
    served = context.serves(body.model)
    if len(body.continuations) > context.limits.texts:
        raise wrong("continuations", f"{len(body.continuations)} of them, expected at most {context.limits.texts}")
    pairs = await context.in_background(http, _pairs, body, served)
    exact, note = True, ""
    if served.goes_on:
        scores, greedy = await _by_engine(context, http, pairs)
    else:
        scores, exact, note = await context.call(http, _likelihoods(pairs))
        greedy = [None] * len(pairs)
    data = [
        {
            "index": number,
            "log_probability": sum(value or 0.0 for value in row),
            "token_log_probabilities": row,
            "tokens": tokens,
            "is_greedy": is_greedy,
            "boundary_merged": merged,
        }
        for number, ((_, tokens, merged), row, is_greedy) in enumerate(zip(pairs, scores, greedy, strict=True))
    ]
    answer: dict[str, Any] = {"object": "list", "data": data, "model": served.name, "exact": exact}
    return JSONResponse(answer | ({"note": note} if note else {}))


def _pairs(body: ScoreBody, served: Served) -> list[Pair]:
    """Return the context, the continuation, and whether tokens reach over their border."""
    pairs = []
    for number, continuation in enumerate(body.continuations):
        if isinstance(body.context, str) and isinstance(continuation, str):
            pair = _encoded(body.context, continuation, served)
        elif isinstance(body.context, list) and isinstance(continuation, list):
            pair = (body.context, continuation, False)
        else:
            raise wrong(f"continuations.{number}", "expected all texts or all lists of token ids")
        before, after, merged = pair
        before = before or served.prefix
        check_tokens(after, served, f"continuations.{number}")
        check_tokens(before, served, "context")
        if served.context is not None and len(before) + len(after) > served.context:
            message = f"{len(before) + len(after)} tokens, the model's context is {served.context}"
            raise wrong(f"continuations.{number}", message, "context_length_exceeded")
        pairs.append((before, after, merged))
    return pairs


def _encoded(context: str, continuation: str, served: Served) -> Pair:
    """Encode both together; blanks that end the context belong to the continuation, whose tokens begin with them."""
    kept = context.rstrip()
    alone, whole = served.tokenizer.encode_batch([kept, context + continuation])
    return whole[: len(alone)], whole[len(alone) :], whole[: len(alone)] != alone


async def _by_engine(
    context: Context, http: Request, pairs: Sequence[Pair]
) -> tuple[list[list[float | None]], list[bool | None]]:
    requests = [
        EngineRequest([*before, *after], 0, log_probabilities=1, prompt_log_probabilities=True)
        for before, after, _ in pairs
    ]
    ticket = context.thread.open(requests)
    try:
        texts = await while_connected(http, collect(ticket), context.limits)
    finally:
        context.thread.close(ticket)
    scored = [texts[number][0].prompt[len(before) :] for number, (before, _, _) in enumerate(pairs)]
    values = [[finite(token.log_probability) for token in row] for row in scored]
    return values, [all(token.likeliest[0][1] == token.log_probability for token in row) for row in scored]


def _likelihoods(pairs: Sequence[Pair]) -> Any:
    def run(served: Served) -> tuple[list[list[float]], bool, str]:
        way = likelihood_of(served.model, served.tokenizer)
        rows = way.log_probabilities([[*before, *after] for before, after, _ in pairs])
        ends = [row[-len(after) :] for row, (_, after, _) in zip(rows, pairs, strict=True)]
        return [[float(value) for value in row] for row in ends], way.exact, way.note

    return run
