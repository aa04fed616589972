"""Which credential a request presents, read in one way wherever it is read."""

from __future__ import annotations

from collections.abc import Sequence

from tollgate.domain.identity import Unauthorized


class TwoCredentials(Unauthorized):
    """The request presents two credentials that differ. The caller may know that: it is their own mistake."""

    def __init__(self) -> None:
        super().__init__("Authorization and x-api-key differ")


def presented(authorization: Sequence[bytes], api_key: Sequence[bytes] = ()) -> bytes:
    """The one credential of a request, from the values of its `Authorization` and `x-api-key` headers.

    Raises `Unauthorized`. Two `Authorization` headers are refused, even if they agree, and so are two `x-api-key`;
    one of each has to agree: who calls must not depend on which of them somebody reads. An empty `x-api-key` is none.
    """
    given = [stripped for value in api_key if (stripped := value.strip(b" "))]
    if len(given) > 1:
        raise Unauthorized(f"{len(given)} x-api-key headers")
    if given and not any(authorization):
        return given[0]
    if len(authorization) != 1:
        raise Unauthorized(f"{len(authorization)} Authorization headers")
    credential = bearer(authorization[0])
    if given and given[0] != credential:
        raise TwoCredentials
    return credential


def bearer(authorization: bytes) -> bytes:
    """The credential of ``Bearer <credential>`` (RFC 6750; the scheme's case does not matter)."""
    scheme, _, credential = authorization.partition(b" ")
    if scheme != b"Bearer" and scheme.lower() != b"bearer":
        raise Unauthorized("no bearer token")
    return credential.strip(b" ")
