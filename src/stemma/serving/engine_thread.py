"""The model's own thread: requests go in through a queue, news of their texts come back to the event loop.

The event loop never runs the model, and the model never waits for the event loop. Everything here is called by the
event loop except what is marked as the model thread's.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from stemma.errors import InputError
from stemma.inference.engine import Engine
from stemma.inference.requests import Request, Update
from stemma.serving.errors import APIError
from stemma.serving.metrics import Metrics
from stemma.serving.served import Served

logger = logging.getLogger("stemma.serving")

Result = TypeVar("Result")


class Ticket:
    """The requests to the engine that answer one HTTP request, and the news of their texts.

    News that nobody fetches are kept: at most as many as all texts have tokens.
    """

    def __init__(self, requests: Sequence[Request], metrics: Metrics) -> None:
        self.requests = list(requests)
        self.open = sum(request.samples for request in requests)  # texts that have not ended
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.accepted.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.numbers: list[int] = []  # the engine's; the model thread's
        self._metrics = metrics
        self._news: deque[tuple[int, Update] | BaseException] = deque()
        self._arrived = asyncio.Event()
        self._began = time.monotonic()
        self._latest: dict[tuple[int, int], float] = {}

    async def updates(self) -> AsyncIterator[tuple[int, Update]]:
        """Yield news with the number of the request that they are about, until all texts have ended.

        Raises:
            APIError: the requests cannot be served any more.
        """
        while self.open or self._news:
            while not self._news:
                self._arrived.clear()
                await self._arrived.wait()
            news = self._news.popleft()
            if isinstance(news, BaseException):
                raise news
            yield news

    def push(self, number: int, update: Update) -> None:
        """Take news."""
        now, text = time.monotonic(), (number, update.sample)
        if text not in self._latest:
            self._metrics.first_token.observe(now - self._began)
            if not update.sample:
                self._metrics.prompt_tokens += len(self.requests[number].tokens)
                self._metrics.prefix_tokens += update.reused
        else:
            self._metrics.per_token.observe(now - self._latest[text])
        self._metrics.generated_tokens += update.token is not None
        self._latest[text] = now
        self._news.append((number, update))
        self._arrived.set()

    def fail(self, error: BaseException) -> None:
        """End all texts with an error."""
        if not self.accepted.done():
            self.accepted.set_exception(error)
        self._news.append(error)
        self._arrived.set()


class EngineThread:
    """A thread that loads a model and then serves requests to it.

    Args:
        load: builds what is served; runs in the thread.
        queue: texts that may wait beside those that the engine writes at a time.
        on_failure: called when the model cannot be loaded or the thread has died, with the reason.
    """

    def __init__(self, load: Callable[[], Served], *, queue: int, on_failure: Callable[[BaseException], None]) -> None:
        self._load, self._queue, self._on_failure = load, queue, on_failure
        self.metrics = Metrics()
        self.served: Served | None = None
        self.failure: BaseException | None = None
        self.draining = False
        self.open_texts = 0
        self._tickets: set[Ticket] = set()
        self._calls: set[asyncio.Future[Any]] = set()
        self._answer_seconds = 1.0  # moving average
        # Of the model thread, but for putting commands in:
        self._inbox: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._jobs: deque[Callable[[], None]] = deque()
        self._routes: dict[int, tuple[Ticket, int]] = {}
        self._unfinished: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to load the model."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; wait for that a few seconds at most."""
        self._inbox.put(None)
        self._thread.join(5.0)

    @property
    def state(self) -> str:
        """Return "failed", "draining", "loading" or "ok"."""
        if self.failure is not None or (self.served is not None and not self._thread.is_alive()):
            return "failed"
        if self.draining:
            return "draining"
        return "loading" if self.served is None else "ok"

    def ready(self) -> Served:
        """Return what is served.

        Raises:
            APIError: 503, nothing is at the moment.
        """
        if self.state != "ok" or self.served is None:
            raise APIError(503, f"the model is not served at the moment: {self.state}", code=self.state, retry_after=5)
        return self.served

    def open(self, requests: Sequence[Request]) -> Ticket:
        """Send requests to the engine; await the ticket's `accepted` to know that they are valid.

        Raises:
            APIError: 503, the model is not served; 429, too many texts wait.
        """
        ticket = Ticket(requests, self.metrics)
        self._admit(ticket.open)
        self._tickets.add(ticket)
        self._inbox.put(partial(self._submit, ticket))
        return ticket

    def close(self, ticket: Ticket) -> None:
        """Forget a ticket; what is still written for it ends before the next step."""
        if ticket not in self._tickets:
            return
        self._tickets.discard(ticket)
        self._answer_seconds += 0.1 * (time.monotonic() - ticket._began - self._answer_seconds)
        if ticket.open:
            self._inbox.put(partial(self._cancel, ticket))
        self.open_texts -= ticket.open
        ticket.open = 0

    async def call(self, function: Callable[[Served], Result]) -> Result:
        """Run other work with the model, between two steps of the engine; it must not take long.

        Raises:
            APIError: as `open`; 400 for an InputError of the function.
        """
        self._admit(1)
        future: asyncio.Future[Result] = self._loop.create_future()
        self._calls.add(future)
        self._inbox.put(lambda: self._jobs.append(partial(self._work, function, future)))
        try:
            return await future
        except InputError as error:
            raise APIError(400, str(error)) from error
        finally:
            self._calls.discard(future)
            self.open_texts -= 1

    def abandon(self) -> None:
        """Answer all that is still running with an error: the server ends."""
        self._fail_all(APIError(503, "the server ends", code="draining"))

    def _admit(self, texts: int) -> None:
        served = self.ready()
        room = self._queue + (served.engine.most_texts if served.engine else 1)
        if self.open_texts and self.open_texts + texts > room:
            seconds = min(max(round(self._answer_seconds), 1), 60)
            raise APIError(429, "too many requests wait, try again later", code="queue_full", retry_after=seconds)
        self.open_texts += texts

    def _loaded(self, served: Served) -> None:
        self.served = served
        logger.info("ready", extra={"fields": {"model": served.name, "family": served.family}})

    def _failed(self, error: BaseException) -> None:
        self.failure = error
        self._fail_all(APIError(500, "the model has stopped working", code="engine_failed"))
        self._on_failure(error)

    def _fail_all(self, error: APIError) -> None:
        for ticket in self._tickets:
            ticket.fail(error)
        for future in self._calls:
            if not future.done():
                future.set_exception(error)

    def _deliver(self, news: Sequence[tuple[Ticket, int, Update]], gauges: dict[str, float]) -> None:
        self.metrics.gauges.update(gauges)
        if news:
            texts = {(update.request, update.sample) for _, _, update in news}  # guesses bring several tokens a text
            self.metrics.batch.observe(len(texts))
        for ticket, number, update in news:
            if ticket not in self._tickets:
                continue
            if update.finish_reason:
                ticket.open -= 1
                self.open_texts -= 1
            ticket.push(number, update)

    # The model thread's:

    def _run(self) -> None:
        try:
            served = self._load()
            engine = served.engine
            with engine.fast_products() if engine else nullcontext():
                if engine:
                    _warm_up(engine)
                self._post(self._loaded, served)
                while self._take_commands(wait=not self._jobs and not (engine and engine.busy)):
                    if self._jobs:
                        self._jobs.popleft()()
                    if engine and engine.busy:
                        self._step(served)
        except BaseException as error:
            if not isinstance(error, InputError):
                logger.critical("the model's thread has died", exc_info=error)
            self._post(self._failed, error)

    def _take_commands(self, wait: bool) -> bool:
        """Carry out what the event loop asks for; return False to end."""
        while wait or not self._inbox.empty():
            command = self._inbox.get()
            if command is None:
                return False
            command()
            wait = False
        return True

    def _step(self, served: Served) -> None:
        engine = served.engine
        assert engine is not None
        updates = engine.step()
        news = [(*self._routes[update.request], update) for update in updates]
        for update in updates:
            if update.finish_reason:
                self._unfinished[update.request] -= 1
                if not self._unfinished[update.request]:
                    self._forget(update.request)
        self._post(self._deliver, news, _gauges(engine))

    def _submit(self, ticket: Ticket) -> None:
        engine = self.served.engine if self.served else None
        assert engine is not None
        try:
            for number, request in enumerate(ticket.requests):
                key = engine.submit(request)
                ticket.numbers.append(key)
                self._routes[key], self._unfinished[key] = (ticket, number), request.samples
        except Exception as error:  # of this request alone: the engine has not begun with it
            self._cancel(ticket)
            if not isinstance(error, InputError):
                logger.error("a request that the engine does not take", exc_info=error)
            answer = APIError(400, str(error)) if isinstance(error, InputError) else APIError(500, "internal error")
            self._post(ticket.fail, answer)
            return
        self._post(_settle, ticket.accepted, None)

    def _cancel(self, ticket: Ticket) -> None:
        engine = self.served.engine if self.served else None
        assert engine is not None
        for key in ticket.numbers:
            if key in self._routes:
                engine.cancel(key)
                self._forget(key)
        self._post(self._deliver, [], _gauges(engine))

    def _forget(self, key: int) -> None:
        del self._routes[key], self._unfinished[key]

    def _work(self, function: Callable[[Served], Result], future: "asyncio.Future[Result]") -> None:
        if future.cancelled():
            return
        assert self.served is not None
        try:
            self._post(_settle, future, function(self.served))
        except Exception as error:
            self._post(_settle, future, None, error)

    def _post(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            logger.debug("news after the end")


def _warm_up(engine: Engine) -> None:
    """Write a little: what is compiled when it is first used is compiled before somebody waits for it."""
    engine.run([Request([0], 3, ignore_end=True)])


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _gauges(engine: Engine) -> dict[str, float]:
    pools = [group.pool for group in engine.cache.groups]
    return {
        "queue_length": engine.waiting,
        "running_texts": engine.running,
        "cache_used_ratio": engine.cache.used,
        "cache_blocks_used": sum(pool.blocks - pool.free for pool in pools),
    }
