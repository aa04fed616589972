"""The issuers that the environment names: a user pool (or one issuer like it) in plain variables, any number of others
as a JSON list in TOLLGATE_ISSUERS. Errors name the variable, the issuer and the field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tollgate.domain.claims import ClaimNames
from tollgate.domain.identity import INVOKE
from tollgate.domain.issuers import ACCESS_TOKEN_TYPE, LEEWAY_S, MAX_LEEWAY_S, USUAL_ALGORITHMS, Issuer

_COGNITO = re.compile(r"https://cognito-idp\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/")
_POOL = re.compile(r"([a-z]{2}(?:-[a-z]+)+-\d+)_[A-Za-z0-9]+")

# What a foreign issuer may not say unless its settings name the claim: the plan of a tenant that has no record, the key
# whose limits count, and who is in which group.
_FOREIGN_CLAIMS = ClaimNames(
    tenant=(("tenant",),), user=(("sub",),), plan=(), team=(("team",),), key=(), groups=(("groups",),)
)


def issuers(environ: Mapping[str, str]) -> tuple[Issuer, ...]:
    """Every issuer whose tokens count. Raises `ValueError` that names the variable."""
    found = [*_first(environ), *_others(environ.get("TOLLGATE_ISSUERS", ""))]
    if not found:
        raise ValueError("set TOLLGATE_USER_POOL_ID (or TOLLGATE_ISSUER) and TOLLGATE_CLIENT_IDS, or TOLLGATE_ISSUERS")
    seen = [issuer.issuer for issuer in found]
    for name in seen:
        if seen.count(name) > 1:
            raise ValueError(f"TOLLGATE_ISSUERS: {name} is named twice")
    return tuple(found)


# -- one issuer in plain variables -------------------------------------------------------------------------------------


def _first(environ: Mapping[str, str]) -> list[Issuer]:
    """A Cognito user pool needs only its id: its issuer, key set and the looks of its tokens follow from it."""
    pool = environ.get("TOLLGATE_USER_POOL_ID", "")
    if pool and not _POOL.fullmatch(pool):
        raise ValueError(f"TOLLGATE_USER_POOL_ID: expected region_id, found {pool!r}")
    name = environ.get("TOLLGATE_ISSUER") or (_pool_issuer(pool) if pool else "")
    clients = _listed(environ.get("TOLLGATE_CLIENT_IDS", ""))
    if not name and not clients:
        return []
    if not name or not clients:
        raise ValueError("set both TOLLGATE_ISSUER (or TOLLGATE_USER_POOL_ID) and TOLLGATE_CLIENT_IDS")
    cognito = bool(pool) or _COGNITO.match(name) is not None
    endpoint = environ.get("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER") or environ.get("AWS_ENDPOINT_URL")
    # an emulated AWS serves the pool's keys itself, though its tokens may name the real issuer
    keys_at = f"{endpoint.rstrip('/')}/{pool}" if endpoint and pool else name.rstrip("/")
    try:
        claims = ClaimNames().having(
            {
                part: _listed(environ[f"TOLLGATE_CLAIM_{part.upper()}"])
                for part in ClaimNames._fields
                if f"TOLLGATE_CLAIM_{part.upper()}" in environ
            }
        )
    except ValueError as error:
        raise ValueError(f"TOLLGATE_CLAIM_...: {error}") from None
    scopes = environ.get("TOLLGATE_DEFAULT_SCOPES", INVOKE)
    issuer = Issuer(
        issuer=name,
        jwks_url=environ.get("TOLLGATE_JWKS_URL") or f"{keys_at}/.well-known/jwks.json",
        audiences=frozenset(clients) - {"*"},
        clients=frozenset(clients),
        algorithms=frozenset({"RS256"}) if cognito else USUAL_ALGORITHMS,
        # Cognito marks every token with its use, and none with a type
        types=frozenset() if cognito else frozenset({ACCESS_TOKEN_TYPE}),
        token_use="access",  # noqa: S106 - not a password
        claims=claims,
        default_scopes=frozenset(_listed(scopes)) - {"none"},
        admin_groups=frozenset(_listed(environ.get("TOLLGATE_ADMIN_GROUPS", ""))),
        pool=pool,
        leeway_s=whole(environ, "TOLLGATE_LEEWAY_SECONDS", LEEWAY_S, most=MAX_LEEWAY_S),
    )
    try:
        issuer.check()
    except ValueError as error:
        raise ValueError(f"TOLLGATE_ISSUER: {error}") from None
    return [issuer]


def _pool_issuer(pool: str) -> str:
    region = pool.partition("_")[0]
    suffix = ".cn" if region.startswith("cn-") else ""
    return f"https://cognito-idp.{region}.amazonaws.com{suffix}/{pool}"


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def whole(environ: Mapping[str, str], name: str, default: int, *, least: int = 0, most: int = 10**9) -> int:
    """A variable's whole number. Raises `ValueError` that names it."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 10 or not least <= int(text) <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, found {text!r:.20}")
    return int(text)


# -- further issuers ---------------------------------------------------------------------------------------------------


def _others(text: str) -> list[Issuer]:
    if not text.strip():
        return []
    try:
        entries = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"TOLLGATE_ISSUERS: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError("TOLLGATE_ISSUERS: expected a list of issuers")
    return [_other(f"TOLLGATE_ISSUERS[{index}]", entry) for index, entry in enumerate(entries)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _other(at: str, entry: Any) -> Issuer:
    """One foreign issuer. It must say for which tenants it may speak."""
    if not isinstance(entry, dict):
        raise ValueError(f"{at}: expected an object")
    fields: dict[str, Any] = {"claims": _FOREIGN_CLAIMS}
    for name, value in entry.items():
        reader = _READERS.get(name)
        if reader is None:
            raise ValueError(f"{at}.{name}: expected one of {', '.join(sorted(_READERS))}")
        try:
            fields[name] = reader(value)
        except ValueError as error:
            raise ValueError(f"{at}.{name}: {error}") from None
    if ("tenant" in fields) == ("tenants" in fields):
        raise ValueError(f'{at}: name either tenant or tenants, for whom it may speak (["*"]: for all)')
    fields.setdefault("jwks_url", f"{fields.get('issuer', '').rstrip('/')}/.well-known/jwks.json")
    try:
        issuer = Issuer(**{"issuer": "", **fields})
        issuer.check()
    except ValueError as error:
        raise ValueError(f"{at}.{error}") from None
    return issuer


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("expected text")
    return value


def _texts(value: Any) -> list[str]:
    """A list of texts, or one."""
    return [_text(item) for item in (value if isinstance(value, list) else [value])]


def _set(value: Any) -> frozenset[str]:
    return frozenset(_texts(value))


def _types(value: Any) -> frozenset[str]:
    return frozenset(name.lower().removeprefix("application/") for name in _texts(value))


def _seconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("expected a whole number")
    return value


def _claims(value: Any) -> ClaimNames:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return _FOREIGN_CLAIMS.having({part: _texts(names) for part, names in value.items()})


def _any_text(value: Any) -> str:
    return "" if value == "" else _text(value)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "issuer": _text,
    "jwks_url": _text,
    "audiences": _set,
    "clients": _set,
    "algorithms": _set,
    "types": _types,
    "token_use": _text,
    "claims": _claims,
    "tenant": _text,
    "tenants": lambda value: tuple(_texts(value)),
    "user_prefix": _text,
    "scope_prefix": _any_text,
    "default_scopes": _set,
    "admin_groups": _set,
    "leeway_s": _seconds,
}
