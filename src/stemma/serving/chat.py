"""`POST /v1/chat/completions`: the next turn of a conversation."""

import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stemma.errors import InputError
from stemma.inference.requests import Constraint, Scored
from stemma.serving.constraints import constraint_for, depth_of
from stemma.serving.context import context_of
from stemma.serving.engine_thread import Ticket
from stemma.serving.errors import wrong
from stemma.serving.limits import SCHEMA_BYTES, SCHEMA_DEPTH
from stemma.serving.sampling import engine_requests
from stemma.serving.schemas import ChatBody, Message, NamedTool
from stemma.serving.served import Served
from stemma.serving.texts import REASONS, Text, collect, finite, usage
from stemma.serving.tool_calls import CALLS, calls_schema, parse_tool_calls, writes_calls

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, http: Request) -> Response:
    """Answer a conversation."""
    context = context_of(http)
    served = context.serves(body.model)
    if served.template is None:
        message = f"{served.name} has no chat template and so is no chat model: use /v1/completions"
        raise wrong("messages", message, "no_chat_template")
    prompt, constraint = await context.in_background(http, _prepared, body, served)
    requests = engine_requests(
        body,
        [prompt],
        served,
        context.limits,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        samples=body.n,
        log_probabilities=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=constraint,
    )
    ticket = context.thread.open(requests)
    answer = _Answer(body, served, ticket)
    return await context.answer(http, ticket, answer.events() if body.stream else answer.whole())


def _prepared(body: ChatBody, served: Served) -> tuple[list[int], Constraint | None]:
    """Return the conversation as tokens, and what the answer must look like."""
    assert served.template is not None
    tools = _tools(body)
    messages = [_plain(message) for message in body.messages]
    try:
        written = served.template.write(messages, served.tokenizer, tools)
        tokens: list[int] = served.finder.encode(written, add_special_tokens=False).ids
    except InputError as error:
        raise wrong("messages", str(error)) from error
    except (TypeError, UnicodeEncodeError):
        raise wrong("messages", "half of a surrogate pair, which is not valid Unicode") from None
    if called := _called(body, tools or []):
        mark = served.tokenizer.backend.token_to_id(CALLS)
        schema = calls_schema(called, body.parallel_tool_calls)
        return [*tokens, *([] if mark is None else [mark])], constraint_for(schema, served, "tools")
    return tokens, _constraint(body, served)


def _tools(body: ChatBody) -> list[dict[str, Any]] | None:
    if not body.tools or body.tool_choice == "none":
        return None
    tools = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in body.tools]
    if len(json.dumps(tools)) > SCHEMA_BYTES or depth_of(tools) > SCHEMA_DEPTH:
        raise wrong("tools", f"more than {SCHEMA_BYTES} bytes of tools, or nested more than {SCHEMA_DEPTH} deep")
    return tools


def _called(body: ChatBody, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tools of which one must be called; none: the model decides."""
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        if named := [tool for tool in tools if tool["function"]["name"] == name]:
            return named
        raise wrong("tool_choice", f"{name!r} is none of the tools")
    return tools if body.tool_choice == "required" else []


def _constraint(body: ChatBody, served: Served) -> Constraint | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    schema = None if wanted.json_schema is None else wanted.json_schema.schema_
    return constraint_for(schema, served, "response_format")


def _plain(message: Message) -> dict[str, Any]:
    """Return a message as templates know it; the arguments of calls are objects there, not JSON."""
    plain: dict[str, Any] = {"role": message.role, "content": message.text()}
    if message.role == "developer":
        plain["role"] = "system"
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            plain[name] = value
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
            for call in message.tool_calls
            for arguments in [_arguments(call.function.arguments)]
        ]
    return plain


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"the arguments of a tool call are not JSON: {text[:60]!r}") from None


class _Answer:
    """The answer to one request."""

    def __init__(self, body: ChatBody, served: Served, ticket: Ticket) -> None:
        self.body, self.served, self.ticket = body, served, ticket
        self.calls_tools = bool(body.tools) and body.tool_choice != "none"
        self.must_call = self.calls_tools and body.tool_choice not in (None, "auto")
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        texts = (await collect(self.ticket))[0]
        choices = []
        for number, text in enumerate(texts):
            content, calls = self._parsed(text)
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if calls:
                message |= {"content": content or None, "tool_calls": calls}
            logprobs = {"content": self._logprobs(text.tokens), "refusal": None} if self.body.logprobs else None
            reason = "tool_calls" if calls else text.finish_reason
            choices.append({"index": number, "message": message, "logprobs": logprobs, "finish_reason": reason})
        counts = usage(self.ticket.requests, sum(len(text.tokens) for text in texts), texts[0].reused)
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": counts}

    def _parsed(self, text: Text) -> tuple[str, list[dict[str, Any]]]:
        if not self.calls_tools:
            return text.text, []
        content, calls = parse_tool_calls(
            [one.token for one in text.tokens], self.served.tokenizer, begun=self.must_call
        )
        return (content, calls if self.body.parallel_tool_calls else calls[:1]) if calls else (text.text, [])

    def _may_call(self, text: Text) -> bool:
        return self.must_call or writes_calls([one.token for one in text.tokens], self.served.tokenizer)

    def _logprobs(self, scored: Sequence[Scored]) -> list[dict[str, Any]]:
        def about(token: int, value: float | None) -> dict[str, Any]:
            content = self.served.texts.bytes(token)
            return {"token": self.served.texts.text(token), "logprob": finite(value), "bytes": list(content)}

        return [
            about(one.token, one.log_probability) | {"top_logprobs": [about(*pair) for pair in one.likeliest]}
            for one in scored
        ]

    async def events(self) -> AsyncGenerator[str]:
        """Yield the role of each choice, then its text in pieces, then why it ended."""
        texts = [Text() for _ in range(self.body.n)]
        held = [self.calls_tools] * self.body.n  # texts that may turn out to be calls of tools
        pending: list[list[Scored]] = [[] for _ in texts]
        for number in range(self.body.n):
            yield self._event(number, {"role": "assistant", "content": ""})
        async for _, update in self.ticket.updates():
            number, text = update.sample, texts[update.sample]
            text.add(update)
            pending[number] += [] if update.token is None else [update.token]
            piece = update.text
            if held[number]:
                if self._may_call(text) and not text.finish_reason:
                    continue
                calls = self._parsed(text)[1] if text.finish_reason else []
                if calls:
                    delta = {"tool_calls": [{"index": place, **call} for place, call in enumerate(calls)]}
                    yield self._event(number, delta, pending[number])
                    yield self._event(number, {}, reason="tool_calls")
                    continue
                held[number], piece = False, text.text
            if piece or (self.body.logprobs and pending[number]):
                yield self._event(number, {"content": piece}, pending[number])
            pending[number] = []
            if update.finish_reason:
                yield self._event(number, {}, reason=REASONS[update.finish_reason])
        if self.body.with_usage:
            counts = usage(self.ticket.requests, sum(len(text.tokens) for text in texts), texts[0].reused)
            head = {**self.head, "object": "chat.completion.chunk"}
            yield json.dumps({**head, "choices": [], "usage": counts}, ensure_ascii=False)

    def _event(
        self,
        number: int,
        delta: dict[str, Any],
        scored: Sequence[Scored] = (),
        reason: str | None = None,
    ) -> str:
        logprobs = {"content": self._logprobs(scored), "refusal": None} if self.body.logprobs and scored else None
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        event = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        return json.dumps(event | ({"usage": None} if self.body.with_usage else {}), ensure_ascii=False)
