"""One Redis connection that all requests of a process share.

Commands that are issued in one tick of the event loop leave in one write, and their replies come back in one read
(coalescing): at load, a command costs a tenth of what a pooled client's costs. hiredis parses. There are no retries
here: a command whose reply is lost raises `StoreUnavailable`, and only the caller knows whether it is idempotent.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import field
from functools import lru_cache
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from tollgate.adapters import telemetry
from tollgate.adapters.patience import LOOK_AGAIN, within
from tollgate.domain.dataclass import dataclass
from tollgate.ports import CannotDecide, Overloaded, StoreUnavailable

CONNECT_TIMEOUT = 0.5
"""Seconds. A new connection takes about 1.4 ms, with TLS about 10."""
REPLY_TIMEOUT = 0.1
"""Seconds. A script call takes about 0.1 ms; an order of magnitude above the worst healthy pause."""
QUEUE = 2.0
"""Seconds that a command may wait longer than that, while replies to those before it keep coming."""
MAX_QUEUE = 10.0
"""The same where they come without a pause: as fast as Redis can, or as we can read. A crowd is no failure."""
PAUSE = 0.025
"""Seconds without a reply that end a queue which is older than `QUEUE`."""
MAX_PENDING = 20_000
"""Commands in flight. More are turned away at once: a process that is ahead of Redis must not grow."""
RENEW_LOGIN = 10 * 3600.0
"""Seconds after which a connection logs in again: ElastiCache ends IAM connections that are 12 hours old."""
RENEW_AGAIN = 600.0
"""Seconds between two tries, where a renewal failed."""

Login = Callable[[], Awaitable[tuple[str, str]]]
"""Gives a user and a password that was made for this login. Raises `StoreUnavailable`."""


class RedisReplyError(Exception):
    """Redis answered with an error; `code` is its first word (NOSCRIPT, MOVED, WRONGTYPE ...)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.partition(" ")[0]


_NO_MASTER = re.compile(r"\b(READONLY|MASTERDOWN|LOADING|NOREPLICAS)\b")
"""What only a server answers that is no master any more, or not yet again: nothing was done, and perhaps another one is
the master now, behind the same name."""
_ABOUT_THE_SERVER = re.compile(r"\b(OOM|MISCONF|CLUSTERDOWN|TRYAGAIN|BUSY|NOAUTH|WRONGPASS|NOPERM)\b")


def refused(error: RedisReplyError) -> StoreUnavailable:
    """What an error answer means for the store: it cannot be used now, or what was asked cannot be answered. (Redis 6
    tells the reason within a script's error.)"""
    if _ABOUT_THE_SERVER.search(str(error)):
        return StoreUnavailable(f"Redis answered {error}")
    return CannotDecide(f"Redis answered {error}")


class ConnectionLost(StoreUnavailable):
    """The server closed the connection (it restarted, or ended an idle one), or is no master any more. A new connection
    may well work."""


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
    """Whether the server's certificate is checked."""
    cluster: bool = False
    iam: str | None = None
    """The name of the ElastiCache cache that `username` logs in to with IAM tokens."""
    server_name: str | None = None
    """Whom the certificate must name, where that is not `host`."""

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """``redis[s]://[user:password@]host[:port][/db][?cluster=yes][&iam=cache-name][&verify=no]``. Raises
        ValueError, without the password."""
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise ValueError(f"expected redis://host:port or rediss://host:port, found the scheme {parts.scheme!r}")
        path = parts.path.strip("/")
        if path and not path.isdecimal():
            raise ValueError(f"the path of a Redis URL is a database number, found {path!r}")
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        verify, cluster, iam = query.pop("verify", "yes"), query.pop("cluster", "no"), query.pop("iam", None)
        if query:
            raise ValueError(f"a Redis URL knows cluster, iam and verify, found {', '.join(map(repr, sorted(query)))}")
        for name, value in (("verify", verify), ("cluster", cluster)):
            if value not in ("yes", "no"):
                raise ValueError(f"{name} is yes or no in a Redis URL, found {value!r}")
        username = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        if iam is not None and (not iam or parts.scheme != "rediss" or username is None or password is not None):
            raise ValueError("iam needs rediss://user@host:port?iam=cache-name: TLS, a user and no password")
        if cluster == "yes" and int(path or 0):
            raise ValueError("a Redis Cluster has no database but 0")
        return cls(
            parts.hostname, parts.port or 6379, parts.scheme == "rediss", username, password, int(path or 0),
            verify == "yes", cluster == "yes", iam,
        )  # fmt: skip


