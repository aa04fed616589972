"""JWT access tokens, as a `Verifier`.

Everything that costs nothing is checked first (shape, header, claims), so that only a token which would pass costs
a signature check or a look for new keys; nothing is believed until its signature has been checked. The issuer that a
token names decides which keys may have signed it: one issuer's key never verifies another's token.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn, Protocol

from tollgate.domain.identity import Forged, Identity, Unauthorized
from tollgate.domain.issuers import Issuer

MAX_KID = 256
"""Characters."""
REMEMBER_S = 300

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

# A key named by the token itself, content that is another token, or an extension that must be understood.
_FORBIDDEN_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "zip", "cty", "enc", "b64"})


class SigningKey(Protocol):
    """A public key of an issuer."""

    def verify(self, message: bytes, signature: bytes) -> bool: ...


class SigningKeys(Protocol):
    """One issuer's public keys; may block while it fetches them."""

    def find(self, kid: str, alg: str) -> SigningKey | None:
        """Raises `KeysUnavailable`."""
        ...

    def current(self) -> bool:
        """Whether the last look for them brought them."""
        ...

    def refresh(self) -> None:
        """Begin to fetch them, if that is due; does not wait."""
        ...

    def ready(self) -> bool:
        """Whether there are any, after what is being fetched has come."""
        ...


class TokenVerifier:
    """Tells who holds an access token of one of the issuers."""

    remember_s = REMEMBER_S

    def __init__(self, issuers: Iterable[tuple[Issuer, SigningKeys]]) -> None:
        self._issuers = {issuer.issuer: (issuer, keys) for issuer, keys in issuers}

    def recognises(self, credential: str) -> bool:
        return credential.count(".") == 2

    def warm(self) -> bool:
        """Fetch every issuer's keys, side by side; whether all are there."""
        everyones = [keys for _, keys in self._issuers.values()]
        for keys in everyones:
            keys.refresh()
        ready = [keys.ready() for keys in everyones]
        return all(ready)

    def verify(self, credential: str, now: float) -> Identity:
        token = read(credential)
        name = token.claims.get("iss")
        known = self._issuers.get(name) if isinstance(name, str) else None
        if known is None:
            raise Unauthorized("unknown issuer")
        issuer, keys = known
        if token.alg not in issuer.algorithms:
            raise Unauthorized("algorithm is not allowed")
        identity = issuer.identify(token.typ, token.claims, now)
        key = keys.find(token.kid, token.alg)
        if key is None:
            # while the issuer is away, its newest key may be one that we could not fetch: an honest caller's
            raise (Forged if keys.current() else Unauthorized)("unknown signing key")
        if not key.verify(token.message, token.signature):
            raise Forged("bad signature")
        return identity


class Token(NamedTuple):
    """A token's parts, each of the only form allowed; nothing of it is verified."""

    message: bytes
    """What is signed."""
    signature: bytes
    kid: str
    alg: str
    typ: str
    claims: dict[str, Any]


def read(credential: str) -> Token:
    """Raises `Unauthorized`."""
    if not _SHAPE.fullmatch(credential):
        raise Unauthorized("not three base64url parts")
    head, body, signature = credential.split(".")
    header = _json_object("header", _decode(head))
    if not _FORBIDDEN_HEADERS.isdisjoint(header):
        raise Unauthorized("a forbidden header parameter")
    alg, kid, typ = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(alg, str):
        raise Unauthorized("algorithm is not allowed")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID:
        raise Unauthorized(f"no key id of at most {MAX_KID} characters")
    if not isinstance(typ, str):
        raise Unauthorized("type is not allowed")
    claims = _json_object("claims", _decode(body))
    return Token(credential.rpartition(".")[0].encode(), _decode(signature), kid, alg, typ, claims)


def _decode(part: str) -> bytes:
    """Canonical, unpadded base64url only: otherwise one token could be written in several ways."""
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise Unauthorized("not base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != part.encode():
        raise Unauthorized("not canonical base64url")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate name")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _json_object(what: str, raw: bytes) -> dict[str, Any]:
    """A JSON object without duplicate names (RFC 7519, 4: two readers could see two different claims) or NaN."""
    try:
        found = _JSON.decode(raw.decode())
    except (ValueError, RecursionError):
        raise Unauthorized(f"{what} is not a JSON object with unique names") from None
    if not isinstance(found, dict):
        raise Unauthorized(f"{what} is not a JSON object")
    return found
