"""What every route needs: the model's thread, the limits, and how an answer is given."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response

from stemma.errors import InputError
from stemma.serving.connections import EventStream, while_connected
from stemma.serving.engine_thread import EngineThread, Ticket
from stemma.serving.errors import APIError
from stemma.serving.limits import Limits
from stemma.serving.served import Served

Result = TypeVar("Result")

_QUICK = 16384  # bytes of a body up to which the event loop itself encodes it


@dataclass
class Context:
    """The server's state."""

    thread: EngineThread
    limits: Limits

    def serves(self, model: str | None) -> Served:
        """Return what is served, if it is what a client asks for.

        Raises:
            APIError: 404, another model; 503, nothing is served at the moment.
        """
        served = self.thread.ready()
        if model is not None and model != served.name:
            message = f"the model {model!r} is not served here, but {served.name!r} is"
            raise APIError(404, message, parameter="model", code="model_not_found")
        return served

    async def in_background(self, http: Request, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function of a client's input, beside the event loop if that is long.

        Raises:
            APIError: 400 for an InputError.
        """
        try:
            if http.scope.get("stemma.body", 0) <= _QUICK:
                return function(*arguments)
            return await asyncio.to_thread(function, *arguments)
        except InputError as error:
            raise APIError(400, str(error)) from error

    async def answer(
        self, http: Request, ticket: Ticket, content: AsyncGenerator[str] | Coroutine[Any, Any, dict[str, Any]]
    ) -> Response:
        """Return the response to a request for texts, whole or as a stream of events; the ticket is closed in the end.

        Raises:
            APIError: an answer that is an error, before anything is sent.
        """
        if isinstance(content, AsyncGenerator):
            try:
                await while_connected(http, _accepted(ticket), self.limits)
            except BaseException:
                self.thread.close(ticket)
                raise
            return EventStream(content, self.limits, on_end=lambda: self.thread.close(ticket))
        try:
            return JSONResponse(await while_connected(http, content, self.limits))
        finally:
            self.thread.close(ticket)

    async def call(self, http: Request, function: Callable[[Served], Result]) -> Result:
        """Run a function in the model's thread for a client.

        Raises:
            APIError: see `EngineThread.call` and `while_connected`.
        """
        return await while_connected(http, self.thread.call(function), self.limits)


def context_of(http: Request) -> Context:
    """Return the state of the server that a request has come to."""
    context: Context = http.app.state.context
    return context


async def _accepted(ticket: Ticket) -> None:
    await ticket.accepted