def encoded(*command: str | bytes | int) -> bytes:
    """A command in Redis's protocol."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows one word only
    return packed


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
        self._looked_at: float | None = None
        """When the oldest command was found late, and the socket was given one more chance."""
        self._heard_at = 0.0
        self._broken: StoreUnavailable | None = None

    @classmethod
    async def open(
        cls, address: RedisAddress, reply_timeout: float = REPLY_TIMEOUT, login: Login | None = None
    ) -> RedisConnection:
        """Connect, authenticate (as `login` says, else as the address does) and choose the database. Raises
        `StoreUnavailable`."""
        loop = asyncio.get_running_loop()
        context = tls_context(address.verify) if address.tls else None
        server_name = (address.server_name or address.host) if address.tls else None
        credentials: tuple[str, ...] = ()
        if login is not None:
            credentials = await login()
        elif address.password is not None:
            credentials = (address.username, address.password) if address.username else (address.password,)

        async def connect() -> RedisConnection:
            _, connection = await loop.create_connection(
                lambda: cls(reply_timeout), address.host, address.port, ssl=context, server_hostname=server_name
            )
            try:
                if credentials:
                    await connection.call("AUTH", *credentials)
                if address.db:
                    await connection.call("SELECT", address.db)
            except BaseException:
                connection.close()
                raise
            return connection

        try:
            return await within(CONNECT_TIMEOUT, connect())
        except (OSError, TimeoutError) as error:
            raise StoreUnavailable(f"cannot connect to Redis: {type(error).__name__}") from error
        except RedisReplyError as error:
            raise StoreUnavailable(f"Redis refused the connection: {error.code}") from error

    @property
    def usable(self) -> bool:
        return self._broken is None

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Issue one command. The future gives its reply, or raises `RedisReplyError` or `StoreUnavailable`."""
        return self.send(encoded(*command))

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """As `call`, for a command that is in Redis's protocol already."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._broken is not None or len(self._pending) + len(self._out) >= MAX_PENDING:
            future.set_exception(_again(self._broken or Overloaded("too many Redis commands in flight")))
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append((packed, future))
        return future

    def close(self) -> None:
        self._break(StoreUnavailable("the connection to Redis was closed"))

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is not derived from it

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _NOTHING:
                if isinstance(reply, hiredis.ReplyError) and _NO_MASTER.search(str(reply)):
                    self._break(ConnectionLost(f"Redis answered {reply}"))  # so whoever comes next finds the master
                    return
                _, future = self._pending.popleft()
                if future.done():  # its caller was cancelled
                    continue
                if isinstance(reply, hiredis.ReplyError):
                    future.set_exception(RedisReplyError(str(reply)))
                else:
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self._break(StoreUnavailable(f"what answers is not Redis: {type(error).__name__}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(ConnectionLost("the connection to Redis was lost"))

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
        """One timer for all: replies come in order, so only the oldest command can be the first to time out. While
        others are being answered, a queue is not taken for silence; nor is our own pause, after which the loop may run
        this before it reads what has long been there."""
        self._timer = None
        if not self._pending:
            self._looked_at = None
            return
        due, now = self._pending[0][0], time.monotonic()
        patience = self._timeout if now < due + QUEUE else PAUSE
        left = min(max(due, self._heard_at + patience), due + MAX_QUEUE) - now
        if left > 0:
            self._looked_at = None
        elif self._looked_at is not None and (self._heard_at < self._looked_at or now > due + MAX_QUEUE):
            self._break(StoreUnavailable("Redis did not answer in time"))
            return
        else:
            self._looked_at, left = now, LOOK_AGAIN
        self._timer = self._loop.call_later(left, self._check_deadline)

    def _break(self, reason: StoreUnavailable) -> None:
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
                future.set_exception(_again(reason))


Greet = Callable[[RedisConnection], Awaitable[None]]
"""What a new connection has to pass before anybody uses it. Raises `StoreUnavailable`."""


class RedisNode:
    """One server and the connection to it, which is opened when it is first needed, and again after it was lost.

    With a `login` the connection logs in again before the server ends it. Each new one is greeted before it is used.
    """

    def __init__(
        self,
        address: RedisAddress,
        reply_timeout: float = REPLY_TIMEOUT,
        login: Login | None = None,
        greet: Greet | None = None,
    ) -> None:
        self.address = address
        self._reply_timeout = reply_timeout
        self._login = login
        self._greet = greet
        self._connection: RedisConnection | None = None
        self._greeted: RedisConnection | None = None
        self._opening: asyncio.Future[RedisConnection] | None = None
        self._greeting: asyncio.Future[RedisConnection] | None = None
        self._renewal: asyncio.TimerHandle | asyncio.Task[None] | None = None

    @property
    def connection(self) -> RedisConnection | None:
        """The connection, where there is a usable one that was greeted."""
        connection = self._greeted
        return connection if connection is not None and connection.usable else None

    @property
    def stranger(self) -> RedisConnection | None:
        """The connection, greeted or not."""
        connection = self._connection
        return connection if connection is not None and connection.usable else None

    async def connected(self) -> RedisConnection:
        """The connection, opened and greeted if need be; one attempt, however many wait for it. Raises
        `StoreUnavailable`."""
        if (connection := self.connection) is not None:
            return connection
        if self._greeting is None:
            self._greeting = asyncio.ensure_future(self._welcome())
            self._greeting.add_done_callback(self._welcomed)
        return await asyncio.shield(self._greeting)

    async def opened(self) -> RedisConnection:
        """The connection, opened if need be, but perhaps not greeted: for the greeting itself, and for who asks nothing
        that needs it. Raises `StoreUnavailable`."""
        if (connection := self.stranger) is not None:
            return connection
        if self._opening is None:
            self._opening = asyncio.ensure_future(RedisConnection.open(self.address, self._reply_timeout, self._login))
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def close(self) -> None:
        for running in (self._opening, self._greeting, self._renewal):
            if running is not None:
                running.cancel()
        if self._connection is not None:
            self._connection.close()
        self._connection = self._greeted = self._renewal = None

    async def _welcome(self) -> RedisConnection:
        connection = await self.opened()
        if self._greet is not None:
            await self._greet(connection)
        return connection

    def _welcomed(self, greeting: asyncio.Future[RedisConnection]) -> None:
        self._greeting = None
        if not greeting.cancelled() and greeting.exception() is None:
            self._greeted = greeting.result()

    def _opened(self, opening: asyncio.Future[RedisConnection]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._connection = opening.result()
            if self._login is not None:
                self._renew_in(self._login, RENEW_LOGIN)

    def _renew_in(self, login: Login, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._renewal is not None:
            self._renewal.cancel()

        def start() -> None:
            self._renewal = loop.create_task(self._renew(login))

        self._renewal = loop.call_later(seconds, start)

    async def _renew(self, login: Login) -> None:
        connection, wait = self.stranger, RENEW_LOGIN
        if connection is None:
            return  # the next one logs in when it is opened
        try:
            await connection.call("AUTH", *await login())
        except (RedisReplyError, StoreUnavailable) as error:
            telemetry.log("WARNING", "the login to Redis was not renewed", reason=str(error))
            wait = RENEW_AGAIN
        self._renewal = None
        self._renew_in(login, wait)


@lru_cache(maxsize=2)
def tls_context(verify: bool) -> ssl.SSLContext:
    """TLS 1.2 or newer; made once, because reading the machine's certificates takes longer than a handshake."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _again(error: StoreUnavailable) -> StoreUnavailable:
    """The same error for another future: an exception belongs to one traceback."""
    return type(error)(*error.args)


_NOTHING = object()
