"""Which credential a request presents, read in one way wherever it is read."""

from __future__ import annotations

from collections.abc import Sequence

from tollgate.domain.identity import Unauthorized


def presented(authorization: Sequence[bytes]) -> bytes:
    """The one credential of a request, from the values of its `Authorization` headers. Raises `Unauthorized`.

    Two headers are refused, even if they agree: which one counts must not depend on who reads.
    """
    if len(authorization) != 1:
        raise Unauthorized(f"{len(authorization)} Authorization headers")
    return bearer(authorization[0])


def bearer(authorization: bytes) -> bytes:
    """The credential of ``Bearer <credential>`` (RFC 6750; the scheme's case does not matter)."""
    scheme, _, credential = authorization.partition(b" ")
    if scheme != b"Bearer" and scheme.lower() != b"bearer":
        raise Unauthorized("no bearer token")
    return credential.strip(b" ")
