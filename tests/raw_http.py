"""An HTTP server for tests that sends exactly the bytes that a test wants, when it wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop

from tests.waiting import PATIENCE_S
from tollgate.adapters.http import HttpClient, Response


async def until(condition: Callable[[], object]) -> None:
    """Returns as soon as `condition` holds, and fails if it never does."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - whoever makes it hold knows of no event
            await asyncio.sleep(0.002)


async def settled(measure: Callable[[], int]) -> int:
    """What `measure` says once it has said the same ten times in a row, 10 ms apart."""
    last, times = measure(), 1
    while times < 10:
        await asyncio.sleep(0.01)
        found = measure()
        last, times = found, times + 1 if found == last else 1
    return last


def on_both_loops(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a coroutine as a test on asyncio's own loop and on uvloop. Its deadline is for what never ends."""

    @pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def run(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(asyncio.wait_for(test(), PATIENCE_S))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """The server's end of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        """0 for the first connection that the server got."""
        self.reader, self.writer = reader, writer
        self.gone = asyncio.Event()
        """Set once the handler has ended."""

    async def request(self) -> bytes:
        """One whole request; IncompleteReadError when the client has gone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        return head + await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        if self.writer.is_closing():  # uvloop: writing would be a RuntimeError
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def trickle(self, data: bytes) -> None:
        """Byte by byte, each in a packet of its own as far as the kernel allows."""
        for i in range(len(data)):
            await self.send(data[i : i + 1])
            await asyncio.sleep(0)


Handler = Callable[[Peer], Awaitable[None]]


class Server:
    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.peers: list[Peer] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(len(self.peers), reader, writer)
        self.peers.append(peer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._handler(peer)
        peer.gone.set()
        writer.close()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self.peers:
            with suppress(ConnectionError, ssl.SSLError, TimeoutError):
                peer.writer.transport.abort()
                await peer.writer.wait_closed()


@asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Server, str]]:
    server = Server(handler)
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield server, f"{'https' if tls else 'http'}://127.0.0.1:{port}/path"
    finally:
        listener.close()
        await server.stop()


@asynccontextmanager
async def client(**options: Any) -> AsyncIterator[HttpClient]:
    http = HttpClient(**options)
    try:
        yield http
    finally:
        await http.aclose()


def answering(*responses: bytes, close: bool = False) -> Handler:
    """Answers the requests of each connection in turn, then waits for the client to go (or closes)."""

    async def handle(peer: Peer) -> None:
        for response in responses:
            await peer.request()
            await peer.send(response)
        if not close:
            await peer.reader.read()

    return handle


async def fetch(http: HttpClient, url: str, **options: Any) -> tuple[int, bytes]:
    response = await http.request("GET", url, **options)
    return response.status, await response.read(1 << 24)


async def collect(response: Response, into: list[bytes]) -> None:
    async for chunk in response:
        into.append(chunk)


async def closed(*peers: Peer) -> None:
    """Returns once the client has ended these connections (for handlers that read until then)."""
    async with asyncio.timeout(PATIENCE_S):
        for peer in peers:
            await peer.gone.wait()
