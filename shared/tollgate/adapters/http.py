"""The gateway's HTTP/1.1 client: a keep-alive pool over llhttp and bare asyncio transports.

It exists because the HTTP client decides the gateway's speed (docs/adr/0003-own-http-client.md). It does what a gateway
needs and no more: no redirects, no cookies, no decompression, no proxies, no retries.

A keep-alive connection may be closed by its server at any moment. The pool therefore asks the kernel before it reuses
one (`Connection.is_live`), and silently takes the next, or a fresh one: nothing was written yet, so that is safe for
every method. If the close arrives after the request was written, the server may have acted on it: the call fails with
`ClosedEarly` (`sent` is true), and whether to try again is the caller's decision.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

from tollgate.adapters.http_connection import Connection, Response
from tollgate.adapters.http_message import (
    BodyTooLarge,
    ClosedEarly,
    ConnectFailed,
    Header,
    Phase,
    ProtocolError,
    TimedOut,
    Timeouts,
    UpstreamError,
    Url,
    encode_head,
)

__all__ = [
    "BodyTooLarge",
    "ClosedEarly",
    "ConnectFailed",
    "Header",
    "HttpClient",
    "Phase",
    "ProtocolError",
    "Response",
    "TimedOut",
    "Timeouts",
    "UpstreamError",
    "Url",
]


class HttpClient:
    """Calls servers, and keeps up to `max_idle_per_origin` connections to each for up to `idle_ttl` seconds.

    The default of `idle_ttl` is below the 60 s after which usual load balancers close idle connections. Belongs to
    one event loop.
    """

    def __init__(
        self, *, max_idle_per_origin: int = 128, idle_ttl: float = 55.0, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._max_idle = max_idle_per_origin
        self._idle_ttl = idle_ttl
        self._ssl_context = ssl_context
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._connections: set[Connection] = set()
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False

    async def request(
        self,
        method: str,
        url: Url | str,
        headers: Sequence[Header] = (),
        body: bytes = b"",
        timeouts: Timeouts | None = None,
    ) -> Response:
        """Sends a request and returns when the head of its response is here; the body follows by iteration.

        The client writes Host, Content-Length and the connection's headers itself, and refuses them from the caller.
        Raises UpstreamError, or ValueError for a request that must not be sent. Cancelling drops the connection.
        """
        if isinstance(url, str):
            url = Url.parse(url)
        if timeouts is None:
            timeouts = _DEFAULT_TIMEOUTS
        if self._closed:
            raise ConnectFailed("the client was closed")
        head = encode_head(method, url, headers, len(body))
        total_at = asyncio.get_running_loop().time() + timeouts.total
        connection = self._reuse(url) or await self._connect(url, timeouts)
        response = connection.send(head, body, method == "HEAD", timeouts, total_at)
        await response.wait_for_head()
        return response

    def warm(self) -> None:
        """Loads the trust store now (about 20 ms of CPU) rather than on the first https call."""
        self._tls()

    def drop_idle(self) -> None:
        """Forgets every idle connection, as after a restore from a snapshot."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    async def aclose(self) -> None:
        """Drops all connections, also those in use, and waits until their sockets are closed."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._connections):
            connection.fail(ClosedEarly("the client was closed", after_bytes=0))
        while self._connections:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def _reuse(self, url: Url) -> Connection | None:
        """The connection used last, because it is the likeliest to be alive; the others can grow old and go."""
        connections = self._idle.get(url.origin)
        while connections:
            connection = connections.pop()
            if connection.is_live():
                return connection
            connection.abort()
        return None

    async def _connect(self, url: Url, timeouts: Timeouts) -> Connection:
        loop = asyncio.get_running_loop()
        secure = url.scheme == "https"
        connection = Connection(loop, self, url.origin)
        try:
            async with asyncio.timeout(min(timeouts.connect, timeouts.total)) as deadline:
                try:
                    await loop.create_connection(
                        lambda: connection,
                        url.host,
                        url.port,
                        ssl=self._tls() if secure else None,
                        server_hostname=url.host if secure else None,
                    )
                except asyncio.CancelledError:
                    self.lost(connection)  # uvloop closes a socket that has just been connected, and tells nobody
                    raise
        except (OSError, UnicodeError) as exc:  # TimeoutError is an OSError; so are the resolver's and TLS's errors
            if deadline.expired():
                raise TimedOut("connect" if timeouts.connect <= timeouts.total else "total", sent=False) from exc
            raise ConnectFailed(f"cannot connect to {url.host}:{url.port}: {exc}") from exc
        if self._closed:  # meanwhile
            connection.abort()
            raise ConnectFailed("the client was closed")
        if connection.is_closing():  # a loop tick lies between the handshake and here
            raise ConnectFailed(f"{url.host}:{url.port} closed the connection at once")
        return connection

    def prepare(self) -> None:
        """Load what the first TLS connection needs, before a request waits for it: the authorities' certificates (some
        40 ms) and the codec of host names."""
        self._tls()
        "".encode("idna")

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
            self._ssl_context.set_alpn_protocols(["http/1.1"])
        return self._ssl_context

    # Connections report to these

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def idle(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
            return
        connections = self._idle.setdefault(connection.origin, [])
        connections.append(connection)
        connection.rest(self._idle_ttl)
        if len(connections) > self._max_idle:
            connections.pop(0).abort()

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        connections = self._idle.get(connection.origin)
        if connections is not None and connection in connections:
            connections.remove(connection)
        if self._emptied is not None and not self._connections and not self._emptied.done():
            self._emptied.set_result(None)


_DEFAULT_TIMEOUTS = Timeouts()
