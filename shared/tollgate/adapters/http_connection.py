"""One HTTP/1.1 connection and the response that is on it.

A connection carries one exchange at a time. Bytes go from the transport through llhttp straight into the response's
list of chunks; a future exists only while somebody really waits. Each connection has a single `Deadline`. So a call on
a warm connection creates no task and, as a rule, no timer.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator
from typing import Protocol, cast

from httptools import HttpParserError, HttpResponseParser

from tollgate.adapters.deadline import Deadline
from tollgate.adapters.http_message import (
    BodyTooLarge,
    ClosedEarly,
    Header,
    Phase,
    ProtocolError,
    TimedOut,
    Timeouts,
    UpstreamError,
)

MAX_HEAD = 64 * 1024
"""Bytes of a response's head; also of what may come between two pieces of a body (chunk extensions, trailers)."""
HIGH_WATER = 256 * 1024
"""Bytes of body that may wait for the reader before the connection stops reading."""
_JOIN_BELOW = 64 * 1024
"""Bytes of request body up to which copying it behind the head is cheaper than a second system call."""


class Response(AsyncIterator[bytes]):
    """A response whose head is here; iterating gives the body's bytes as they arrive, nothing held back.

    A body that is not read to its end needs `close`, or the connection stays busy until a timeout.
    """

    __slots__ = ("_chunks", "_connection", "_done", "_error", "_received", "_taken", "_waiter", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: list[Header] = []
        """In the server's order, names in lower case."""
        self._connection: Connection | None = connection
        self._chunks: list[bytes] = []
        self._received = 0
        self._taken = 0
        self._done = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (`name` in lower case)."""
        for candidate, value in self.headers:
            if candidate == name:
                return value
        return None

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        if self._chunks or await self._more():
            return self._take()
        raise StopAsyncIteration

    async def read(self, limit: int) -> bytes:
        """The whole rest of the body; BodyTooLarge beyond `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        while self._chunks or (not self._done and await self._more()):
            chunk = self._take()
            size += len(chunk)
            if size > limit:
                self.close()
                raise BodyTooLarge(f"the body is longer than {limit} bytes")
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Ends the exchange. Before the end of the body this drops the connection; afterwards it does nothing."""
        self._chunks.clear()
        if self._connection is not None:
            self._connection.fail(ClosedEarly("closed by the reader", after_bytes=self._received))

    async def wait_for_head(self) -> None:
        """Returns once `status` and `headers` are here. For the client only."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._changed()

    async def _more(self) -> bool:
        """Waits for the next piece of the body; False at its end."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._done:
                return False
            await self._changed()
        return True

    def _take(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._taken = self._received
        if self._connection is not None:
            self._connection.resume()
        return data

    async def _changed(self) -> None:
        """Waits for the connection's next event. A reader that is cancelled here takes the connection with it."""
        connection = self._connection
        assert connection is not None  # a response without a connection is done or failed: nobody waits for it
        waiter = self._waiter = connection.loop.create_future()
        try:
            await waiter
        except asyncio.CancelledError:
            # Not `connection`: where the end came in the same tick, it may be carrying somebody else's request by now.
            if self._connection is not None:
                self._connection.fail(ClosedEarly("the reader was cancelled", after_bytes=self._received))
            raise

    # What the connection does to its response; it is the only writer.

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _end(self, error: UpstreamError | None) -> None:
        self._done = error is None
        self._error = error
        self._connection = None
        self._wake()


class ConnectionOwner(Protocol):
    """The pool, as a connection sees it."""

    def opened(self, connection: Connection) -> None:
        """The transport is ready."""

    def idle(self, connection: Connection) -> None:
        """The exchange is over and the connection can take the next one."""

    def lost(self, connection: Connection) -> None:
        """The transport is gone."""


class Connection(asyncio.Protocol):
    """The protocol between an asyncio transport and a `Response`; also what the parser calls back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: ConnectionOwner, origin: tuple[str, str, int]) -> None:
        self.loop = loop
        self.origin = origin
        self._owner = owner
        self._transport: asyncio.Transport
        self._readiness = select.poll()
        self._parser: HttpResponseParser | None = None
        self._response: Response | None = None
        self._headers: list[Header] = []
        self._timeouts: Timeouts
        self._total_at = 0.0
        self._deadline = Deadline(loop, self._overdue)
        self._overhead = 0  # bytes received since the last piece of body
        self._head_only = False
        self._complete = False
        self._keep_alive = False
        self._paused = False

    # The pool's side

    def is_closing(self) -> bool:
        """Whether the transport is known to be ending. Writing to it would be lost (or, on uvloop, a RuntimeError)."""
        return self._transport.is_closing()

    def is_live(self) -> bool:
        """Whether an idle connection can still be used.

        A server may have closed it a moment ago, and the loop may not know yet: under load it is a tick behind, and a
        thawed Lambda sees the close together with the request that is about to use the connection. One poll(2) asks
        the kernel. Anything readable (the end of the stream, or bytes nobody asked for) rules the connection out.
        """
        return not self._transport.is_closing() and not self._readiness.poll(0)

    def rest(self, ttl: float) -> None:
        """Waits in the pool, for `ttl` seconds at most."""
        self._deadline.move(self.loop.time() + ttl)

    def abort(self) -> None:
        """Drops the connection without ceremony; a TLS goodbye could take many seconds."""
        self._transport.abort()

    # The exchange's side

    def send(self, head: bytes, body: bytes, head_only: bool, timeouts: Timeouts, total_at: float) -> Response:
        """Writes a request; `total_at` is when the whole call must be over, by the loop's clock (s)."""
        self._headers = []
        self._timeouts = timeouts
        self._total_at = total_at
        self._overhead = 0
        self._head_only = head_only
        self._complete = self._keep_alive = False
        response = self._response = Response(self)
        self._deadline.move(min(self.loop.time() + timeouts.first_byte, total_at))
        if len(body) <= _JOIN_BELOW:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        return response

    def fail(self, error: UpstreamError) -> None:
        """Ends the exchange with an error, and the connection with it."""
        response, self._response = self._response, None
        if response is not None:
            response._end(error)
        self._transport.abort()

    def resume(self) -> None:
        """The reader has taken everything that was buffered."""
        if self._paused:
            self._paused = False
            self._deadline.move(min(self.loop.time() + self._timeouts.idle, self._total_at))
            self._transport.resume_reading()

    def _finish(self, response: Response) -> None:
        self._response = None
        response._end(None)
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        # a server that answers before it has read the request leaves the rest of it in our buffer
        if self._keep_alive and not self._transport.get_write_buffer_size():
            self._owner.idle(self)
        else:
            self._transport.abort()

    def _end_of_stream(self, exc: Exception | None) -> None:
        response = self._response
        if response is None:
            return
        if exc is None and response.status and _ends_by_close(response):
            self._finish(response)
            return
        reason = f": {exc}" if exc is not None else ""
        stage = "within its body" if response.status else "before its head was complete"
        self.fail(ClosedEarly(f"the server closed the response {stage}{reason}", after_bytes=response._received))

    def _overdue(self) -> None:
        response = self._response
        if response is None:
            self._transport.abort()  # idle for too long
            return
        late = self.loop.time() >= self._total_at
        phase: Phase = "total" if late else "idle" if response.status else "first_byte"
        self.fail(TimedOut(phase, sent=True))

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = HttpResponseParser(self)
        self._readiness.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None:
            self._transport.abort()  # nobody asked
            return
        self._overhead += len(data)
        try:
            parser.feed_data(data)
        except HttpParserError as exc:
            if not self._complete:
                # a callback's own error is the better explanation
                self.fail(ProtocolError(f"not a valid HTTP/1.1 response: {exc.__context__ or exc}"))
                return
            self._keep_alive = False  # what follows the response is garbage, the response itself is fine
        if self._complete:
            self._finish(response)
            return
        if self._overhead > MAX_HEAD:
            self.fail(ProtocolError(f"more than {MAX_HEAD} bytes of head, trailers or chunk extensions"))
            return
        if response.status:
            if response._received - response._taken > HIGH_WATER:
                self._paused = True
                self._transport.pause_reading()
                self._deadline.move(self._total_at)  # the silence is now the reader's, not the server's
            else:
                self._deadline.move(min(self.loop.time() + self._timeouts.idle, self._total_at))
            response._wake()

    def eof_received(self) -> None:
        self._end_of_stream(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_of_stream(exc)
        self._deadline.cancel()
        self._parser = None  # the parser holds our bound methods: break the cycle
        self._owner.lost(self)

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            raise _Refused("data after the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is not None and not response.status:  # afterwards they are trailers, which nobody needs
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        assert response is not None
        assert parser is not None
        status = parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101:
                raise _Refused(f"status {status}")
            self._headers = []
            return
        headers = self._headers
        if self._overhead > MAX_HEAD and sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD:
            raise _Refused(f"a head of more than {MAX_HEAD} bytes")
        response.status = status
        response.headers = headers
        if self._head_only:
            # llhttp cannot be told that no body follows, so the connection cannot carry another response
            self._complete = True

    def on_body(self, body: bytes) -> None:
        response = self._response
        if response is not None and not self._complete:
            response._chunks.append(body)
            response._received += len(body)
            self._overhead = 0

    def on_message_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is not None and parser is not None and response.status and not self._complete:
            self._complete = True
            self._keep_alive = parser.should_keep_alive()


class _Refused(Exception):
    """Raised within a parser callback, to stop the parser."""


def _ends_by_close(response: Response) -> bool:
    """Whether the head announces neither a length nor chunks, so that the end of the stream ends the body."""
    if response.header(b"content-length") is not None:
        return False
    coding = response.header(b"transfer-encoding")
    return coding is None or not coding.lower().endswith(b"chunked")
