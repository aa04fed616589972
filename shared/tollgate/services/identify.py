"""Who calls, in the two places where the proxy runs.

On Lambda, API Gateway's authorizer has decided, and its context arrives in a header that the web adapter writes and no
client can. Everywhere else the same verifier runs in this process, and the header is only something a client sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import orjson

from tollgate.domain.identity import Identity, Unauthorized
from tollgate.services.exchange import Exchange

if TYPE_CHECKING:  # on Lambda the authorizer verifies
    from tollgate.services.authorize import TokenVerifier


async def from_request_context(exchange: Exchange) -> tuple[Identity, str]:
    """The identity and address in `x-amzn-request-context`. Raises `Unauthorized` for what API Gateway never sends."""
    try:
        context = orjson.loads(exchange.headers[b"x-amzn-request-context"])
        who = Identity.from_context(context["authorizer"])
        ip = context["identity"]["sourceIp"]
    except (KeyError, TypeError, ValueError) as error:
        raise Unauthorized("no request context from API Gateway") from error
    return who, ip if isinstance(ip, str) else ""


def lambda_deadline(exchange: Exchange) -> int | None:
    """When Lambda will stop this invocation, in µs since 1970, from `x-amzn-lambda-context`."""
    try:
        context = orjson.loads(exchange.headers[b"x-amzn-lambda-context"])
        deadline_ms = context["deadline"]
    except (KeyError, TypeError, ValueError):
        return None
    return deadline_ms * 1000 if isinstance(deadline_ms, int) and deadline_ms > 0 else None


class BearerTokens:
    """Verifies the `Authorization` header itself. A token seen before costs microseconds; a new one is verified on a
    thread, because that may fetch the issuer's keys."""

    def __init__(self, verifier: TokenVerifier, trusted_proxies: str = "") -> None:
        """`trusted_proxies`: comma-separated networks whose X-Forwarded-For is believed. Raises ValueError."""
        self._verifier = verifier
        try:
            self._trusted = [ip_network(text.strip()) for text in trusted_proxies.split(",") if text.strip()]
        except ValueError as error:
            raise ValueError(f"TOLLGATE_TRUSTED_PROXIES: expected networks with commas between: {error}") from None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> BearerTokens:
        """Raises ValueError that names the variable."""
        from tollgate.adapters.jwks import Jwks, emulator_hosts
        from tollgate.services.authorize import TokenRules, TokenVerifier

        rules = TokenRules.from_env(environ)
        verifier = TokenVerifier(rules, Jwks(rules.jwks_url, http_hosts=emulator_hosts(environ)))
        return cls(verifier, environ.get("TOLLGATE_TRUSTED_PROXIES", ""))

    async def __call__(self, exchange: Exchange) -> tuple[Identity, str]:
        ip = self._address(exchange)
        repeated = len(exchange.headers) < len(exchange.raw_headers)
        if repeated and sum(name == b"authorization" for name, _ in exchange.raw_headers) > 1:
            raise Unauthorized("more than one Authorization header")
        header = exchange.headers.get(b"authorization", b"")
        who = self._verifier.recall(header)
        if who is None:
            verify = self._verifier.verify
            who = await asyncio.get_running_loop().run_in_executor(None, verify, header.decode("latin-1"), ip)
        return who, ip

    def _address(self, exchange: Exchange) -> str:
        """The socket's address; behind a trusted proxy the last address that it did not add itself."""
        ip = exchange.peer
        if not self._trusted:
            return ip
        lines = [value.decode("latin-1") for name, value in exchange.raw_headers if name == b"x-forwarded-for"]
        hops = [hop.strip() for hop in ",".join(lines).split(",") if hop.strip()]
        while hops and self._is_trusted(ip):
            ip = hops.pop()
        return ip

    def _is_trusted(self, ip: str) -> bool:
        try:
            address = ip_address(ip)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)
