"""The application: routes, and round them what every request passes: the key, the size, the log, the errors."""

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stemma import __version__
from stemma.serving import chat, completions, embeddings, infill, monitoring, score, tokenization
from stemma.serving.connections import LEFT
from stemma.serving.context import Context
from stemma.serving.errors import APIError, validation_error

logger = logging.getLogger("stemma.serving")

_OPEN_PATHS = {"/health"}  # asked by supervisors that have no key
_WASTE = 16  # times the limit of a body that is still read (and dropped) so that the client sees why it is refused


def application(context: Context, keys: Sequence[str] = (), origins: Sequence[str] = ()) -> FastAPI:
    """Return the application.

    Args:
        keys: one of them is asked for; none: everybody is served. origins: of web pages that may call (CORS).
    """
    app = FastAPI(title="stemma", version=__version__, description="Language models over OpenAI's interface.")
    app.state.context = context
    for module in (completions, chat, embeddings, infill, score, tokenization, monitoring):
        app.include_router(module.router)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(APIError, _api_error)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(_Body, context=context)
    app.add_middleware(_Key, keys=keys)
    app.add_middleware(_Log, context=context)
    return app


async def _invalid(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return validation_error(error.errors()).response()


async def _http_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{http.method} {http.url.path}"
    message = f"{where}: {error.detail}"
    return APIError(error.status_code, message, code="not_found" if error.status_code == 404 else None).response()


async def _api_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, APIError)
    return error.response()


class _Log:
    """One line a request, without what is in it; its count; and an answer when our own code fails."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self.app, self.context = app, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["stemma.began"] = time.monotonic()
        identity, status = secrets.token_hex(8), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", identity.encode()))
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except asyncio.CancelledError:
            scope["stemma.status"] = 503  # the server ends
            raise
        except Exception as error:
            logger.error("internal error", exc_info=error, extra={"fields": {"request": identity}})
            if status:
                raise
            await APIError(500, f"internal error, request {identity}").response()(scope, receive, watched)
        finally:
            self._tell(scope, identity, scope.get("stemma.status") or status or LEFT)

    def _tell(self, scope: MutableMapping[str, Any], identity: str, status: int) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.context.thread.metrics.count_request(route, status)
        seconds = round(time.monotonic() - scope["stemma.began"], 4)
        fields = {"request": identity, "method": scope["method"], "path": route, "status": status, "seconds": seconds}
        level = logging.DEBUG if route in ("/health", "/metrics") else logging.INFO
        logger.log(level, "request", extra={"fields": fields})


class _Key:
    """Lets through whoever has a key."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys and scope["path"] not in _OPEN_PATHS and scope["method"] != "OPTIONS":
            given = dict(scope["headers"]).get(b"authorization", b"")
            kind, _, key = given.partition(b" ")
            known = [hmac.compare_digest(key.strip(), one) for one in self.keys]  # each in the same time
            if kind.lower() != b"bearer" or not any(known):
                what = "wrong API key" if given else "no API key: expected 'Authorization: Bearer KEY'"
                error = APIError(401, what, code="invalid_api_key")
                return await error.response()(scope, receive, send)
        await self.app(scope, receive, send)


class _Body:
    """Reads the body before anything else happens, in bounded size and time."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self.app, self.limits = app, context.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self.limits.deadline)
        except TimeoutError:
            return await APIError(408, "the body did not arrive in time").response()(scope, receive, send)
        except APIError as error:
            return await error.response()(scope, receive, send)
        if body is None:
            return
        scope["stemma.body"] = len(body)
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replayed() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message if message is not None else await receive()

        await self.app(scope, replayed, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body; None if the client has left.

        Raises:
            APIError: 413.
        """
        most = self.limits.body
        error = APIError(413, f"the body has more than {most} bytes", code="body_too_large")
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > _WASTE * most:
            raise error
        parts, size = [], 0
        while True:
            message = await asyncio.wait_for(receive(), self.limits.header_seconds)
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= most:
                parts.append(part)
            elif size > _WASTE * most:
                raise error
            if not message.get("more_body"):
                break
        if size > most:
            raise error
        return b"".join(parts)


class JSONLines(logging.Formatter):
    """A log with a JSON object on each line: time, level, event, and the record's own `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
