"""One HTTP exchange over ASGI: just what the gateway needs, without a framework (starlette costs 80 ms to import)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from tollgate.domain.identity import Identity
from tollgate.wire import errors

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]


class Disconnected(Exception):
    """The caller left before the request was complete."""


class Exchange:
    """A request, and its answer as it is sent."""

    __slots__ = (
        "_receive", "_send", "address", "headers", "method", "path", "peer", "raw_headers", "started", "streams", "who",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_headers: list[Header] = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(reversed(self.raw_headers))
        """Lower-case names; of a repeated header the first value."""
        client = scope.get("client")
        self.peer: str = client[0] if client else ""
        self.address = ""
        """The caller's, where it is known before the caller is."""
        self.who: Identity | None = None
        """The caller, once known."""
        self.started = False
        self.streams = False
        self._receive = receive
        self._send = send

    async def body(self, limit: int) -> bytes:
        """The whole request body; raises `ApiError` 413 above `limit` bytes, `Disconnected` if it never completes."""
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise errors.request_too_large(limit)
        message = await self._receive()
        if not message.get("more_body") and message["type"] == "http.request":
            chunk: bytes = message.get("body", b"")
            if len(chunk) > limit:
                raise errors.request_too_large(limit)
            return chunk
        chunks: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                raise Disconnected
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise errors.request_too_large(limit)
            chunks.append(chunk)
            if not message.get("more_body"):
                return b"".join(chunks)
            message = await self._receive()

    # What follows is no coroutine of its own, which would only await the server's.

    def start(self, status: int, headers: Sequence[Header], *, streams: bool = False) -> Awaitable[None]:
        """Begin the answer. `streams`: it is made of events, to which one about an error may be added."""
        self.started = True
        self.streams = streams
        return self._send({"type": "http.response.start", "status": status, "headers": headers})

    def send(self, chunk: bytes) -> Awaitable[None]:
        """Part of the answer's body; it leaves at once."""
        return self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    def finish(self) -> Awaitable[None]:
        """The answer is complete. On Lambda the process may be frozen from here on."""
        return self._send({"type": "http.response.body", "body": b"", "more_body": False})
