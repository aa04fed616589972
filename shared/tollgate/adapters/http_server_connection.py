"""One connection of the HTTP/1.1 server: llhttp on one side, the requests that are on it (`Cycle`) on the other.

A connection answers one request at a time, in a task of its own; what was pipelined behind it waits, unread as far as
possible. It has a single `Deadline`; a request that arrives whole and is answered in time does not touch it.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from contextlib import suppress
from math import inf
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from tollgate.adapters.deadline import Deadline
from tollgate.adapters.http_message import Header
from tollgate.adapters.http_server_cycle import Cycle, Scope
from tollgate.adapters.http_server_message import CONTINUE, REFUSALS, parse_target
from tollgate.domain.dataclass import dataclass

MAX_HEAD = 32 * 1024
"""Bytes of a request's head (API Gateway allows 10 KB); also of what may come between two pieces of a body: chunk
extensions, trailers."""
MAX_HEADERS = 256
MAX_PIPELINED = 64
"""Requests that one read may bring. A client that sends more at once is hung up on after the last of these."""
HIGH_WATER = 256 * 1024
"""Bytes of a request's body that may wait for the application before the connection stops reading."""
_LAST_LINGER_S = 1.0
"""How long a client may take to end its side while the server is stopping."""
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_ASGI = {"version": "3.0", "spec_version": "2.3"}


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """How long a client may take, in seconds. How long the application takes is its own affair."""

    keep_alive: float = 65.0
    """Between requests. Longer than the 60 s of usual load balancers (and the 55 s of our own client): the end that
    writes first must be the one that closes first, or requests are lost on closing connections."""
    head: float = 10.0
    """From a head's first byte to its last."""
    body: float = 30.0
    """The longest silence within a request's body. After the answer, the time for all that is left of it."""
    write: float = 60.0
    """The longest time in which a client takes nothing of an answer that waits for it."""


class ConnectionServer(Protocol):
    """The server, as a connection sees it."""

    timeouts: ServerTimeouts
    stopping: bool
    """Whether no further request is to be begun."""

    def opened(self, connection: ServerConnection) -> bool:
        """Whether there is room for it."""

    def lost(self, connection: ServerConnection) -> None:
        """The transport is gone."""

    def launch(self, cycle: Cycle, *, at_once: bool) -> None:
        """Run the application in a task of its own. `at_once`: its first step may be done before this returns."""


