"""Our HTTP server, and raw connections to it: exactly these bytes in, exactly those out."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tollgate.adapters.http_server import HttpServer, listen

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


async def drained(receive: Any) -> Any:
    """The message after the request's body: a disconnect, or the end."""
    while (message := await receive())["type"] == "http.request":
        continue
    return message


def refused(status: int, answer: bytes) -> None:
    """Whether `answer` is one refusal, as OpenAI's clients read it, and the last thing on its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-length: %d" % len(body) in head
    assert json.loads(body)["error"]["message"]
