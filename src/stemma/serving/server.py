"""The process: listening, signals, and an end that leaves nobody without an answer."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stemma.errors import InputError
from stemma.serving.application import JSONLines, application
from stemma.serving.context import Context
from stemma.serving.engine_thread import EngineThread
from stemma.serving.limits import Limits
from stemma.serving.served import Served

logger = logging.getLogger("stemma.serving")

_LAST_WORDS = 6  # seconds after the grace for answers that say that it is over


def serve(
    load: Callable[[], Served],
    *,
    host: str,
    port: int,
    limits: Limits,
    keys: Sequence[str],
    origins: Sequence[str],
) -> int:
    """Serve a model until SIGTERM or SIGINT, and return the exit code: 0, or 1 if the model's thread has died.

    The first signal stops accepting; what runs is finished, at most `limits.grace` seconds. The second SIGINT kills.

    Args:
        load: builds what is served, while the server already answers (503).
    Raises:
        InputError: the model cannot be loaded, or the address cannot be used.
    """
    _log_as_json()
    server: _Server | None = None

    def end(error: BaseException) -> None:
        if server is not None:
            server.should_exit = True

    thread = EngineThread(load, queue=limits.queue, on_failure=end)
    app = application(Context(thread, limits), keys, origins)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_timed_protocol(limits.header_seconds),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(round(limits.header_seconds), 1),
        timeout_graceful_shutdown=round(limits.grace) + _LAST_WORDS,
    )
    server = _Server(config, thread, limits.grace)
    if host not in ("127.0.0.1", "::1", "localhost") and not keys:
        logger.warning("listening on %s without an API key: everybody who reaches it is served", host)
    try:
        asyncio.run(server.serve())
    except SystemExit:  # uvicorn's, after it has logged why
        raise InputError(f"cannot listen on {host}:{port}: is another program there? (see the line above)") from None
    thread.stop()
    if isinstance(thread.failure, InputError):
        raise thread.failure
    return 0 if thread.failure is None else 1


class _Server(uvicorn.Server):
    """uvicorn's server with our signals, which also starts the model's thread."""

    def __init__(self, config: uvicorn.Config, thread: EngineThread, grace: float) -> None:
        super().__init__(config)
        self._thread, self._grace = thread, grace

    async def startup(self, sockets: Any = None) -> None:
        """Listen, then load."""
        await super().startup(sockets)
        for one in self.servers:
            for listening in one.sockets:
                address, port = listening.getsockname()[:2]
                logger.info("listening", extra={"fields": {"host": address, "port": port}})
        self._thread.start()

    async def shutdown(self, sockets: Any = None) -> None:
        """Refuse new requests, wait for the running ones, cancel the rest."""
        self._thread.draining = True
        late = asyncio.get_running_loop().call_later(self._grace, self._thread.abandon)
        await super().shutdown(sockets)
        late.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; unlike uvicorn's, end with an exit code instead of the signal again."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End gracefully; at once, if it is SIGINT again."""
        if self.should_exit and sig == signal.SIGINT:
            sys.stderr.flush()
            os._exit(130)
        self.should_exit = True


def _timed_protocol(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol, which closes connections on which no request begins in so many seconds."""

    class Timed(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(seconds, self._close_if_idle)

        def data_received(self, data: bytes) -> None:
            # Of uvicorn's own timer the next byte would be the end; here headers have to be complete in time.
            timer = self.timeout_keep_alive_task
            self.timeout_keep_alive_task = None
            cycle = self.cycle
            super().data_received(data)
            if timer is not None:
                if self.cycle is cycle and self.timeout_keep_alive_task is None:
                    self.timeout_keep_alive_task = timer
                else:
                    timer.cancel()

        def _close_if_idle(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return Timed


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    for name in ("stemma.serving", "uvicorn"):
        named = logging.getLogger(name)
        named.handlers, named.propagate = [handler], False
        named.setLevel(logging.INFO if name == "stemma.serving" else logging.WARNING)