class ServerConnection(asyncio.Protocol):
    """The protocol between an asyncio transport and the application; also what the parser calls back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: ConnectionServer) -> None:
        self.writable: asyncio.Event | None = None
        self._loop = loop
        self._server = server
        self._timeouts = server.timeouts
        self._transport: asyncio.Transport
        self._parser: HttpRequestParser | None = None
        self._base: Scope = {}
        # the message that is being read
        self._in_head = False
        self._target = b""
        self._headers: list[Header] = []
        self._incoming: Cycle | None = None  # its head is here, its body not yet
        self._offer: tuple[bytes, list[Header]] | None = None  # target and headers of one that offers an upgrade
        self._overhead = 0  # bytes received since the last piece of body or the last head
        # what is being answered, and what comes after it
        self._cycle: Cycle | None = None
        self._waiting: deque[Cycle] = deque()
        self._refusal: int | None = None  # the status for what cannot be read, once those before it are answered
        self._deaf = False  # nothing further is parsed
        self._ending = False  # nothing further is answered either
        self._paused = False
        self._unsent = 0
        self._deadline = Deadline(loop, self._overdue)

    # The server's side

    def shut_down(self) -> None:
        """The server is stopping: a request that is being answered is the last one."""
        cycle = self._cycle
        if cycle is None or cycle.ended:
            self._close()
        else:
            cycle.keep_alive = False

    def abort(self) -> None:
        self._ending = True
        self._transport.abort()

    # The cycle's side

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # uvloop: a RuntimeError
            self._transport.write(data)

    def taken(self) -> None:
        if self._paused and not self._waiting:
            self._resume()
            self._await_body()

    def ask_for_body(self) -> None:
        self.write(CONTINUE)
        self._await_body()

    def answered(self, cycle: Cycle) -> None:
        if cycle.received and cycle.keep_alive:
            self._cycle = None
            self._advance()
            return
        cycle.chunks.clear()
        cycle.buffered = 0
        if not cycle.keep_alive:
            if cycle.received and not self._paused:
                self._close()
            else:
                self._linger()
            return
        # what is left of the request is read and dropped: many clients read no answer before they have sent everything
        self._resume()
        self._await_body()

    def abandoned(self, cycle: Cycle, *, started: bool) -> None:
        if started:
            self.break_off(cycle)
            return
        cycle.ended = True
        refusal = REFUSALS[500]
        self.write(refusal if cycle.scope["method"] != "HEAD" else refusal[: refusal.index(b"\r\n\r\n") + 4])
        cycle.keep_alive = False
        self.answered(cycle)

    def break_off(self, cycle: Cycle) -> None:
        cycle.leave()
        self._close()

    # One request after the other

    def _advance(self, *, at_once: bool = False) -> None:
        """Begin with the next request, if there is one."""
        if self._ending:
            return
        if self._server.stopping:
            self._close()
        elif self._waiting:
            cycle = self._cycle = self._waiting.popleft()
            self._unwatch()
            if cycle is self._incoming and not cycle.expects:
                self._await_body()
            if self._paused and not self._waiting and not self._deaf:
                self._resume()
            self._server.launch(cycle, at_once=at_once)
        elif self._refusal is not None:
            self.write(REFUSALS.get(self._refusal, b""))
            self._linger()
        else:
            timeouts = self._timeouts
            self._watch(self._loop.time() + (timeouts.head if self._in_head else timeouts.keep_alive))

    def _refuse(self, status: int) -> None:
        """What is being read cannot become a request: say so after the answers before it, and read no more."""
        self._deaf = True
        self._refusal = status
        broken, self._incoming = self._incoming, None
        if broken is None:
            return
        if broken is not self._cycle:
            self._waiting.remove(broken)
            return
        self._cycle = None
        if broken.ended:
            self._close()
        elif broken.begun:
            self.break_off(broken)
        else:
            broken.leave()

    def _close(self) -> None:
        """End the connection once everything is written."""
        self._deaf = self._ending = True
        self._transport.close()
        self._await_reader()

    def _linger(self) -> None:
        """End our side, and drop what still comes from the other: a close at once would reset the connection, and the
        client could lose the answer before it has read it."""
        self._deaf = self._ending = True
        if not self._transport.is_closing():
            with suppress(OSError):  # the client may have reset the connection a moment ago
                self._transport.write_eof()
            self._resume()
        self._watch(self._loop.time() + (_LAST_LINGER_S if self._server.stopping else self._timeouts.body))

    # Reading is stopped while the application has enough

    def _pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # One deadline for everything: how long the client may take for what it has to do next

    def _watch(self, deadline: float) -> None:
        if self.writable is None or self._ending:  # else the deadline is for the client to read
            self._deadline.move(deadline)

    def _unwatch(self) -> None:
        if self.writable is None:
            self._deadline.at = inf

    def _await_body(self) -> None:
        self._watch(self._loop.time() + self._timeouts.body)

    def _await_reader(self) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self._watch(self._loop.time() + self._timeouts.write)

    def _overdue(self) -> None:
        now = self._loop.time()
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent < self._unsent:
            self._unsent = unsent
            self._deadline.move(now + self._timeouts.write)
        elif unsent or self._ending:
            self._transport.abort()
        elif self._incoming is not None or self._in_head:
            self._refuse(408)
            if self._cycle is None and not self._ending:
                self._advance()
        elif self._cycle is None:
            if self._has_bytes():  # a thawed Lambda sees the timeout together with the request that ends the silence
                self._watch(now + 1)
            else:
                self._close()

    def _has_bytes(self) -> bool:
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._server.opened(self):
            self._deaf = True
            self.abort()
            return
        self._parser = HttpRequestParser(self)
        client, server = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._base = {
            "type": "http", "asgi": _ASGI, "scheme": "http",
            "client": client[:2] if client else None, "server": server[:2] if server else None,
        }  # fmt: skip
        self._watch(self._loop.time() + self._timeouts.keep_alive)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if self._deaf or parser is None:
            if not self._ending:
                self._pause()  # nobody wants it, but an answer is still on its way
            return
        was_in_head = self._in_head
        self._overhead += len(data)
        try:
            parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._read_on(memoryview(data)[upgrade.args[0] :])
        except HttpParserError as error:
            self._unreadable(error)
        if self._overhead > MAX_HEAD and not self._deaf:
            self._refuse(431)
        cycle = self._cycle
        if cycle is None:
            if self._waiting or self._refusal is not None:
                self._advance(at_once=True)
                if self._waiting:
                    self._pause()
            elif self._in_head and not was_in_head:
                self._watch(self._loop.time() + self._timeouts.head)
        elif self._waiting:
            self._pause()
        elif self._incoming is None:
            self._unwatch()
        elif cycle.buffered > HIGH_WATER:
            self._pause()
            self._unwatch()  # the silence is now the application's, not the client's
        elif not cycle.ended:
            self._await_body()

    def eof_received(self) -> None:
        self._disconnected()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disconnected()
        self._ending = True
        self._deadline.cancel()
        self._parser = None  # the parser holds our bound methods: break the cycle
        self.resume_writing()
        self._server.lost(self)

    def _disconnected(self) -> None:
        self._deaf = True
        self._waiting.clear()
        cycle = self._cycle
        if cycle is not None:
            cycle.leave()
        if not self._ending:  # asyncio closes the transport, but waits for a client that may never read
            self._ending = True
            self._await_reader()

    def pause_writing(self) -> None:
        self._await_reader()
        self.writable = asyncio.Event()

    def resume_writing(self) -> None:
        writable, self.writable = self.writable, None
        if writable is None:
            return
        writable.set()
        if self._ending:
            return
        if self._cycle is None:
            self._watch(self._loop.time() + self._timeouts.keep_alive)
        elif self._incoming is not None:
            self._await_body()
        else:
            self._deadline.at = inf

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        self._in_head = True
        self._target = b""
        self._headers = []

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves the white space behind a value. Trailers go nowhere: see `on_headers_complete`
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        if parser.should_upgrade():
            self._offer = self._target, self._headers
            return
        version = parser.get_http_version()
        target, headers, self._headers = self._target, self._headers, []
        if self._offer is not None:
            target, headers = self._offer
            self._offer = None
        if self._overhead > MAX_HEAD:
            size = len(target) + sum([len(name) + len(value) + 4 for name, value in headers])
            if size > MAX_HEAD:
                raise _TooLarge
        self._overhead = 0
        if len(headers) > MAX_HEADERS:
            raise _TooLarge
        if len(self._waiting) >= MAX_PIPELINED:
            raise _TooMany
        modern = version == "1.1"
        names = [name for name, _ in headers]
        hosts = names.count(b"host")
        if hosts > 1 or (modern and not hosts):
            raise ValueError("not one Host")
        if not modern and version != "1.0":
            raise ValueError("not HTTP/1")
        # any other coding would reach the application as if it were the body
        if b"transfer-encoding" in names and (not modern or _value(headers, b"transfer-encoding") != b"chunked"):
            raise ValueError("a transfer coding that is not understood")
        path, raw_path, query = parse_target(target)
        scope = {
            **self._base, "http_version": version, "method": parser.get_method().decode("ascii"), "path": path,
            "raw_path": raw_path, "query_string": query, "headers": headers,
        }  # fmt: skip
        keep_alive = modern and parser.should_keep_alive()
        expects = b"expect" in names and modern and _value(headers, b"expect") == b"100-continue"
        cycle = Cycle(self, scope, keep_alive, modern, expects)
        self._in_head = False
        self._incoming = cycle
        self._waiting.append(cycle)

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        cycle = self._incoming
        if cycle is not None and not cycle.ended and not cycle.gone:
            cycle.expects = False
            cycle.chunks.append(body)
            cycle.buffered += len(body)
            cycle.wake()

    def on_message_complete(self) -> None:
        cycle = self._incoming
        if cycle is None:  # an upgrade, which is read once more
            return
        self._incoming = None
        cycle.received = True
        cycle.expects = False
        if not cycle.keep_alive:
            self._deaf = True
        if cycle.ended:
            if not self._ending:
                self._cycle = None
                self._advance()
        else:
            cycle.wake()

    def _unreadable(self, error: HttpParserError) -> None:
        if not self._deaf:  # else it is what follows a last request, which itself is fine
            why = error.__context__
            self._refuse(431 if isinstance(why, _TooLarge) else 0 if isinstance(why, _TooMany) else 400)

    def _read_on(self, rest: memoryview) -> None:
        """Read a request that offers an upgrade (Java's client offers h2c with each one) as an ordinary one.

        llhttp takes what follows such a head for another protocol, or for the next request: the body, too. So it is
        shown a second head, of the same framing but without the offer, and then the rest.
        """
        parser = self._parser
        assert parser is not None
        try:
            while self._offer is not None:
                method = parser.get_method()
                if method == b"CONNECT":
                    self._refuse(400)
                    return
                lines = [b"%b: %b\r\n" % header for header in self._offer[1] if header[0] in _FRAMING]
                if not parser.should_keep_alive():
                    lines.append(b"connection: close\r\n")
                version = parser.get_http_version().encode()
                parser.feed_data(b"%b / HTTP/%b\r\n%b\r\n" % (method, version, b"".join(lines)))
                try:
                    parser.feed_data(rest)
                except HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
        except HttpParserError as error:
            self._unreadable(error)


class _TooLarge(Exception):
    """Raised within a parser callback: too many bytes of head, or too many headers."""


class _TooMany(Exception):
    """Raised within a parser callback: too many requests at once."""


def _value(headers: list[Header], wanted: bytes) -> bytes:
    """The values of a header, in lower case."""
    return b", ".join([value for name, value in headers if name == wanted]).lower()
