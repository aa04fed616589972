"""What the HTTP server reads of a request's head, and how it writes an answer's. No IO."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from httptools import HttpParserInvalidURLError, parse_url

from tollgate.adapters.http_message import TOKEN, Header, end_lines, header_line

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
UNDECLARED: Final = -1

_PHRASES = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content", 301: "Moved Permanently",
    302: "Found", 303: "See Other", 304: "Not Modified", 307: "Temporary Redirect", 308: "Permanent Redirect",
    400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 408: "Request Timeout", 409: "Conflict", 410: "Gone",
    411: "Length Required", 412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long",
    415: "Unsupported Media Type", 417: "Expectation Failed", 422: "Unprocessable Content", 424: "Failed Dependency",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout", 529: "Overloaded",
}  # fmt: skip
_STATUS_LINES = {status: f"HTTP/1.1 {status} {phrase}".encode() for status, phrase in _PHRASES.items()}
"""http.HTTPStatus knows more, and costs 5 ms to import."""

_known_names = {b"content-length"}
"""Names of headers that may be written as they are: found to be valid, in lower case, and silent about framing (but for
this one, whose value is looked at). An application repeats a few dozen."""
_KNOWN_NAMES_MAX = 1024
_HOP_BY_HOP = frozenset({b"transfer-encoding", b"connection", b"keep-alive", b"upgrade"})
_SHORT = 200
"""Bytes of a target up to which it is remembered: callers repeat a few."""


def parse_target(target: bytes) -> tuple[str, bytes, bytes]:
    """ASGI's `path`, `raw_path` and `query_string` of a request's target. Raises ValueError."""
    return _parse_short(target) if len(target) <= _SHORT else _parse(target)


def _parse(target: bytes) -> tuple[str, bytes, bytes]:
    if b"#" in target:
        raise ValueError("a request's target has no fragment")
    if target[:1] == b"/" or target == b"*":
        raw, _, query = target.partition(b"?")
    else:  # as sent to a proxy: the scheme and the authority change nothing here
        try:
            url = parse_url(target)
        except HttpParserInvalidURLError as error:
            raise ValueError(str(error)) from error
        if url.schema is None or url.schema.lower() not in (b"http", b"https"):
            raise ValueError("neither a path nor an http URL")
        raw, query = url.path or b"/", url.query or b""
    path = raw.decode("ascii")
    return (unquote(path) if "%" in path else path), raw, query


_parse_short = lru_cache(maxsize=512)(_parse)


def encode_head(
    status: int, headers: Sequence[Header], *, close: bool, chunked: bool, bodiless: bool
) -> tuple[bytes, int, bool]:
    """An answer's head; the body's length as the application declared it (or `UNDECLARED`); whether the connection
    ends with this answer.

    The server alone writes the headers of framing: of those that the application gives, the length is checked and
    kept, ``connection: close`` obeyed, and the rest dropped. `chunked`: how a body of undeclared length is framed
    (else it ends with the connection). `bodiless`: no body follows, whatever is declared. Raises ValueError for
    anything that could change where the answer begins or ends.
    """
    names = [name for name, _ in headers]
    if not _known_names.issuperset(names):
        close = close or _asks_to_close(headers)
        headers = _ordinary(headers)
        names = [name for name, _ in headers]
    lines = [_STATUS_LINES.get(status) or _status_line(status)]
    length = UNDECLARED
    if b"content-length" in names:
        length = _length(headers, names)
        if status == 204:  # which never has one
            headers = [header for header in headers if header[0] != b"content-length"]
    elif not bodiless:
        if chunked:
            lines.append(b"transfer-encoding: chunked")
        else:
            close = True
    if close:
        lines.append(b"connection: close")
    lines += map(header_line, headers)
    return end_lines(lines), length, close


def _status_line(status: int) -> bytes:
    if not 200 <= status <= 999:
        raise ValueError(f"not the status of an answer: {status}")
    return b"HTTP/1.1 %d " % status


def _asks_to_close(headers: Sequence[Header]) -> bool:
    return any(name.lower() == b"connection" and b"close" in value.lower() for name, value in headers)


def _ordinary(headers: Sequence[Header]) -> list[Header]:
    """Those that are not the server's affair, with names in lower case; a new name is checked and remembered."""
    kept = []
    for name, value in headers:
        lower = name.lower()
        if lower not in _known_names:
            if not TOKEN.fullmatch(lower):
                raise ValueError(f"not a header name: {name!r}")
            if lower in _HOP_BY_HOP:
                continue
            if len(_known_names) < _KNOWN_NAMES_MAX:
                _known_names.add(lower)
        kept.append((lower, value))
    return kept


def _length(headers: Sequence[Header], names: list[bytes]) -> int:
    value = headers[names.index(b"content-length")][1]
    if names.count(b"content-length") > 1 or not value.isdigit() or len(value) > 18:
        raise ValueError(f"not one content-length: {value!r}")
    return int(value)


def _refusal(status: int, kind: str, code: str, message: str) -> bytes:
    body = f'{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":"{code}"}}}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    head, _, _ = encode_head(status, headers, close=True, chunked=False, bodiless=False)
    return head + body


REFUSALS = {
    400: _refusal(400, "invalid_request_error", "bad_request", "This is not a valid HTTP/1.1 request."),
    408: _refusal(408, "invalid_request_error", "request_timeout", "The request did not arrive in time."),
    431: _refusal(431, "invalid_request_error", "headers_too_large", "The request's headers are too large."),
    500: _refusal(500, "server_error", "internal_error", "The server had an error while processing the request."),
}
"""What the server answers by itself, whole; the connection ends with it."""
