"""The HTTP server and clients that are slow, stop reading, or leave."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.raw_client import GET, OK, body_of, drained, echo, echo_after, ok, refused, respond, serving
from tests.raw_http import on_both_loops, settled, until
from tollgate.adapters.http_server import ServerTimeouts
from tollgate.adapters.http_server_connection import HIGH_WATER


@on_both_loops
async def test_slow_clients_have_deadlines() -> None:
    timeouts = ServerTimeouts(keep_alive=0.8, head=0.4, body=0.4)
    loop = asyncio.get_running_loop()
    async with serving(echo, timeouts=timeouts) as it:
        started = loop.time()
        assert await it.say(b"") == b""
        assert await it.say(GET) == OK.replace(b"2\r\n\r\nok", b"0\r\n\r\n")
        assert loop.time() - started > 1.2

        client = await it.connect()

        async def drip() -> None:
            for byte in GET:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.03)

        dripping = asyncio.create_task(drip())
        refused(408, await client.rest())
        dripping.cancel()
        refused(408, await it.say(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhell"))

    async with serving(echo, timeouts=ServerTimeouts(body=1)) as it:
        client = await it.connect()  # slowly, but never silent for too long
        await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n")
        for _ in range(12):
            await asyncio.sleep(0.1)
            await client.send(b"x")
        assert (await client.answer()).endswith(b"x" * 12)


@on_both_loops
async def test_the_application_may_take_its_time() -> None:
    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.8)
        await echo(scope, receive, send)

    async with serving(slowly, timeouts=ServerTimeouts(keep_alive=0.5, head=0.5, body=0.5, write=0.5)) as it:
        client = await it.connect()
        assert (await client.ask(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi")).endswith(b"hi")
        # a body that waits for the application is not a silence of the client's
        size = HIGH_WATER * 8
        client = await it.connect()
        sending = asyncio.create_task(
            client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        )
        assert len(await client.answer()) > size
        await sending


@on_both_loops
async def test_a_body_that_nobody_reads_stops_the_client() -> None:
    gate = asyncio.Event()
    size = 16 << 20
    async with serving(echo_after(gate)) as it:
        client = await it.connect()
        client.writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        assert await settled(client.writer.transport.get_write_buffer_size) > size // 2
        gate.set()
        assert len(await client.answer()) > size


@on_both_loops
async def test_send_waits_for_a_slow_reader_and_not_for_ever() -> None:
    sent = 0
    left = asyncio.Event()

    async def pour(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1024):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            sent += 1
        await send({"type": "http.response.body"})
        assert (await receive())["type"] in ("http.request", "http.disconnect")
        left.set()

    async with serving(pour, timeouts=ServerTimeouts(write=1.5)) as it:
        client = await it.connect(receive_buffer=1 << 16)
        await client.send(GET)
        await asyncio.sleep(0.2)
        assert sent < 512, "it does not wait"
        for _ in range(6):  # slower than the server's patience in all, but never without progress
            await asyncio.sleep(0.3)
            await client.reader.readexactly(1 << 20)
        assert not left.is_set()
        await left.wait()  # nothing is read any more
        assert sent == 1024, "the application goes on, for nobody"


@on_both_loops
async def test_a_client_that_leaves_is_told_to_the_application_which_goes_on() -> None:
    told: list[Any] = []
    done = asyncio.Event()

    async def persistent(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        told.append(await receive())
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        await send({"type": "http.response.body"})
        told.append(await receive())
        done.set()

    async with serving(persistent) as it:
        for leave in ("close", "abort"):
            client = await it.connect()
            await client.send(GET)
            await client.reader.readuntil(b"x\r\n")
            getattr(client.writer.transport, leave)()
            await done.wait()
            assert told == [{"type": "http.disconnect"}] * 2
            told.clear()
            done.clear()


@on_both_loops
async def test_a_client_that_leaves_within_its_request() -> None:
    told: list[Any] = []
    begun = asyncio.Event()

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        while (message := await receive())["type"] == "http.request":
            continue
        told.append(message)

    async with serving(reads) as it:
        client = await it.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhell")
        await begun.wait()
        client.writer.close()
        await until(lambda: told)
        assert told == [{"type": "http.disconnect"}]


@on_both_loops
async def test_after_the_answer_receive_says_disconnect() -> None:
    told = []

    async def ask(scope: Any, receive: Any, send: Any) -> None:
        waiting = asyncio.ensure_future(drained(receive))
        await respond(send)
        told.append(await waiting)

    async with serving(ask) as it:
        client = await it.connect()
        assert await client.ask(GET) == OK
        assert await client.ask(GET) == OK
    assert told == [{"type": "http.disconnect"}] * 2


@on_both_loops
async def test_connections_are_bounded() -> None:
    async with serving(ok, max_connections=2) as it:
        clients = [await it.connect() for _ in range(2)]
        assert [await client.ask(GET) for client in clients] == [OK, OK]
        assert await (await it.connect()).rest() == b""
        clients[0].writer.close()
        closing = GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        while not (answer := await it.say(closing)):  # the server has yet to hear of the close
            continue
        assert answer.endswith(b"\r\n\r\nok")
