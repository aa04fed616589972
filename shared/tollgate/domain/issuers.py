"""Whose tokens count: for each issuer what its tokens look like, and for whom they may speak.

A token is judged by the rules of the issuer that it names, and by no others. Tollgate's own user pool may speak for
every tenant; any further issuer only for the tenants that it is configured with, so that a partner's identity provider
cannot make tokens for somebody else's tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tollgate.domain.claims import ClaimNames, find
from tollgate.domain.identity import ADMIN, SCOPES, Identity, Unauthorized, epoch, granted, names, text

ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})
USUAL_ALGORITHMS = frozenset({"RS256", "ES256"})
ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068, 2.1
LEEWAY_S = 30
MAX_LEEWAY_S = 60

# Only ID tokens carry these (OpenID Connect Core 3.1.3.6); they tell a client who logged in and authorize nothing.
_ID_TOKEN_CLAIMS = frozenset({"at_hash", "c_hash", "nonce"})


class Issuer(NamedTuple):
    """One issuer's rules."""

    issuer: str
    """Exactly as tokens have it in `iss`."""
    jwks_url: str
    audiences: frozenset[str] = frozenset()
    """One of them must be in a token's `aud`."""
    clients: frozenset[str] = frozenset()
    """A token without any `aud` must be of one of these clients (`client_id`), as Cognito's access tokens are. ``*``:
    any, where the scope says that a token is for us."""
    algorithms: frozenset[str] = USUAL_ALGORITHMS
    types: frozenset[str] = frozenset({ACCESS_TOKEN_TYPE})
    """What `typ` marks an access token, in lower case and without ``application/``; none at all counts as ``jwt``."""
    token_use: str = ""
    """What the claim `token_use` marks one, whatever its `typ`; empty: nothing."""
    claims: ClaimNames = ClaimNames()
    tenant: str = ""
    """The tenant of all its tokens, whatever they claim; empty: a claim says it."""
    tenants: tuple[str, ...] = ("*",)
    """The tenants that a claim may name; a final ``*`` stands for any ending."""
    user_prefix: str = ""
    """Put before its users' names, so that two issuers' users are not taken for one another."""
    scope_prefix: str = "tollgate/"
    default_scopes: frozenset[str] = frozenset()
    """What a token may do that has no scope of ours."""
    admin_groups: frozenset[str] = frozenset()
    """Whoever is in one of these groups is an administrator, of all tenants."""
    pool: str = ""
    """The user pool that it is, whose groups can be asked for; empty: none of ours."""
    leeway_s: int = LEEWAY_S
    """0 to 60: forgives an issuer whose clock is ahead of ours (`nbf`, `iat`). Expiry is exact, because being generous
    there would only ever prolong access."""

    def check(self) -> None:
        """Raises `ValueError` that names the field."""
        if not self.issuer:
            raise ValueError("issuer: missing")
        if not self.audiences and not self.clients:
            raise ValueError("audiences: name at least one (or clients, whose tokens have no audience)")
        if "*" in self.clients and self.default_scopes:
            raise ValueError("clients: * needs default_scopes none, so that a scope says what a token is for")
        if not self.algorithms or not self.algorithms <= ALGORITHMS:
            raise ValueError(f"algorithms: expected some of {', '.join(sorted(ALGORITHMS))}")
        if not self.types and not self.token_use:
            raise ValueError("types: name at least one (or token_use)")
        if not 0 <= self.leeway_s <= MAX_LEEWAY_S:
            raise ValueError(f"leeway_s: expected 0 to {MAX_LEEWAY_S}")
        if not self.claims.user or not (self.tenant or self.claims.tenant):
            raise ValueError("claims: tenant and user need at least one claim each")
        if not self.tenants or any("*" in name[:-1] for name in self.tenants):
            raise ValueError("tenants: name at least one; a * may only be the last character")
        if not self.default_scopes <= SCOPES - {ADMIN}:
            raise ValueError(f"default_scopes: expected some of {', '.join(sorted(SCOPES - {ADMIN}))}")
        if self.admin_groups and (self.tenant or "*" not in self.tenants):
            raise ValueError("admin_groups: administrators see all tenants, so tenants must be *")

    def identify(self, typ: str, claims: Mapping[str, Any], now: float) -> Identity:
        """Whom a token stands for, if its signature is good. `typ` is its header's, `now` in epoch seconds.

        Raises `Unauthorized`.
        """
        self._is_access_token(typ, claims)
        self._is_for_us(claims)
        for name in ("nbf", "iat"):
            if name in claims and epoch(name, claims[name]) > now + self.leeway_s:
                raise Unauthorized(f"{name} is in the future")
        expires_at = epoch("exp", claims.get("exp"))
        if now >= expires_at:
            raise Unauthorized("expired")
        where = self.claims
        scopes = self._scopes(claims)
        in_pool = bool(self.pool) and ADMIN in scopes
        return Identity(
            tenant=self._tenant(claims),
            user=text("user", self.user_prefix + text("user", find(claims, where.user), required=True)),
            plan=text("plan", find(claims, where.plan)),
            team=text("team", find(claims, where.team)),
            key=text("key", find(claims, where.key)),
            scopes=scopes,
            expires_at=expires_at,
            pool_user=text("username", claims.get("username"), required=True) if in_pool else "",
        )

    def _is_access_token(self, typ: str, claims: Mapping[str, Any]) -> None:
        kind = typ.lower().removeprefix("application/")
        use = claims.get("token_use", "")
        if "token_use" in claims and use != (self.token_use or "access"):
            raise Unauthorized("not an access token")
        if kind not in self.types and not (kind == "jwt" and self.token_use and use == self.token_use):
            raise Unauthorized("type is not allowed")
        if not _ID_TOKEN_CLAIMS.isdisjoint(claims):
            raise Unauthorized("an ID token")

    def _is_for_us(self, claims: Mapping[str, Any]) -> None:
        if "aud" in claims:
            audience = claims["aud"]
            values = audience if isinstance(audience, list) else [audience]
            if not any(isinstance(value, str) and value in self.audiences for value in values):
                raise Unauthorized("wrong audience")
        else:
            client = claims.get("client_id")
            if "*" not in self.clients and (not isinstance(client, str) or client not in self.clients):
                raise Unauthorized("wrong client")

    def _tenant(self, claims: Mapping[str, Any]) -> str:
        if self.tenant:
            return self.tenant
        tenant = text("tenant", find(claims, self.claims.tenant), required=True)
        if "#" in tenant:
            raise Unauthorized("a tenant's name has no #")  # keys with one in the tenants table are not tenants
        for pattern in self.tenants:
            if tenant == pattern or (pattern[-1:] == "*" and tenant.startswith(pattern[:-1])):
                return tenant
        raise Unauthorized("not a tenant of this issuer")

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[str]:
        """Ours, of all that the token names. Being an administrator is a matter of groups, and no scope grants it; but
        a token without any scope of ours may be meant for somebody else, whoever's it is."""
        prefix = self.scope_prefix
        ours = [name.removeprefix(prefix) for name in names("scopes", find(claims, self.claims.scopes))
                if name.startswith(prefix)]  # fmt: skip
        found = granted((SCOPES - {ADMIN}).intersection(ours) if ours else self.default_scopes)
        if (
            found
            and self.admin_groups
            and not self.admin_groups.isdisjoint(names("groups", find(claims, self.claims.groups)))
        ):
            found |= {ADMIN}
        return found
