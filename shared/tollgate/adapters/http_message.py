"""What the HTTP client says and answers: URLs, timeouts, errors and the encoding of a request's head. No IO."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

from tollgate.domain.dataclass import dataclass

Header = tuple[bytes, bytes]
Phase = Literal["connect", "first_byte", "idle", "total"]

_DEFAULT_PORT = {"http": 80, "https": 443}
_VISIBLE = re.compile(r"[!-~]+")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"})
"""Headers that decide where a message ends or who gets it: only the client itself may write them."""

_BODILESS_METHODS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


class UpstreamError(Exception):
    """A call that gave no complete response. `sent` says whether the server may have seen the request."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ConnectFailed(UpstreamError):
    """No connection: the name does not resolve, nobody listens, or the TLS handshake failed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class TimedOut(UpstreamError):
    """A deadline passed; `phase` names which one of `Timeouts` it was."""

    def __init__(self, phase: Phase, *, sent: bool) -> None:
        super().__init__(f"timed out ({phase})", sent=sent)
        self.phase: Phase = phase


class ProtocolError(UpstreamError):
    """The server's bytes are not an HTTP/1.1 response that we accept."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=True)


class BodyTooLarge(ProtocolError):
    """The body is longer than the limit given to `Response.read`."""


class ClosedEarly(UpstreamError):
    """The connection ended before the response did, after `after_bytes` bytes of its body."""

    def __init__(self, message: str, *, after_bytes: int) -> None:
        super().__init__(message, sent=True)
        self.after_bytes = after_bytes


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one call may take, in seconds."""

    connect: float = 2.0
    """Name lookup, TCP and TLS together; nothing is spent on a reused connection."""
    first_byte: float = 30.0
    """From the request's last byte being handed over until the response's head is here."""
    idle: float = 30.0
    """The longest silence within the body."""
    total: float = 300.0
    """From the start of the call to the last byte of the body."""


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http(s) URL, taken apart once. `Url.parse` remembers, so passing strings is cheap, too."""

    scheme: str
    host: str
    port: int
    target: str
    origin: tuple[str, str, int]
    """Pool key: connections are shared by scheme, host and port."""
    authority: bytes
    """The Host header: without the port where it is the scheme's own."""
    request_tail: bytes
    """What follows the method in a request's first line: target and version."""

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Url:
        """Raises ValueError for anything but a plain absolute URL; credentials in URLs are refused."""
        if not _VISIBLE.fullmatch(text):  # first: urlsplit silently drops CR, LF and tabs
            raise ValueError("a URL must be visible ASCII without spaces")
        parts = urlsplit(text)
        host = parts.hostname
        if parts.scheme not in _DEFAULT_PORT or not host or not _HOST.fullmatch(host):
            raise ValueError(f"not an absolute http or https URL: {text!r}")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a URL must not carry credentials")
        port = parts.port or _DEFAULT_PORT[parts.scheme]
        authority = f"[{host}]" if ":" in host else host
        if port != _DEFAULT_PORT[parts.scheme]:
            authority = f"{authority}:{port}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Url(
            scheme=parts.scheme,
            host=host,
            port=port,
            target=target,
            origin=(parts.scheme, host, port),
            authority=authority.encode(),
            request_tail=f" {target} HTTP/1.1".encode(),
        )


def encode_head(method: str, url: Url, headers: Sequence[Header], body_length: int) -> bytes:
    """The request's head. Raises ValueError for headers that could change where a message begins or ends."""
    head = _head(method, url.request_tail, url.authority, tuple(headers))
    if body_length or method not in _BODILESS_METHODS:
        return b"%bcontent-length: %d\r\n\r\n" % (head, body_length)
    return head + b"\r\n"


@lru_cache(maxsize=256)
def _head(method: str, request_tail: bytes, authority: bytes, headers: tuple[Header, ...]) -> bytes:
    """All but its length, which is what differs between most calls of an upstream, and its end."""
    for name, _ in headers:
        if not TOKEN.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        if name.lower() in _FRAMING:
            raise ValueError(f"the client writes this header itself: {name!r}")
    lines = [method.encode("ascii") + request_tail, b"host: " + authority, *map(header_line, headers)]
    return end_lines(lines).removesuffix(b"\r\n")


header_line = b": ".join
"""A header as its line says it."""


def end_lines(lines: list[bytes]) -> bytes:
    """A head made of its lines. Raises ValueError where one of them would end before its end."""
    text = b"".join(lines)  # one scan of them all is cheaper than one for each value, and nothing slips past it
    if text.find(b"\r") >= 0 or text.find(b"\n") >= 0 or text.find(b"\0") >= 0:  # three times as fast as `in`
        raise ValueError("CR, LF or NUL in a line of the head")
    return b"\r\n".join([*lines, b"\r\n"])
