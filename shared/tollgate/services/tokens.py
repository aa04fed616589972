"""JWT access tokens of one issuer, as a `Verifier`.

Everything that costs nothing is checked first (shape, header, claims), so that only a token which would pass costs
a signature check or a look for new keys; nothing is believed until its signature has been checked.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from tollgate.domain.identity import ClaimNames, Forged, Identity, Unauthorized, claims_to_identity, epoch

ALGORITHMS = frozenset({"RS256", "ES256"})
TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
MAX_KID = 256
REMEMBER_S = 300
LEEWAY_S = 30
MAX_LEEWAY_S = 60

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_COGNITO = re.compile(r"https://cognito-idp\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/")
_POOL = re.compile(r"([a-z]{2}(?:-[a-z]+)+-\d+)_[A-Za-z0-9]+")

# A key named by the token itself, content that is another token, or an extension that must be understood.
_FORBIDDEN_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "zip", "cty", "enc", "b64"})

# Only ID tokens carry these (OpenID Connect Core 3.1.3.6); they tell a client who logged in and authorize nothing.
_ID_TOKEN_CLAIMS = frozenset({"at_hash", "c_hash", "nonce"})


class SigningKey(Protocol):
    """A public key of the issuer."""

    def verify(self, message: bytes, signature: bytes) -> bool: ...


class SigningKeys(Protocol):
    """The issuer's public keys; may block while it fetches them."""

    def find(self, kid: str, alg: str) -> SigningKey | None:
        """Raises `KeysUnavailable`."""
        ...

    def warm(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must look like.

    `leeway_s` (0 to 60) forgives an issuer whose clock is ahead of ours (`nbf`, `iat`); expiry is exact, because
    being generous there would only ever prolong access.
    """

    issuer: str
    jwks_url: str
    clients: frozenset[str]
    """The accepted audiences: a token names one as its `aud`, or, having no `aud`, as its `client_id`."""
    claims: ClaimNames = field(default_factory=ClaimNames)
    leeway_s: int = LEEWAY_S
    token_use_required: bool = False
    """Cognito marks every token with its use: there, a token without the mark is not Cognito's."""

    def __post_init__(self) -> None:
        if not self.issuer or not self.clients:
            raise ValueError("set TOLLGATE_ISSUER (or TOLLGATE_USER_POOL_ID) and TOLLGATE_CLIENT_IDS")
        if not 0 <= self.leeway_s <= MAX_LEEWAY_S:
            raise ValueError(f"TOLLGATE_LEEWAY_SECONDS: expected 0 to {MAX_LEEWAY_S}, found {self.leeway_s}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> TokenRules:
        """Read the rules from TOLLGATE_* variables. Raises `ValueError` that names the variable.

        A Cognito user pool needs only its id: its issuer and key set follow from it.
        """
        pool = environ.get("TOLLGATE_USER_POOL_ID", "")
        if pool and not _POOL.fullmatch(pool):
            raise ValueError(f"TOLLGATE_USER_POOL_ID: expected region_id, found {pool!r}")
        issuer = environ.get("TOLLGATE_ISSUER") or (_pool_issuer(pool) if pool else "")
        endpoint = environ.get("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER") or environ.get("AWS_ENDPOINT_URL")
        # an emulated AWS serves the pool's keys itself, though its tokens may name the real issuer
        keys_at = f"{endpoint.rstrip('/')}/{pool}" if endpoint and pool else issuer.rstrip("/")
        return cls(
            issuer=issuer,
            jwks_url=environ.get("TOLLGATE_JWKS_URL") or f"{keys_at}/.well-known/jwks.json",
            clients=frozenset(c.strip() for c in environ.get("TOLLGATE_CLIENT_IDS", "").split(",") if c.strip()),
            claims=ClaimNames.from_env(environ),
            token_use_required=bool(pool) or _COGNITO.match(issuer) is not None,
            leeway_s=whole(environ, "TOLLGATE_LEEWAY_SECONDS", LEEWAY_S),
        )


def _pool_issuer(pool: str) -> str:
    region = pool.partition("_")[0]
    suffix = ".cn" if region.startswith("cn-") else ""
    return f"https://cognito-idp.{region}.amazonaws.com{suffix}/{pool}"


def whole(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(f"{name}: expected a whole number, found {text!r}")
    return int(text)


class TokenVerifier:
    """Tells who holds an access token of the issuer."""

    remember_s = REMEMBER_S

    def __init__(self, rules: TokenRules, signing_keys: SigningKeys) -> None:
        self._rules = rules
        self._keys = signing_keys

    def recognises(self, credential: str) -> bool:
        return credential.count(".") == 2

    def warm(self) -> bool:
        return self._keys.warm()

    def verify(self, credential: str, now: float) -> Identity:
        message, signature, kid, alg, claims = _read(credential)
        identity = self._check(claims, now)
        key = self._keys.find(kid, alg)
        if key is None or not key.verify(message, signature):
            raise Forged("unknown signing key" if key is None else "bad signature")
        return identity

    def _check(self, claims: Mapping[str, Any], now: float) -> Identity:
        rules = self._rules
        if claims.get("iss") != rules.issuer:
            raise Unauthorized("wrong issuer")
        if not _names(claims, "aud" if "aud" in claims else "client_id") & rules.clients:
            raise Unauthorized("wrong audience")
        if (rules.token_use_required or "token_use" in claims) and claims.get("token_use") != "access":
            raise Unauthorized("not an access token")
        if not _ID_TOKEN_CLAIMS.isdisjoint(claims):
            raise Unauthorized("an ID token")
        for name in ("nbf", "iat"):
            if name in claims and epoch(name, claims[name]) > now + rules.leeway_s:
                raise Unauthorized(f"{name} is in the future")
        identity = claims_to_identity(claims, rules.claims)
        if identity.expired(now):
            raise Unauthorized("expired")
        return identity


def _read(token: str) -> tuple[bytes, bytes, str, str, dict[str, Any]]:
    """An unverified token's signed part, signature, key id, algorithm and claims, each of the only form allowed."""
    if not _SHAPE.fullmatch(token):
        raise Unauthorized("not three base64url parts")
    head, body, signature = token.split(".")
    header = _json_object("header", _decode(head))
    if not _FORBIDDEN_HEADERS.isdisjoint(header):
        raise Unauthorized("a forbidden header parameter")
    alg, kid, typ = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(alg, str) or alg not in ALGORITHMS:
        raise Unauthorized("algorithm is not allowed")
    if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID:
        raise Unauthorized(f"no key id of at most {MAX_KID} characters")
    if not isinstance(typ, str) or typ.lower() not in TYPES:
        raise Unauthorized("type is not allowed")
    return f"{head}.{body}".encode(), _decode(signature), kid, alg, _json_object("claims", _decode(body))


def _decode(part: str) -> bytes:
    """Canonical, unpadded base64url only: otherwise one token could be written in several ways."""
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise Unauthorized("not base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != part.encode():
        raise Unauthorized("not canonical base64url")
    return raw


def _json_object(what: str, raw: bytes) -> dict[str, Any]:
    """A JSON object without duplicate names (RFC 7519, 4: two readers could see two different claims) or NaN."""
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Unauthorized(f"{what} is not a JSON object with unique names") from None
    if not isinstance(found, dict):
        raise Unauthorized(f"{what} is not a JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate name")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _names(claims: Mapping[str, Any], claim: str) -> frozenset[str]:
    """A claim that is one string or a list of strings."""
    value = claims.get(claim)
    values = value if isinstance(value, list) else [value]
    return frozenset(v for v in values if isinstance(v, str))
