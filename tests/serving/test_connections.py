"""Streams of events, without a server."""

import asyncio

from stemma.serving import connections
from stemma.serving.connections import EventStream
from stemma.serving.limits import Limits


def test_silence_is_broken_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(connections, "_SILENCE", 0.02)
    sent, ended = [], []

    async def events():
        yield "1"
        await asyncio.sleep(0.1)
        yield "2"

    async def receive():
        await asyncio.Event().wait()  # a client that stays

    async def send(message):
        sent.append(message.get("body", b"").decode())

    async def run():
        await EventStream(events(), Limits(), lambda: ended.append(True))({}, receive, send)

    asyncio.run(run())
    comments = sent.count(": keep-alive\n\n")
    assert 1 <= comments <= 6 and ended == [True]
    assert [text for text in sent if text and not text.startswith(":")] == [
        "data: 1\n\n",
        "data: 2\n\n",
        "data: [DONE]\n\n",
    ]
