"""One request to the HTTP server, and its answer: what the application's `receive` and `send` (ASGI 3) work on.

The head of an answer of known length is held until its first piece of body, so that such an answer is one write; a
stream's head leaves at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from tollgate.adapters import telemetry
from tollgate.adapters.http_message import Header
from tollgate.adapters.http_server_message import LAST_CHUNK, UNDECLARED, encode_head

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_JOIN_BELOW = 64 * 1024
"""Bytes of body up to which copying it behind the head is cheaper than a second piece of a write."""


class CycleConnection(Protocol):
    """The connection, as the request that is on it sees it."""

    writable: asyncio.Event | None
    """While the transport has more to write than it should: what to wait for."""

    def write(self, data: bytes) -> None: ...

    def taken(self) -> None:
        """The application has taken all of the body that was buffered."""

    def ask_for_body(self) -> None:
        """Tell the client to go on."""

    def answered(self, cycle: Cycle) -> None:
        """All of the answer has been written."""

    def abandoned(self, cycle: Cycle, *, started: bool) -> None:
        """The application has ended, its answer has not; `started`: so it cannot be our apology any more."""

    def break_off(self, cycle: Cycle) -> None:
        """End the connection within the answer; what was written of it still arrives."""


class Cycle:
    """A request, and its answer as it is made."""

    __slots__ = (
        "_bodiless", "_changed", "_chunked", "_connection", "_head", "_left", "_started", "_told", "begun", "buffered",
        "chunks", "ended", "expects", "gone", "keep_alive", "received", "scope",
    )  # fmt: skip

    def __init__(
        self, connection: CycleConnection, scope: Scope, keep_alive: bool, chunked: bool, expects: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        """Whether another request may follow the answer."""
        self.expects = expects
        """Whether the client waits for `100 Continue` before it sends the body."""
        self.chunks: list[bytes] = []
        self.buffered = 0
        """Bytes in `chunks`."""
        self.received = False
        """Whether the request is here to its end."""
        self.begun = False
        """Whether anything of the answer has been written."""
        self.ended = False
        """Whether all of it has."""
        self.gone = False
        """Whether nobody is there any more: the application is told when it asks, and sends to nobody."""
        self._connection = connection
        self._told = False  # of the request's end
        self._changed: asyncio.Event | None = None
        self._started = False
        self._head = b""
        self._chunked = chunked
        self._bodiless = False
        self._left = UNDECLARED

    async def run(self, application: Application, finished: Callable[[Cycle], None]) -> None:
        """The request's task; `finished` is told of its end."""
        try:
            await application(self.scope, self.receive, self.send)
            if not self.ended and not self.gone:
                telemetry.log("ERROR", "the application did not end its answer")
        except Exception as error:  # noqa: BLE001 - whatever it is, a caller waits for an answer
            telemetry.log("ERROR", "the application failed", error=type(error).__name__, where=telemetry.where(error))
            self._started = self.begun
        finally:  # also when cancelled
            if not self.ended and not self.gone:
                self._connection.abandoned(self, started=self._started)
            finished(self)

    async def receive(self) -> Message:
        while not (self.gone or self.ended):
            if self.chunks or (self.received and not self._told):
                chunks = self.chunks
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                chunks.clear()
                self.buffered = 0
                self._told = self.received
                if not self.received:
                    self._connection.taken()
                return {"type": "http.request", "body": body, "more_body": not self.received}
            if self.expects:
                self.expects = False
                if not self.begun:
                    self._connection.ask_for_body()
            if self._changed is None:
                self._changed = asyncio.Event()
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":
            self._send_body(message.get("body", b""), message.get("more_body", False))
            connection = self._connection
            if connection.writable is not None and not self.gone:
                await connection.writable.wait()
        elif kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"not a message of an HTTP answer: {kind}")

    def _start(self, status: int, headers: Sequence[Header]) -> None:
        if self._started:
            raise RuntimeError("the answer has been started already")
        self._bodiless = self.scope["method"] == "HEAD" or status in (204, 304)
        # a client that was never told to go on may send its body or not: what comes next could be either
        close = not self.keep_alive or self.expects
        self._head, self._left, close = encode_head(
            status, headers, close=close, chunked=self._chunked, bodiless=self._bodiless
        )
        self._started = True
        self.keep_alive = not close
        if self._bodiless or self._left != UNDECLARED:
            self._chunked = False
            return
        # A stream may be long in coming, and its head says already what the caller wants to know. (uvloop writes once
        # per tick, so a first piece that is there already leaves together with the head all the same.)
        if not self.gone:
            self.begun = True
            self._connection.write(self._head)
        self._head = b""

    def _send_body(self, body: bytes, more: bool) -> None:
        if self.gone:
            return
        if self.ended or not self._started:
            raise RuntimeError("a piece of body before the answer's start, or after its end")
        if self._bodiless:
            body = b""
        elif self._chunked:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += LAST_CHUNK
        elif self._left != UNDECLARED:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                telemetry.log("ERROR", "the answer's length is not its content-length", missing=self._left)
                self._connection.break_off(self)
                return
        connection = self._connection
        if head := self._head:
            self._head = b""
            self.begun = True
            if len(body) <= _JOIN_BELOW:
                connection.write(head + body)
            else:
                connection.write(head)
                connection.write(body)
        elif body:
            connection.write(body)
        if not more:
            self.ended = True
            self.wake()
            connection.answered(self)

    # What the connection does to it

    def wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    def leave(self) -> None:
        """Nobody is there any more."""
        self.gone = True
        self.chunks.clear()
        self.wake()
