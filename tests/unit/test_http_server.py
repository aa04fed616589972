"""The HTTP server over raw sockets: exactly these bytes in, exactly those out, on both loops."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tests.raw_http import on_both_loops
from tollgate.adapters.http_server import HttpServer, Lifespan, ServerTimeouts, listen
from tollgate.adapters.http_server_connection import HIGH_WATER, MAX_HEAD, MAX_HEADERS, MAX_PIPELINED
from tollgate.adapters.http_server_message import encode_head, parse_target

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"

App = Callable[[Any, Any, Any], Awaitable[None]]


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bytes:
        """One whole answer, with its framing."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head:
            body = b""
            while not body.endswith(b"0\r\n\r\n"):
                body += await self.reader.readuntil(b"\r\n")
            return head + body
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        return head + (await self.reader.readexactly(lengths[0]) if lengths else b"")

    async def ask(self, data: bytes) -> bytes:
        await self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """Everything until the server closes (a reset ends it, too)."""
        data = b""
        with suppress(ConnectionError):
            while more := await self.reader.read(65536):
                data += more
        return data


class Serving:
    def __init__(self, server: HttpServer, port: int) -> None:
        self.server, self.port = server, port
        self.clients: list[Client] = []

    async def connect(self, receive_buffer: int = 0) -> Client:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        client = Client(*await asyncio.open_connection(sock=sock))
        self.clients.append(client)
        return client

    async def say(self, data: bytes) -> bytes:
        """Everything that a connection of its own gets for these bytes, until it is closed."""
        client = await self.connect()
        await client.send(data)
        return await client.rest()


@asynccontextmanager
async def serving(app: App, **options: Any) -> AsyncIterator[Serving]:
    listener = listen("127.0.0.1", 0)
    serving = Serving(HttpServer(app, **options), listener.getsockname()[1])
    await serving.server.start(listener)
    try:
        yield serving
    finally:
        for client in serving.clients:
            client.writer.transport.abort()
        await serving.server.stop(0.5)


async def body_of(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request", message
        body += message["body"]
        more = message["more_body"]
    return body


async def respond(send: Any, body: bytes = b"ok", *headers: tuple[bytes, bytes], status: int = 200) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def ok(scope: Any, receive: Any, send: Any) -> None:
    await respond(send)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, await body_of(receive))


def echo_after(gate: asyncio.Event) -> Any:
    """An application that takes nothing in before the gate is opened."""

    async def gated(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await echo(scope, receive, send)

    return gated


async def path(scope: Any, receive: Any, send: Any) -> None:
    await body_of(receive)
    await respond(send, scope["path"].encode())


async def stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Stream", b"yes")]})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await send({"type": "http.response.body", "body": b"two", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# -- Requests as they should be ----------------------------------------------------------------------------------------


@on_both_loops
async def test_the_scope_is_what_asgi_says() -> None:
    seen = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, await body_of(receive)))
        await respond(send)

    async with serving(look) as it:
        client = await it.connect()
        request = b"POST /a%20b/%C3%A9?q=%20&r HTTP/1.1\r\nHost: a\r\nX-B:  1 \r\nX-A: \r\nx-b: 2\t\r\n"
        request += b"Content-Length: 2\r\n\r\nhi"
        assert await client.ask(request) == OK
        own = client.writer.get_extra_info("sockname")
        [(scope, body)] = seen
        assert body == b"hi"
        assert scope.pop("headers") == [
            (b"host", b"a"), (b"x-b", b"1"), (b"x-a", b""), (b"x-b", b"2"), (b"content-length", b"2"),
        ]  # fmt: skip
        assert scope == {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": "/a b/é", "raw_path": b"/a%20b/%C3%A9", "query_string": b"q=%20&r",
            "client": own, "server": ("127.0.0.1", it.port),
        }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "parsed"),
    [
        (b"/", ("/", b"/", b"")),
        (b"/a?", ("/a", b"/a", b"")),
        (b"/a?b?c", ("/a", b"/a", b"b?c")),
        (b"//a/../%2e%2F", ("//a/.././/"[:-1], b"//a/../%2e%2F", b"")),
        (b"/%ff%00", ("/�\0", b"/%ff%00", b"")),
        (b"http://host:80/p?q", ("/p", b"/p", b"q")),
        (b"HTTPS://host", ("/", b"/", b"")),
        (b"http://host?q", ("/", b"/", b"q")),
        (b"*", ("*", b"*", b"")),
    ],
)
def test_targets(target: bytes, parsed: tuple[str, bytes, bytes]) -> None:
    assert parse_target(target) == parsed
    if target != b"*":  # long ones are not remembered, and read in the same way
        assert parse_target(target + b"?" + b"x" * 300)[:2] == parsed[:2]


