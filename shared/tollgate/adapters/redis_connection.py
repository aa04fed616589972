"""One Redis connection that all requests of a process share.

Commands that are issued in one tick of the event loop leave in one write, and their replies come back in one read
(coalescing): at load, a command costs a tenth of what a pooled client's costs. hiredis parses. There are no retries
here: a command whose reply is lost raises `StoreUnavailable`, and only the caller knows whether it is idempotent.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from tollgate.ports import StoreUnavailable

CONNECT_TIMEOUT = 0.5
"""Seconds. A new connection takes about 1.4 ms, with TLS about 10."""
REPLY_TIMEOUT = 0.1
"""Seconds. A script call takes about 0.1 ms; an order of magnitude above the worst healthy pause."""
MAX_PENDING = 10_000
"""Commands in flight. More means that Redis does not keep up: fail at once rather than grow."""


class RedisReplyError(Exception):
    """Redis answered with an error; `code` is its first word (NOSCRIPT, MOVED, READONLY ...)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where and how to connect; made from a redis:// or rediss:// URL."""

    host: str
    port: int
    tls: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    verify: bool = True

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """``redis[s]://[user:password@]host[:port][/db][?verify=no]``. Raises ValueError, without the password."""
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise ValueError(f"expected redis://host:port or rediss://host:port, found the scheme {parts.scheme!r}")
        path = parts.path.strip("/")
        if path and not path.isdecimal():
            raise ValueError(f"the path of a Redis URL is a database number, found {path!r}")
        verify = parse_qs(parts.query).get("verify", ["yes"])[-1] != "no"
        username = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        return cls(
            parts.hostname, parts.port or 6379, parts.scheme == "rediss", username, password, int(path or 0), verify
        )


class RedisConnection(asyncio.Protocol):
    """Issues commands and hands out their replies, in order."""

    def __init__(self, reply_timeout: float = REPLY_TIMEOUT) -> None:
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._out: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._pending: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timeout = reply_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._broken: str | None = None
        self.on_lost: Callable[[], None] | None = None

    @classmethod
    async def open(cls, address: RedisAddress, reply_timeout: float = REPLY_TIMEOUT) -> RedisConnection:
        """Connect, authenticate and choose the database. Raises `StoreUnavailable`."""
        loop = asyncio.get_running_loop()
        context: ssl.SSLContext | None = None
        if address.tls:
            context = ssl.create_default_context()
            if not address.verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, connection = await loop.create_connection(
                    lambda: cls(reply_timeout), address.host, address.port, ssl=context
                )
                if address.password is not None:
                    user = [address.username] if address.username else []
                    await connection.call("AUTH", *user, address.password)
                if address.db:
                    await connection.call("SELECT", address.db)
        except (OSError, TimeoutError) as error:
            raise StoreUnavailable(f"cannot connect to Redis: {type(error).__name__}") from error
        except RedisReplyError as error:
            connection.close()
            raise StoreUnavailable(f"Redis refused the connection: {error.code}") from error
        return connection

    @property
    def usable(self) -> bool:
        return self._broken is None

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Issue one command. The future gives its reply, or raises `RedisReplyError` or `StoreUnavailable`."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._broken is not None or len(self._pending) + len(self._out) >= MAX_PENDING:
            future.set_exception(StoreUnavailable(self._broken or "too many Redis commands in flight"))
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub says one-element tuple
        self._out.append((packed, future))
        return future

    def close(self) -> None:
        self._break("the connection to Redis was closed")

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is not derived from it

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _NOTHING:
                _, future = self._pending.popleft()
                if future.done():  # its caller was cancelled
                    continue
                if isinstance(reply, hiredis.ReplyError):
                    future.set_exception(RedisReplyError(str(reply)))
                else:
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self._break(f"what answers is not Redis: {type(error).__name__}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._break("the connection to Redis was lost")

    # -- internals

    def _flush(self) -> None:
        """Write what was issued in this tick. Redis's time starts now, by the real clock: the loop's own stands still
        during a tick, and a busy process would count its own slowness against Redis."""
        out, self._out = self._out, []
        if self._transport is None or self._broken is not None:
            return
        self._transport.write(out[0][0] if len(out) == 1 else b"".join([packed for packed, _ in out]))
        deadline = time.monotonic() + self._timeout
        self._pending.extend([(deadline, future) for _, future in out])
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout, self._check_deadline)

    def _check_deadline(self) -> None:
        """One timer for all: replies come in order, so only the oldest command can be the first to time out."""
        self._timer = None
        if not self._pending:
            return
        left = self._pending[0][0] - time.monotonic()
        if left <= 0:
            self._break("Redis did not answer in time")
        else:
            self._timer = self._loop.call_later(left, self._check_deadline)

    def _break(self, reason: str) -> None:
        if self._broken is not None:
            return
        self._broken = reason
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        waiting = [future for _, future in (*self._pending, *self._out)]
        self._pending.clear()
        self._out.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(StoreUnavailable(reason))
        if self.on_lost is not None:
            self.on_lost()


_NOTHING = object()
