"""The HTTP server's answers: in order, framed as they must be, as soon as they are there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from typing import Any

from tests.raw_client import GET, OK, body_of, echo, echo_after, ok, respond, serving, stream
from tests.raw_http import on_both_loops, settled
from tollgate.adapters.http_server_connection import MAX_PIPELINED


@on_both_loops
async def test_a_connection_is_kept_and_pipelined_requests_are_answered_in_order() -> None:
    running = 0
    order = []

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running
        running += 1
        assert running == 1, "the next one was begun too early"
        body = await body_of(receive)
        await asyncio.sleep(0.02 if scope["path"] == "/0" else 0)
        order.append(scope["path"])
        running -= 1
        await respond(send, scope["path"].encode() + body)

    async with serving(slowly) as it:
        client = await it.connect()
        for _ in range(2):
            order.clear()
            await client.send(
                b"GET /0 HTTP/1.1\r\nhost: a\r\n\r\n"
                b"POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\none"
                b"POST /2 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n"
            )
            await asyncio.sleep(0.01)
            await client.send(b"0\r\n\r\nGET /3 HTTP/1.1\r\nhost: a\r\n\r\n")
            answers = [(await client.answer()).partition(b"\r\n\r\n")[2] for _ in range(4)]
            assert answers == [b"/0", b"/1one", b"/2two", b"/3"]
            assert order == ["/0", "/1", "/2", "/3"]


@on_both_loops
async def test_reading_pauses_while_requests_wait() -> None:
    gate = asyncio.Event()
    size = 16 << 20
    async with serving(echo_after(gate)) as it:
        client = await it.connect()
        await client.send(GET + GET)
        client.writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        waiting = await settled(client.writer.transport.get_write_buffer_size)
        assert waiting > size // 2, "the server reads on"
        gate.set()
        assert len([await client.answer() for _ in range(3)][2]) > size


@on_both_loops
async def test_too_many_pipelined_requests_end_the_connection() -> None:
    async with serving(ok) as it:
        assert await it.say(GET * (MAX_PIPELINED + 50)) == OK * MAX_PIPELINED


@on_both_loops
async def test_close_is_obeyed_on_both_sides() -> None:
    async def closing(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"ok", (b"Connection", b"Close"))

    closed = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n").replace(
        b"content-length: 2\r\nconnection: close", b"connection: close\r\ncontent-length: 2"
    )
    async with serving(ok) as it:
        assert await it.say(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: x, close\r\n\r\n") == closed
        assert await it.say(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" + GET) == closed
        assert await it.say(b"GET / HTTP/1.0\r\n\r\n") == closed
        assert await it.say(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n") == closed
    async with serving(closing) as it:
        assert await it.say(GET + GET) == closed


@on_both_loops
async def test_answers_without_a_length() -> None:
    async with serving(stream) as it:
        client = await it.connect()
        chunks = (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-stream: yes\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        )
        assert await client.ask(GET) == chunks
        assert await client.ask(GET) == chunks
        plain = b"HTTP/1.1 200 OK\r\nconnection: close\r\nx-stream: yes\r\n\r\nonetwo"
        assert await it.say(b"GET / HTTP/1.0\r\n\r\n") == plain
        head = b"HTTP/1.1 200 OK\r\nx-stream: yes\r\n\r\n"
        assert await client.ask(GET.replace(b"GET", b"HEAD")) == head
        assert await client.ask(GET) == chunks


@on_both_loops
async def test_some_answers_have_no_body() -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"lost", status=int(scope["path"][1:]))

    async with serving(answer) as it:
        client = await it.connect()

        def ask(method: str, status: int) -> Awaitable[None]:
            return client.send(f"{method} /{status} HTTP/1.1\r\nhost: a\r\n\r\n".encode())

        await ask("HEAD", 200)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
        await ask("GET", 204)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 204 No Content\r\n\r\n"
        await ask("GET", 304)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\n"
        await ask("GET", 299)
        assert await client.answer() == b"HTTP/1.1 299 \r\ncontent-length: 4\r\n\r\nlost"


@on_both_loops
async def test_an_answer_is_one_write_and_each_chunk_another() -> None:
    """Seen from the transport: what counts is not to wake the client twice for one answer."""
    writes = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        transport = send.__self__._connection._transport

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(transport, name)

            def write(self, data: bytes) -> None:
                writes.append(data)
                transport.write(data)

        send.__self__._connection._transport = Watched()
        await (stream if scope["path"] == "/stream" else ok)(scope, receive, send)
        send.__self__._connection._transport = transport

    async with serving(watched) as it:
        client = await it.connect()
        await client.ask(GET)
        assert writes == [OK]
        writes.clear()
        await client.ask(GET.replace(b"/ ", b"/stream "))
        assert writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
        assert writes[0].endswith(b"\r\n\r\n")
        assert writes[1:] == [b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n"]


@on_both_loops
async def test_a_streams_head_does_not_wait_for_its_first_piece() -> None:
    gate = asyncio.Event()

    async def gated(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await gate.wait()
        await send({"type": "http.response.body", "body": b"x"})

    async with serving(gated) as it:
        client = await it.connect()
        await client.send(GET)
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        gate.set()
        assert await client.reader.readuntil(b"0\r\n\r\n") == b"1\r\nx\r\n0\r\n\r\n"


@on_both_loops
async def test_small_writes_are_not_delayed() -> None:
    options = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        raw = send.__self__._connection._transport.get_extra_info("socket")
        options.append(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await respond(send)

    async with serving(look) as it:
        await (await it.connect()).ask(GET)
    assert options[0] != 0


@on_both_loops
async def test_an_offered_upgrade_is_declined_and_its_body_is_a_body() -> None:
    """As Java's client does: h2c offered with every request. llhttp alone would take the body for a request."""
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n"
    smuggled = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"

    async def both(scope: Any, receive: Any, send: Any) -> None:
        body = await body_of(receive)
        assert (b"upgrade", b"h2c") in scope["headers"]
        assert (b"http2-settings", b"x") in scope["headers"]
        await respond(send, scope["method"].encode() + scope["path"].encode() + body)

    sized = b"POST /1 HTTP/1.1\r\nhost: a\r\n" + offer + b"content-length: %d\r\n\r\n" % len(smuggled) + smuggled
    chunked = b"PUT /2 HTTP/1.1\r\nhost: a\r\n" + offer + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    empty = b"GET /3 HTTP/1.1\r\nhost: a\r\n" + offer + b"\r\n"
    expected = [b"POST/1" + smuggled, b"PUT/2hi", b"GET/3"]
    async with serving(both) as it:
        client = await it.connect()
        await client.send(sized + chunked + empty)
        for body in expected:
            assert (await client.answer()).endswith(b"\r\n\r\n" + body)
        for wire, body in zip((sized, chunked, empty), expected, strict=True):
            for cut in range(1, len(wire), 7):
                await client.send(wire[:cut])
                await asyncio.sleep(0)
                assert (await client.ask(wire[cut:])).endswith(b"\r\n\r\n" + body)
        closing = empty.replace(b"Upgrade,", b"Upgrade, close,")
        assert b"connection: close" in await it.say(closing)


@on_both_loops
async def test_100_continue_is_sent_when_the_body_is_wanted_and_only_then() -> None:
    head = b"POST /%b HTTP/1.1\r\nhost: a\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n"

    async def maybe(scope: Any, receive: Any, send: Any) -> None:
        await (echo if scope["path"] == "/read" else ok)(scope, receive, send)

    async with serving(maybe) as it:
        client = await it.connect()
        for _ in range(2):
            await client.send(head % b"read")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert await client.ask(b"hi") == OK.replace(b"ok", b"hi")
            assert await client.ask(head % b"read" + b"hi") == OK.replace(b"ok", b"hi")  # it did not wait
        assert b"connection: close\r\n" in await it.say(head % b"")