@pytest.mark.parametrize("target", [b"", b"a", b"host:443", b"ftp://host/", b"/a#b", b"/\xc3\xa9", b"http://"])
def test_targets_that_are_none(target: bytes) -> None:
    with pytest.raises(ValueError):
        parse_target(target)


@on_both_loops
async def test_bodies_arrive_however_they_are_framed_and_split() -> None:
    wires = [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\nhello world",
        CHUNKED + b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n",
        CHUNKED + b"b\r\nhello world\r\n0\r\nx-sum: 1\r\n\r\n",
        CHUNKED.replace(b"chunked", b"Chunked") + b"B\r\nhello world\r\n0\r\n\r\n",
    ]
    async with serving(echo) as it:
        client = await it.connect()
        for wire in wires:
            for cut in range(1, len(wire)):
                await client.send(wire[:cut])
                await asyncio.sleep(0)
                assert (await client.ask(wire[cut:])).endswith(b"\r\n\r\nhello world")


@on_both_loops
async def test_a_large_body_arrives() -> None:
    body = bytes(range(256)) * 16_384  # 4 MB
    async with serving(echo) as it:
        client = await it.connect()
        sending = asyncio.create_task(
            client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        )
        assert (await client.answer()).endswith(b"\r\n\r\n" + body)
        await sending


@on_both_loops
async def test_trailers_do_not_become_headers_of_the_next_request() -> None:
    seen = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        seen.append(dict(scope["headers"]))
        await respond(send)

    async with serving(look) as it:
        client = await it.connect()
        await client.ask(CHUNKED + b"0\r\nauthorization: stolen\r\n\r\n")
        await client.ask(GET)
    assert seen[1] == {b"host": b"a"}


# -- One after the other -----------------------------------------------------------------------------------------------


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
        await asyncio.sleep(0.02)
        client.writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        await asyncio.sleep(0.1)
        waiting = client.writer.transport.get_write_buffer_size()
        assert waiting > size // 2, "the server reads on"
        await asyncio.sleep(0.05)
        assert client.writer.transport.get_write_buffer_size() == waiting
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


# -- Requests as they should not be ------------------------------------------------------------------------------------

MALFORMED = {
    "garbage": b"garbage\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version 2": b"GET / HTTP/2.0\r\nhost: a\r\n\r\n",
    "version 0.9": b"GET /\r\n\r\n",
    "version 1.2": b"GET / HTTP/1.2\r\nhost: a\r\n\r\n",
    "method": b"FOO / HTTP/1.1\r\nhost: a\r\n\r\n",
    "connect": b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "target": b"GET a HTTP/1.1\r\nhost: a\r\n\r\n",
    "fragment": b"GET /#a HTTP/1.1\r\nhost: a\r\n\r\n",
    "bytes in target": "GET /é HTTP/1.1\r\nhost: a\r\n\r\n".encode(),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
    "length and chunks": CHUNKED[:-2] + b"content-length: 5\r\n\r\n0\r\n\r\n",
    "chunks and length": CHUNKED.replace(b"host: a", b"host: a\r\ncontent-length: 5") + b"0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "one length twice": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "list of lengths": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\nhello",
    "signed length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello",
    "negative length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\nhello",
    "huge length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\nhello",
    "empty length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: \r\n\r\nhello",
    "gzip": CHUNKED.replace(b"chunked", b"gzip") + b"0\r\n\r\n",
    "gzip, chunked": CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
    "chunked, gzip": CHUNKED.replace(b"chunked", b"chunked, gzip") + b"0\r\n\r\n",
    "chunked twice": CHUNKED[:-2] + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "xchunked": CHUNKED.replace(b"chunked", b"xchunked") + b"0\r\n\r\n",
    "tab chunked": CHUNKED.replace(b" chunked", b"\x0bchunked") + b"0\r\n\r\n",
    "chunked on 1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "folded": b"GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n",
    "folded first": b"GET / HTTP/1.1\r\n x: a\r\nhost: a\r\n\r\n",
    "bare LF after the line": b"GET / HTTP/1.1\nhost: a\r\n\r\n",
    "bare LF after a header": b"GET / HTTP/1.1\r\nhost: a\nx: b\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nhost: a\r\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nhost: a\rx: b\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nhost: a\r\nx\0: b\r\n\r\n",
    "space before the colon": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello",
    "no name": b"GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n",
}
BAD_CHUNKS = {
    "not hexadecimal": b"g\r\n",
    "0x": b"0x5\r\nhello\r\n",
    "negative": b"-1\r\n",
    "huge": b"fffffffffffffffff\r\n",
    "space": b"5 \r\nhello\r\n",
    "bare LF": b"5\nhello\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n",
    "longer than it says": b"2\r\nhello\r\n",
    "length among trailers": b"0\r\ncontent-length: 4\r\n\r\n",
}


