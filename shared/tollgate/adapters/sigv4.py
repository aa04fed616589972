"""AWS Signature Version 4, in headers and in URLs (docs.aws.amazon.com, "Create a signed AWS API request").

botocore has a signer, but importing it costs more than the whole rest of the proxy's cold start; the tests hold this
one against it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote, urlsplit

Header = tuple[bytes, bytes]


class Credentials(NamedTuple):
    """Keys of an IAM principal; `token` for temporary ones. (Not a dataclass: the authorizer would import those for
    this alone.)"""

    access_key: str
    secret_key: str
    token: str = ""

    def __repr__(self) -> str:
        """Without what nobody may see."""
        return f"Credentials({self.access_key!r})"


def signed_headers(
    method: str,
    url: str,
    headers: Iterable[Header],
    body: bytes,
    *,
    service: str,
    region: str,
    credentials: Credentials,
    now_s: float,
) -> list[Header]:
    """`headers` with x-amz-date, x-amz-security-token (where there is one) and authorization added.

    Every given header is signed, and the host of `url`, which must be encoded as it will be sent. `now_s` in epoch
    seconds: AWS accepts 5 minutes of error.
    """
    parts = urlsplit(url)
    stamp = _stamp(now_s)
    sent = [*headers, (b"x-amz-date", stamp.encode())]
    if credentials.token:
        sent.append((b"x-amz-security-token", credentials.token.encode()))
    lines = {"host": _authority(parts.scheme, parts.hostname or "", parts.port)}
    for name, value in sent:
        key, text = name.decode().lower(), b" ".join(value.split()).decode("latin-1")
        lines[key] = f"{lines[key]},{text}" if key in lines else text
    names = ";".join(sorted(lines))
    canonical = "\n".join(
        [
            method,
            _path(parts.path),
            _query(parts.query),
            *(f"{name}:{lines[name]}" for name in sorted(lines)),
            "",
            names,
            sha256(body).hexdigest(),
        ]
    )
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    signature = _signature(canonical, stamp, scope, _signing_key(credentials.secret_key, stamp[:8], region, service))
    proof = f"Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return [*sent, (b"authorization", b"AWS4-HMAC-SHA256 " + proof.encode())]


def presigned_url(
    url: str, *, service: str, region: str, credentials: Credentials, now_s: float, expires_s: int
) -> str:
    """`url`, which must be encoded, with a signature in its query that lets anybody GET it for `expires_s` seconds."""
    parts = urlsplit(url)
    stamp = _stamp(now_s)
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    proof = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.token:
        proof["X-Amz-Security-Token"] = credentials.token
    words = [parts.query] if parts.query else []
    query = "&".join([*words, *(f"{name}={quote(value, safe='~-._')}" for name, value in proof.items())])
    host = _authority(parts.scheme, parts.hostname or "", parts.port)
    nothing = sha256(b"").hexdigest()
    canonical = "\n".join(["GET", _path(parts.path), _query(query), f"host:{host}", "", "host", nothing])
    signature = _signature(canonical, stamp, scope, _signing_key(credentials.secret_key, stamp[:8], region, service))
    return f"{url.partition('?')[0]}?{query}&X-Amz-Signature={signature}"


def _stamp(now_s: float) -> str:
    return datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")


def _signature(canonical: str, stamp: str, scope: str, signing_key: bytes) -> str:
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    return hmac.digest(signing_key, to_sign.encode(), "sha256").hex()


@lru_cache(maxsize=16)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """The key of a day; four HMACs, so it is kept."""
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _authority(scheme: str, host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port in (None, {"http": 80, "https": 443}.get(scheme)) else f"{name}:{port}"


def _path(path: str) -> str:
    """The path as it is sent, but without empty and dot segments, and encoded once more: every service but S3 does
    the same before it compares."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            kept[-1:] = []
        elif segment not in ("", "."):
            kept.append(segment)
    end = "/" if kept and path.endswith("/") else ""
    return "/" + quote("/".join(kept), safe="/~-._") + end


def _query(query: str) -> str:
    """The parameters as they are sent, sorted by name, then value."""
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&")) if query else []
    return "&".join(f"{name}={value}" for name, value in pairs)
