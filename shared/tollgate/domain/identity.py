"""Who calls: the identity that a token's claims (or an authorizer's context) stand for.

The tenant, user, team and key of a request come from here only, never from a body, query or header of the caller.
What they may do is the tenant's record as it is now; the plan in the identity is only where it starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

MAX_TEXT = 256
"""The longest id, plan or scope, in characters; the same bound that usage records have."""
MAX_NAMES = 256
"""The most scopes or groups of one token."""
MAX_RESTRICTIONS = 2048
"""The longest `restrictions`, in characters: they pass through a header, beside everything else."""
MAX_EPOCH = 2**53
"""The latest expiry, in epoch seconds; anything beyond is a corrupt claim (and would not survive JSON doubles)."""

INVOKE, MODELS_READ, USAGE_READ, ADMIN = "invoke", "models.read", "usage.read", "admin"
"""What a credential may be good for: to call models (and all that an ordinary caller does besides), to list models, to
read the caller's own limits and use, and to read everybody's."""
SCOPES = frozenset({INVOKE, MODELS_READ, USAGE_READ, ADMIN})


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
    """Of `SCOPES`, each named: what is not in here may not be done (see `granted`)."""
    expires_at: int = 0
    restrictions: str = ""
    """What narrows an API key down, as text: `domain.restrictions`."""
    pool_user: str = ""
    """An administrator's name in the user pool, which is asked whether they still are one; empty where nobody can be
    asked, and their token's word counts."""

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
            "restrictions": self.restrictions,
            "pool_user": self.pool_user,
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
            tenant=text("tenant", context.get("tenant"), required=True),
            user=text("user", context.get("user"), required=True),
            plan=text("plan", context.get("plan", "")),
            team=text("team", context.get("team", "")),
            key=text("key", context.get("key", "")),
            scopes=_granted(text("scopes", context.get("scopes", ""))),
            expires_at=int(exp),
            restrictions=text("restrictions", context.get("restrictions", ""), most=MAX_RESTRICTIONS),
            pool_user=text("pool_user", context.get("pool_user", "")),
        )


def names_of_pool_user(username: str, sub: str, tenant: str) -> frozenset[str]:
    """What a user of the user pool is called as a caller: by tokens their `sub`, by API keys what operators call them.

    The local stack's pool calls them ``tenant/user``, its tokens ``user``.
    """
    return frozenset({username, username.removeprefix(f"{tenant}/"), sub} - {""})


def granted(scopes: Iterable[str]) -> frozenset[str]:
    """The scopes that these stand for: who may call models may list them, and see the own use."""
    found = frozenset(scopes)
    return found | {MODELS_READ, USAGE_READ} if INVOKE in found else found


def epoch(name: str, value: Any) -> int:
    """A NumericDate claim in whole epoch seconds, rounded down. Raises `Unauthorized`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthorized(f"{name} is not a number")
    if not 0 <= value <= MAX_EPOCH:  # false for NaN and the infinities too
        raise Unauthorized(f"{name} is out of range")
    return int(value)


def text(part: str, value: Any, *, required: bool = False, most: int = MAX_TEXT) -> str:
    """Printable text of at most `most` characters: no control characters, no lone surrogates, no invisible ones."""
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise Unauthorized(f"{part} is not printable text of at most {most} characters")
    if required and not value.strip():
        raise Unauthorized(f"{part} is missing")
    return value


def names(what: str, value: Any) -> list[str]:
    """A list of names, or (as RFC 9068 writes scopes) one string with spaces between. Raises `Unauthorized`."""
    found = value.split() if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > MAX_NAMES:
        raise Unauthorized(f"{what} are not a list of at most {MAX_NAMES}")
    return [text(what, name, required=True) for name in found]


@lru_cache(maxsize=64)
def _granted(scopes: str) -> frozenset[str]:
    """The scopes that a context names; those that nothing knows grant nothing."""
    return granted(SCOPES.intersection(scopes.split()))