def refused(status: int, answer: bytes) -> None:
    """Whether `answer` is one refusal, as OpenAI's clients read it, and the last thing on its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-length: %d" % len(body) in head
    assert json.loads(body)["error"]["message"]


@on_both_loops
async def test_what_is_not_http_is_refused_and_nothing_behind_it_is_read() -> None:
    asked = []

    async def count(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope)
        await respond(send)

    async with serving(count) as it:
        for name, wire in MALFORMED.items():
            refused(400, await it.say(wire + GET))
            assert asked == [], name


@on_both_loops
async def test_a_bad_chunk_is_refused_before_the_answer_and_ends_it_afterwards() -> None:
    told = []

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            continue
        told.append(message["type"])
        await respond(send)

    async def talks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await reads(scope, receive, _nobody)

    for chunk in BAD_CHUNKS.values():
        async with serving(reads) as it:
            refused(400, await it.say(CHUNKED + chunk + GET))
            client = await it.connect()
            await client.send(CHUNKED)
            await asyncio.sleep(0.01)
            await client.send(chunk + GET)
            refused(400, await client.rest())
        assert told == ["http.disconnect"], "the first one was not even begun"
        told.clear()
        async with serving(talks) as it:
            client = await it.connect()
            await client.send(CHUNKED)
            await client.reader.readuntil(b"x\r\n")
            await client.send(chunk + GET)
            assert await client.rest() == b""
        assert told == ["http.disconnect"]
        told.clear()


async def _nobody(message: Any) -> None:
    pass


@on_both_loops
async def test_a_bad_request_is_refused_after_the_answers_before_it() -> None:
    async def later(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.02)
        await respond(send)

    async with serving(later) as it:
        answers = await it.say(GET + GET + b"garbage\r\n\r\n" + GET)
        assert answers.startswith(OK + OK)
        refused(400, answers.removeprefix(OK + OK))
        client = await it.connect()
        await client.send(GET)
        await asyncio.sleep(0.01)
        await client.send(b"garbage")
        answers = await client.rest()
        assert answers.startswith(OK)
        refused(400, answers.removeprefix(OK))


@on_both_loops
async def test_heads_are_bounded() -> None:
    line = b"x-filler: " + b"y" * 1000 + b"\r\n"
    start = GET[:-2]
    too_much = {
        "in one piece": start + line * 70 + b"\r\n",
        "endless headers": start + line * 3000,
        "endless header": start + b"x: " + b"y" * (2 << 20),
        "endless target": b"GET /" + b"y" * (2 << 20),
        "too many": start + b"x:\r\n" * MAX_HEADERS + b"\r\n",
    }
    async with serving(ok) as it:
        for name, wire in too_much.items():
            client = await it.connect()
            sending = asyncio.create_task(client.send(wire))
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 431 "), name
            refused(431, answer)
            client.writer.transport.abort()
            await asyncio.gather(sending, return_exceptions=True)
        client = await it.connect()
        assert await client.ask(start + line * 30 + b"\r\n") == OK
        for wire in (CHUNKED + b"5;" + b"x" * (MAX_HEAD * 8), CHUNKED + b"0\r\n" + line * 500):
            client = await it.connect()
            sending = asyncio.create_task(client.send(wire))
            await client.rest()
            client.writer.transport.abort()
            await asyncio.gather(sending, return_exceptions=True)


@on_both_loops
async def test_what_the_client_sends_unread_does_not_cost_it_the_answer() -> None:
    """Most clients read no answer before they have sent everything: a close at once would be a reset."""
    size = 8 << 20
    post = b"POST / HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n"

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"too large", status=413)

    async with serving(refuse) as it:
        client = await it.connect()
        for _ in range(2):
            await client.send(post % (b"", size) + bytes(size))
            assert (await client.answer()).endswith(b"too large")
        client = await it.connect()
        await client.send(post % (b"connection: close\r\n", size) + bytes(size))
        assert (await client.rest()).endswith(b"too large")


# -- Time --------------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_slow_clients_have_deadlines() -> None:
    timeouts = ServerTimeouts(keep_alive=0.3, head=0.2, body=0.2)
    loop = asyncio.get_running_loop()
    async with serving(echo, timeouts=timeouts) as it:
        started = loop.time()
        assert await it.say(b"") == b""
        assert await it.say(GET) == OK.replace(b"2\r\n\r\nok", b"0\r\n\r\n")
        assert loop.time() - started > 0.5

        client = await it.connect()

        async def drip() -> None:
            for byte in GET:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.02)

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
        await asyncio.sleep(0.3)
        await echo(scope, receive, send)

    async with serving(slowly, timeouts=ServerTimeouts(keep_alive=0.1, head=0.1, body=0.1, write=0.1)) as it:
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
        await asyncio.sleep(0.15)
        assert client.writer.transport.get_write_buffer_size() > size // 2
        gate.set()
        assert len(await client.answer()) > size


# -- Clients that are slow or leave ------------------------------------------------------------------------------------


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
        await asyncio.wait_for(left.wait(), 20)  # nothing is read any more
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
            await asyncio.wait_for(done.wait(), 5)
            assert told == [{"type": "http.disconnect"}] * 2
            told.clear()
            done.clear()


@on_both_loops
async def test_a_client_that_leaves_within_its_request() -> None:
    told: list[Any] = []

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            continue
        told.append(message)

    async with serving(reads) as it:
        client = await it.connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhell")
        await asyncio.sleep(0.02)
        client.writer.close()
        await asyncio.sleep(0.05)
        assert told == [{"type": "http.disconnect"}]


@on_both_loops
async def test_after_the_answer_receive_says_disconnect() -> None:
    told = []

    async def ask(scope: Any, receive: Any, send: Any) -> None:
        waiting = asyncio.ensure_future(_drain(receive))
        await respond(send)
        told.append(await waiting)

    async with serving(ask) as it:
        client = await it.connect()
        assert await client.ask(GET) == OK
        assert await client.ask(GET) == OK
    assert told == [{"type": "http.disconnect"}] * 2


async def _drain(receive: Any) -> Any:
    while (message := await receive())["type"] == "http.request":
        continue
    return message


@on_both_loops
async def test_connections_are_bounded() -> None:
    async with serving(ok, max_connections=2) as it:
        clients = [await it.connect() for _ in range(2)]
        assert [await client.ask(GET) for client in clients] == [OK, OK]
        assert await (await it.connect()).rest() == b""
        clients[0].writer.close()
        await asyncio.sleep(0.05)
        assert await (await it.connect()).ask(GET) == OK


# -- Applications that make mistakes -----------------------------------------------------------------------------------


LENGTH = (b"content-length", b"3")


async def _start(send: Any, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError("a secret")


async def raises_late(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, LENGTH)  # the head of such an answer is held
    raise KeyError("a secret")


async def silent(scope: Any, receive: Any, send: Any) -> None:
    return


async def splits_the_head(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, (b"x", b"a\r\nset-cookie: b"))


async def body_first(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.body", "body": b"x"})


async def starts_twice(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, LENGTH)
    await _start(send, LENGTH)


async def unknown(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.push"})


async def raises_within(scope: Any, receive: Any, send: Any) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    raise KeyError("a secret")


async def leaves_within(scope: Any, receive: Any, send: Any) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})


async def says_too_much(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, LENGTH)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    await send({"type": "http.response.body", "body": b"yzzz"})


async def says_too_little(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, LENGTH)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    await send({"type": "http.response.body", "body": b"y"})


async def starts_only(scope: Any, receive: Any, send: Any) -> None:
    await _start(send)


@pytest.mark.parametrize("app", [raises, raises_late, silent, splits_the_head, body_first, starts_twice, unknown])
def test_a_mistake_before_the_answer_is_a_500(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        async with serving(app) as it:
            refused(500, await it.say(GET + GET))
            head = await it.say(GET.replace(b"GET", b"HEAD"))
            assert head.startswith(b"HTTP/1.1 500 ")
            assert head.endswith(b"\r\n\r\n")

    asyncio.run(asyncio.wait_for(run(), 10))
    lines = logged(capsys)
    assert [line["level"] for line in lines] == ["ERROR"] * 2
    assert "secret" not in json.dumps(lines)


@pytest.mark.parametrize(
    ("app", "received"),
    [
        (raises_within, b"1\r\nx\r\n"),
        (leaves_within, b"1\r\nx\r\n"),
        (says_too_much, b"x"),
        (says_too_little, b"x"),
        (starts_only, b""),
    ],
)
def test_a_mistake_within_the_answer_breaks_it_off(
    app: App, received: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        async with serving(app) as it:
            assert (await it.say(GET + GET)).partition(b"\r\n\r\n")[2] == received

    asyncio.run(asyncio.wait_for(run(), 10))
    assert [line["level"] for line in logged(capsys)] == ["ERROR"]


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nInjected: b"), (b"x", b"a\nb"), (b"x", b"a\rb"), (b"x", b"a\0b"), (b"x\r\ninjected", b"a"),
        (b"x ", b"a"), (b"x:y", b"a"), (b"", b"a"), (b"content-length", b"-1"), (b"content-length", b"1, 1"),
        (b"Content-Length", b"x"), (b"content-length", b""), (b"content-length", b"9" * 30),
    ],
)  # fmt: skip
def test_headers_cannot_change_the_answer(header: tuple[bytes, bytes]) -> None:
    for _ in range(2):  # what was refused is not remembered as known
        with pytest.raises(ValueError):
            encode_head(200, [(b"a", b"b"), header], close=False, chunked=True, bodiless=False)


def test_framing_is_the_servers() -> None:
    given = [(b"Transfer-Encoding", b"gzip"), (b"Connection", b"upgrade"), (b"Upgrade", b"x"), (b"X-Own", b"1")]
    head, _, close = encode_head(200, given, close=False, chunked=True, bodiless=False)
    assert head == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-own: 1\r\n\r\n"
    assert not close
    for status in (100, 101, 199, 1000, -1):
        with pytest.raises(ValueError):
            encode_head(status, [], close=False, chunked=True, bodiless=False)
    twice = [(b"content-length", b"1"), (b"Content-Length", b"1")]
    with pytest.raises(ValueError):
        encode_head(200, twice, close=False, chunked=True, bodiless=False)


# -- The end -----------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_stopping_lets_requests_end_and_nothing_begin() -> None:
    gate = asyncio.Event()

    async def gated(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/wait":
            await gate.wait()
        await respond(send, scope["path"].encode())

    async with serving(gated) as it:
        idle, busy = await it.connect(), await it.connect()
        await idle.ask(GET)
        await busy.send(GET.replace(b"/ ", b"/wait ") + GET)
        await asyncio.sleep(0.02)
        stopping = asyncio.create_task(it.server.stop(5))
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

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        await _drain(receive)
        try:
            await asyncio.sleep(0.2 if scope["path"] == "/a" else 60)
            ended.append("whole")
        finally:
            ended.append(scope["path"])

    for path, expected in (("/a", ["whole", "/a"]), ("/b", ["/b"])):
        ended.clear()
        async with serving(stubborn) as it:
            client = await it.connect()
            await client.send(GET.replace(b"/ ", path.encode() + b" "))
            await asyncio.sleep(0.02)
            client.writer.close()
            await it.server.stop(0.5)
        assert ended == expected


@on_both_loops
async def test_a_hurry_ends_the_wait() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    async with serving(never) as it:
        client = await it.connect()
        await client.send(GET)
        await asyncio.sleep(0.02)
        stopping = asyncio.create_task(it.server.stop(60))
        await asyncio.sleep(0.02)
        it.server.hurry()
        await asyncio.wait_for(stopping, 5)


@on_both_loops
async def test_lifespan() -> None:
    events: list[str] = []

    async def proper(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        for phase in ("startup", "shutdown"):
            events.append((await receive())["type"])
            await send({"type": f"lifespan.{phase}.complete"})

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no store"})

    lifespan = Lifespan(proper)
    assert await lifespan.startup() is None
    await lifespan.shutdown()
    assert events == ["lifespan.startup", "lifespan.shutdown"]
    assert await Lifespan(failing).startup() == "no store"
    for without in (raises, silent):  # by the specification: served all the same
        lifespan = Lifespan(without)
        assert await lifespan.startup() is None
        await lifespan.shutdown()
