"""Who calls: the identity that a token's claims (or an authorizer's context) stand for.

The tenant, user, team and key of a request come from here only, never from a body, query or header of the caller.
What they may do is the tenant's record as it is now; the plan in the identity is only where it starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MAX_TEXT = 256
"""The longest id, plan or scope, in characters; the same bound that usage records have."""
MAX_SCOPES = 64
MAX_EPOCH = 2**53
"""The latest expiry, in epoch seconds; anything beyond is a corrupt claim (and would not survive JSON doubles)."""


class Unauthorized(Exception):
    """This caller is not known. `reason` is for our logs; a caller learns nothing but 401."""

    def __init__(self, reason: str) -> None:
        super().__init__("Unauthorized")
        self.reason = reason


class Forged(Unauthorized):
    """No honest client can have sent this (a signature that does not fit, a key that never was): it is counted against
    its address."""


class TooManyFailures(Unauthorized):
    """Too many forged credentials came from this address. Where a status can be chosen: 429 after `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("too many forged credentials from this address")
        self.retry_after_s = retry_after_s


class KeysUnavailable(Exception):
    """The issuer's signing keys were never loaded and cannot be now: not the caller's fault (503, not 401)."""


class Identity(NamedTuple):
    """Who calls, as far as their credential says. Optional parts are ``""``; `expires_at` is in epoch seconds."""

    tenant: str
    user: str
    plan: str = ""
    team: str = ""
    key: str = ""
    scopes: frozenset[str] = frozenset()
    expires_at: int = 0

    def expired(self, now_s: float) -> bool:
        """Whether the credential has run out; `now_s` in epoch seconds. Asked at every use, cached or not."""
        return now_s >= self.expires_at

    def to_context(self) -> dict[str, str]:
        """The authorizer's context: flat, all strings, empty parts left out."""
        parts = {
            "tenant": self.tenant,
            "user": self.user,
            "plan": self.plan,
            "team": self.team,
            "key": self.key,
            "scopes": " ".join(sorted(self.scopes)),
            "exp": str(self.expires_at),
        }
        return {name: value for name, value in parts.items() if value}

    @classmethod
    def from_context(cls, context: Mapping[str, Any]) -> Identity:
        """Read what `to_context` wrote. API Gateway's own entries (`principalId`, ...) are ignored.

        Raises `Unauthorized` for anything that `to_context` cannot have written.
        """
        exp = context.get("exp")
        if not isinstance(exp, str) or not exp.isascii() or not exp.isdigit() or len(exp) > 16:
            raise Unauthorized("context: exp is not a whole number")
        return cls(
            tenant=_text("tenant", context.get("tenant"), required=True),
            user=_text("user", context.get("user"), required=True),
            plan=_text("plan", context.get("plan", "")),
            team=_text("team", context.get("team", "")),
            key=_text("key", context.get("key", "")),
            scopes=_scopes(context.get("scopes", "")),
            expires_at=int(exp),
        )


class ClaimNames(NamedTuple):
    """Which claim holds which part: for each part the first of its names that a token has."""

    tenant: tuple[str, ...] = ("tenant", "custom:tenant")
    user: tuple[str, ...] = ("sub", "client_id")
    """Tokens of machines (client credentials) may have no `sub`; their client is their user."""
    plan: tuple[str, ...] = ("plan", "custom:plan")
    team: tuple[str, ...] = ("team", "custom:team")
    key: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ("scope", "scp")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> ClaimNames:
        """Read `TOLLGATE_CLAIM_TENANT`, `_USER`, `_PLAN`, `_TEAM`, `_KEY`, `_SCOPES`: comma-separated claim names."""
        found: dict[str, tuple[str, ...]] = {}
        for part in cls._fields:
            variable = f"TOLLGATE_CLAIM_{part.upper()}"
            if variable not in environ:
                continue
            found[part] = tuple(name.strip() for name in environ[variable].split(",") if name.strip())
            if not found[part] and part in ("tenant", "user"):
                raise ValueError(f"{variable}: name at least one claim (unset it for the default)")
        return cls(**found)


def claims_to_identity(claims: Mapping[str, Any], names: ClaimNames) -> Identity:
    """The identity that a token's claims stand for.

    A claim of the wrong type is refused rather than passed over for its next name, and a token without a tenant or
    user is nobody's. Raises `Unauthorized`.
    """
    return Identity(
        tenant=_text("tenant", _first(claims, names.tenant), required=True),
        user=_text("user", _first(claims, names.user), required=True),
        plan=_text("plan", _first(claims, names.plan)),
        team=_text("team", _first(claims, names.team)),
        key=_text("key", _first(claims, names.key)),
        scopes=_scopes(_first(claims, names.scopes)),
        expires_at=epoch("exp", claims.get("exp")),
    )


def epoch(name: str, value: Any) -> int:
    """A NumericDate claim in whole epoch seconds, rounded down. Raises `Unauthorized`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthorized(f"{name} is not a number")
    if not 0 <= value <= MAX_EPOCH:  # false for NaN and the infinities too
        raise Unauthorized(f"{name} is out of range")
    return int(value)


def _first(claims: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((claims[name] for name in names if name in claims), "")


def _text(part: str, value: Any, *, required: bool = False) -> str:
    """Printable text of at most 256 characters: no control characters, no lone surrogates, no invisible ones."""
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise Unauthorized(f"{part} is not printable text of at most {MAX_TEXT} characters")
    if required and not value.strip():
        raise Unauthorized(f"{part} is missing")
    return value


def _scopes(value: Any) -> frozenset[str]:
    """OAuth scopes: one space-separated string (RFC 9068), or a list of strings, as some issuers write them."""
    found = value.split() if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > MAX_SCOPES:
        raise Unauthorized(f"scopes are not a list of at most {MAX_SCOPES}")
    scopes = frozenset(_text("scope", scope, required=True) for scope in found)
    if any(" " in scope for scope in scopes):
        raise Unauthorized("a scope holds a space")
    return scopes
