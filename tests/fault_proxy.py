"""A TCP proxy whose network can be broken while traffic flows; it runs in the test's own event loop.

    async with FaultProxy(redis_port) as proxy:
        store = RedisLimitStore(f"redis://127.0.0.1:{proxy.port}")
        proxy.latency_s = 0.02          # from now on
        with proxy.stalled(): ...       # bytes are held back, and delivered afterwards
        proxy.drop_replies(1)           # the next reply is lost after the server has done the work

`AwsFaultProxy` reads HTTP, and can answer requests in the place of DynamoDB.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

_CHUNK = 65_536
_QUEUE = 256
"""Chunks on their way in one direction; then reading pauses."""


class FaultProxy:
    """Stands before the server at `target`, on a port of its own. Settings hold for bytes that arrive from then on."""

    def __init__(self, target: int, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: clients speak TLS to it, and the server hears none of it."""
        self._tls = tls
        self.target = target
        """The server's port; may be changed, for new connections: as a DNS name that moves to another server."""
        self.port = port
        self.latency_s = 0.0
        """Each way."""
        self.jitter_s = 0.0
        """At most so much more, evenly distributed. Bytes stay in order."""
        self.bytes_per_s: float | None = None
        self.half_open = False
        """Connections stay and new ones are accepted, but what is sent is lost, both ways."""
        self.accepted = 0
        """Connections, so far."""
        self.dropped = 0
        """Replies, so far."""
        self._to_drop: int | None = 0
        self._closing_dropped = False
        self._cut_at: int | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._random = random.Random(0)
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.refuse()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    # -- faults

    async def accept(self) -> None:
        """Listen, (again) on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """New connections are refused. Those that exist go on: see `reset`."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def stall(self) -> None:
        """Hold every byte, both ways, until `resume`. New connections are accepted, and held too."""
        self._flowing.clear()

    def resume(self) -> None:
        """Deliver what was held."""
        self._flowing.set()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        self.stall()
        try:
            yield
        finally:
            self.resume()

    def reset(self) -> None:
        """End all connections with RST, as a firewall or a dying host does."""
        for link, client in list(self._links.items()):
            _reset(client)
            link.cancel()

    def drop_replies(self, number: int | None = 1, *, close: bool = False) -> None:
        """Lose the next replies (None: all, 0: no more) after the server has done what was asked. Bytes of TCP are lost
        from the end only, so a connection that lost one is silent ever after; with `close`, it is closed."""
        self._to_drop, self._closing_dropped = number, close

    def cut_reply(self, at: int) -> None:
        """Pass so many bytes of the next reply, then reset its connection."""
        self._cut_at = at

    # -- traffic

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self.accepted += 1
        self._links[link] = writer
        try:
            await self._link(reader, writer)
        except (OSError, asyncio.CancelledError):  # an end of it is gone; or the proxy ends (nothing awaits this task)
            pass
        finally:
            del self._links[link]
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.half_open:
            while await reader.read(_CHUNK):
                pass
            return
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(writer)
            return
        ways = [
            asyncio.ensure_future(self._requests(reader, writer, to_server)),
            asyncio.ensure_future(self._carry(server, writer, replies=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter
    ) -> None:
        await self._carry(client, to_server, replies=False)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool) -> None:
        """Until the source ends. Reading and delivering are two tasks, so that latency is not counted twice."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE)

        async def deliver() -> None:
            while True:
                due, chunk = await queue.get()
                if not chunk:
                    return
                await asyncio.sleep(due - loop.time())
                await self._flowing.wait()
                if self.half_open:
                    continue
                if replies and not await self._reply(chunk, sink):
                    return
                if not replies:
                    await self._write(chunk, sink)

        async def receive() -> None:
            due, chunk = 0.0, b"-"
            while chunk:
                chunk = b""
                with suppress(OSError):
                    chunk = await source.read(_CHUNK)
                due = max(due, loop.time() + self.latency_s + self.jitter_s * self._random.random())
                await queue.put((due, chunk))

        receiving = asyncio.ensure_future(receive())
        try:
            await deliver()
        finally:
            receiving.cancel()

    async def _reply(self, chunk: bytes, client: asyncio.StreamWriter) -> bool:
        """Pass one reply on, or do to it what was ordered; False: this connection is over."""
        if self._to_drop != 0:
            self.dropped += 1
            if self._to_drop is not None:
                self._to_drop -= 1
            if not self._closing_dropped:
                await asyncio.Event().wait()  # silent until the client gives up, which cancels this
            return False
        if self._cut_at is not None:
            at, self._cut_at = self._cut_at, None
            client.write(chunk[:at])
            await client.drain()
            _reset(client)
            return False
        await self._write(chunk, client)
        return True

    async def _write(self, chunk: bytes, sink: asyncio.StreamWriter) -> None:
        rate = self.bytes_per_s
        if rate is None:
            sink.write(chunk)
            await sink.drain()
            return
        step = max(1, int(rate / 100))
        for at in range(0, len(chunk), step):
            part = chunk[at : at + step]
            await asyncio.sleep(len(part) / rate)
            sink.write(part)
            await sink.drain()


AwsFault = Callable[[str, dict[str, Any]], tuple[int, str] | None]
"""Given an operation (``UpdateItem``) and its payload: the status and the error to answer with (``400,
"ProvisionedThroughputExceededException"``), or None to let it pass."""


class AwsFaultProxy(FaultProxy):
    """Before an AWS JSON service: `fault` may answer in its place. Faults of the network work as well."""

    def __init__(self, target: int, fault: AwsFault | None = None) -> None:
        super().__init__(target)
        self.fault = fault
        self.calls: list[str] = []
        """Operations asked for, answered or passed on."""

    async def _requests(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter
    ) -> None:
        """One request after the other: AWS's clients don't pipeline."""
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await client.readuntil(b"\r\n\r\n")
                lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
                headers = {name.lower(): value.strip() for name, _, value in lines}
                body = await client.readexactly(int(headers.get(b"content-length", b"0")))
                operation = headers.get(b"x-amz-target", b"").rpartition(b".")[2].decode()
                self.calls.append(operation)
                await asyncio.sleep(self.latency_s)
                await self._flowing.wait()
                if self.half_open:
                    continue
                found = self.fault(operation, json.loads(body or b"{}")) if self.fault is not None else None
                if found is None:
                    await self._write(head + body, to_server)
                    continue
                status, name = found
                answer = json.dumps({"__type": f"com.amazonaws.dynamodb#{name}", "message": "a fault of the test"})
                to_client.write(
                    f"HTTP/1.1 {status} Fault\r\ncontent-type: application/x-amz-json-1.0\r\n"
                    f"content-length: {len(answer)}\r\n\r\n{answer}".encode()
                )
                await to_client.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST rather than FIN."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
