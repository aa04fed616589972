"""How the HTTP server starts and ends its application."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.raw_client import GET, drained, respond, serving
from tests.raw_http import on_both_loops, until
from tests.waiting import PATIENCE_S


@on_both_loops
async def test_stopping_lets_requests_end_and_nothing_begin() -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def gated(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/wait":
            begun.set()
            await gate.wait()
        await respond(send, scope["path"].encode())

    async with serving(gated) as it:
        idle, busy = await it.connect(), await it.connect()
        await idle.ask(GET)
        await busy.send(GET.replace(b"/ ", b"/wait ") + GET)
        await begun.wait()
        stopping = asyncio.create_task(it.server.stop(PATIENCE_S))
        assert await idle.rest() == b""
        with pytest.raises(ConnectionError):
            await it.connect()
        assert not stopping.done()
        gate.set()
        answer = await busy.rest()
        assert answer.endswith(b"\r\n\r\n/wait"), "the pipelined one is not begun"
        assert b"connection: close" in answer
        await stopping


@on_both_loops
async def test_stopping_waits_for_applications_whose_client_has_left_but_not_for_ever() -> None:
    ended = []
    begun = asyncio.Event()

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await drained(receive)
        try:
            await asyncio.sleep(0.2 if scope["path"] == "/a" else 60)
            ended.append("whole")
        finally:
            ended.append(scope["path"])

    for path, patience_s, expected in (("/a", PATIENCE_S, ["whole", "/a"]), ("/b", 0.5, ["/b"])):
        ended.clear()
        begun.clear()
        async with serving(stubborn) as it:
            client = await it.connect()
            await client.send(GET.replace(b"/ ", path.encode() + b" "))
            await begun.wait()
            client.writer.close()
            await it.server.stop(patience_s)
        assert ended == expected


@on_both_loops
async def test_a_hurry_ends_the_wait() -> None:
    begun = asyncio.Event()

    async def never(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.sleep(60)

    async with serving(never) as it:
        client = await it.connect()
        await client.send(GET)
        await begun.wait()
        stopping = asyncio.create_task(it.server.stop(2 * PATIENCE_S))
        await until(lambda: it.server.stopping)
        it.server.hurry()
        await stopping
