"""Answers to clients that may leave at any moment, read slowly, or wait for too long."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stemma.serving.errors import APIError
from stemma.serving.limits import Limits

Result = TypeVar("Result")

LEFT = 499  # as nginx calls it: the client has closed the connection before it was answered
_SILENCE = 15.0  # seconds after which a stream gets a comment line, so that nobody between closes it
_LAST_WORDS = 5.0  # seconds for an error to reach a client that reads slowly


async def while_connected(http: Request, work: Coroutine[Any, Any, Result], limits: Limits) -> Result:
    """Return the result of work for a client, which is cancelled if that leaves or the time is over.

    Raises:
        APIError: 499, 504, and what the work raises.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(http.receive))
    try:
        await asyncio.wait({task, left}, timeout=_remaining(http.scope, limits), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if left.done():
            raise APIError(LEFT, "the client has left")
        raise _too_late(limits)
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


class EventStream(Response):
    """Server-sent events (WHATWG HTML, section 9.2), each a JSON object, and "[DONE]" at the end.

    Events are taken from `events` no faster than the client reads them. `on_end` is called in any case.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], limits: Limits, on_end: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._limits, self._on_end = events, limits, on_end
        self._spoke = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        writer, left = asyncio.ensure_future(self._write(send)), asyncio.ensure_future(_left(receive))
        comments = asyncio.ensure_future(self._break_silence(send))
        left_early = False
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            limit = _remaining(scope, self._limits)
            await asyncio.wait({writer, left}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
                return
            left_early = left.done()
            scope["stemma.status"] = LEFT if left_early else 504
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            if not left_early:
                await asyncio.wait_for(_send_last(send, _too_late(self._limits)), _LAST_WORDS)
        except TimeoutError:
            pass  # a client that reads nothing; the connection is closed because the answer is not complete
        finally:
            for task in (writer, left, comments):
                task.cancel()
            await asyncio.gather(writer, left, comments, return_exceptions=True)
            self._on_end()
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        try:
            async for event in self._events:
                await _send(send, f"data: {event}\n\n")
                self._spoke = time.monotonic()
        except APIError as error:
            await _send_last(send, error)
            return
        await _send(send, "data: [DONE]\n\n", more=False)

    async def _break_silence(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._spoke + _SILENCE - time.monotonic())
            if time.monotonic() >= self._spoke + _SILENCE:
                await _send(send, ": keep-alive\n\n")
                self._spoke = time.monotonic()


async def _send_last(send: Send, error: APIError) -> None:
    await _send(send, f"data: {json.dumps(error.body())}\n\n", more=False)


async def _send(send: Send, text: str, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _remaining(scope: Scope, limits: Limits) -> float:
    """Return the seconds that are left of a request's deadline."""
    return max(scope.get("stemma.began", time.monotonic()) + limits.deadline - time.monotonic(), 0.0)


def _too_late(limits: Limits) -> APIError:
    return APIError(504, f"not answered within {limits.deadline:g} seconds", code="deadline_exceeded")
