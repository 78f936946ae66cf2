"""`POST /v1/completions`: texts that go on with a prompt, and how likely a prompt is."""

import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stemma.inference.requests import Scored
from stemma.serving.context import context_of
from stemma.serving.engine_thread import Ticket
from stemma.serving.errors import wrong
from stemma.serving.sampling import engine_requests
from stemma.serving.schemas import CompletionBody
from stemma.serving.served import Served
from stemma.serving.texts import REASONS, Text, collect, finite, usage

router = APIRouter()


@router.post("/v1/completions")
async def completions(body: CompletionBody, http: Request) -> Response:
    """Go on with one or several prompts."""
    context = context_of(http)
    served = context.serves(body.model)
    if body.suffix is not None:
        raise wrong("suffix", f"a {served.family} model does not fill in before a suffix: see /v1/infill")
    best_of = body.best_of or body.n
    if best_of < body.n:
        raise wrong("best_of", f"best_of is {best_of}, expected at least n, which is {body.n}")
    if best_of > body.n and body.stream:
        raise wrong("best_of", "the best texts are known at the end only: no stream")
    texts, prompts = await context.in_background(http, _prompts, body, served)
    requests = engine_requests(
        body,
        prompts,
        served,
        context.limits,
        max_tokens=body.max_tokens,
        samples=best_of,
        log_probabilities=0 if body.logprobs is None and best_of > body.n else body.logprobs,
        prompt_log_probabilities=body.echo and body.logprobs is not None,
    )
    ticket = context.thread.open(requests)
    answer = _Answer(body, served, texts, ticket)
    return await context.answer(http, ticket, answer.events() if body.stream else answer.whole())


def _prompts(body: CompletionBody, served: Served) -> tuple[list[str], list[list[int]]]:
    """Return the prompts as text (for an echo) and as tokens; an empty text begins where texts begin."""
    given: Any = body.prompt
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    if isinstance(given[0], str):
        return given, served.encode_prompts(given)
    return [served.tokenizer.decode(tokens) for tokens in given] if body.echo else [""] * len(given), given


class _Answer:
    """The answer to one request."""

    def __init__(self, body: CompletionBody, served: Served, prompts: Sequence[str], ticket: Ticket) -> None:
        self.body, self.served, self.prompts, self.ticket = body, served, prompts, ticket
        self.head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time())}
        self.head["model"] = served.name

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        texts = await collect(self.ticket)
        choices = []
        for number, family in enumerate(texts):
            best = sorted(family, key=lambda text: -text.mean_log_probability)[: self.body.n]
            for sample, text in enumerate(best if len(family) > self.body.n else family):
                choices.append(self._choice(number, sample, text))
        generated = sum(len(text.tokens) for family in texts for text in family)
        reused = sum(family[0].reused for family in texts)
        return {**self.head, "choices": choices, "usage": usage(self.ticket.requests, generated, reused)}

    def _choice(self, number: int, sample: int, text: Text) -> dict[str, Any]:
        prompt = self.prompts[number] if self.body.echo else ""
        return {
            "index": number * self.body.n + sample,
            "text": prompt + text.text,
            "logprobs": self._logprobs([*text.prompt, *text.tokens], 0 if text.prompt else len(prompt)),
            "finish_reason": text.finish_reason,
        }

    def _logprobs(self, scored: Sequence[Scored], begin: int) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        tokens, by_id = [one.token for one in scored], self.body.return_tokens_as_token_ids
        name: Callable[[int], str] = "token_id:{}".format if by_id else self.served.texts.text
        likeliest: list[dict[str, float | None] | None] = []
        for one in scored:
            found: dict[str, float | None] = {}
            for token, value in [*one.likeliest, (one.token, one.log_probability)]:
                found.setdefault(name(token), finite(value))
            likeliest.append(None if one.log_probability is None else found)
        return {
            "tokens": [name(token) for token in tokens],
            "token_logprobs": [finite(one.log_probability) for one in scored],
            "top_logprobs": likeliest,
            "text_offset": list(self.served.texts.offsets(tokens, begin)),
        }

    async def events(self) -> AsyncGenerator[str]:
        """Yield the answer in pieces."""
        rest: dict[str, Any] = {"usage": None} if self.body.with_usage else {}
        sent: dict[tuple[int, int], int] = {}  # characters of each choice
        generated = reused = 0
        async for number, update in self.ticket.updates():
            scored = [] if update.token is None else [update.token]
            piece, place = update.text, (number, update.sample)
            generated += len(scored)
            if place not in sent:
                prompt = self.prompts[number] if self.body.echo else ""
                piece, sent[place] = prompt + piece, 0 if update.prompt else len(prompt)
                reused += update.reused if not update.sample else 0
            logprobs = self._logprobs([*(update.prompt or ()), *scored], sent[place])
            sent[place] += len(piece) if update.prompt else len(update.text)
            if piece or logprobs or update.finish_reason:
                choice = {
                    "index": number * self.body.n + update.sample,
                    "text": piece,
                    "logprobs": logprobs,
                    "finish_reason": REASONS[update.finish_reason] if update.finish_reason else None,
                }
                yield json.dumps({**self.head, "choices": [choice], **rest}, ensure_ascii=False)
        if self.body.with_usage:
            counts = usage(self.ticket.requests, generated, reused)
            yield json.dumps({**self.head, "choices": [], "usage": counts}, ensure_ascii=False)
