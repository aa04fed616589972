"""Who calls, in the two places where the proxy runs.

On Lambda, API Gateway's authorizer has decided, and its context arrives in a header that the web adapter writes and no
client can. Everywhere else the same verifier runs in this process, and the header is only something a client sent.
"""

from __future__ import annotations

import asyncio
import os
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

import orjson

from tollgate.domain.identity import Identity, Unauthorized
from tollgate.domain.invocation import call_id
from tollgate.services.exchange import Exchange
from tollgate.wire.credentials import bearer, presented

if TYPE_CHECKING:  # on Lambda the authorizer verifies
    from tollgate.services.authorize import Authenticator

THREADS = 32
"""That verify what is new to this process; at most 8 of them wait for one issuer's keys."""


async def from_request_context(exchange: Exchange) -> tuple[Identity, str]:
    """The identity and address in `x-amzn-request-context`. Raises `Unauthorized` for what API Gateway never sends.

    API Gateway remembers the authorizer's answer by one header alone, so that the other is only seen here.
    """
    if b"x-api-key" in exchange.headers:
        _all_presented(exchange)
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


def new_id(exchange: Exchange) -> str:
    """What a request is called, here and in every record of it."""
    return "req_" + os.urandom(16).hex()


def invocation_id(exchange: Exchange) -> str:
    """The same on Lambda: the invocation's own id, by which Lambda tells of an invocation that died."""
    try:
        known = call_id(orjson.loads(exchange.headers[b"x-amzn-lambda-context"])["request_id"])
    except (KeyError, TypeError, ValueError):
        known = None
    return known or new_id(exchange)


class Credentials:
    """Verifies credentials itself. One seen before costs microseconds; a new one is verified on a thread, because that
    may fetch the issuer's keys."""

    def __init__(self, authenticator: Authenticator, trusted_proxies: str = "") -> None:
        """`trusted_proxies`: comma-separated networks whose X-Forwarded-For is believed. Raises ValueError."""
        from concurrent.futures import ThreadPoolExecutor

        self._authenticator = authenticator
        # not the event loop's own threads, which look up hosts: a flood of tokens must not stop calls to models
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="verify")
        try:
            self._trusted = [ip_network(text.strip()) for text in trusted_proxies.split(",") if text.strip()]
        except ValueError as error:
            raise ValueError(f"TOLLGATE_TRUSTED_PROXIES: expected networks with commas between: {error}") from None

    async def warm(self) -> None:
        """Fetch the issuers' keys before the first caller needs them; without them, too, it is time to start."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._authenticator.warm)

    async def __call__(self, exchange: Exchange) -> tuple[Identity, str]:
        ip = exchange.address = self._address(exchange) if self._trusted else exchange.peer
        credential = _presented(exchange)
        who = self._authenticator.recall(credential)
        if who is None:
            verify = self._authenticator.verify
            who = await asyncio.get_running_loop().run_in_executor(self._threads, verify, credential, ip)
        return who, ip

    def _address(self, exchange: Exchange) -> str:
        """The socket's address; of a trusted proxy's request the last address that it did not add itself."""
        ip = exchange.peer
        lines = [value.decode("latin-1") for name, value in exchange.raw_headers if name == b"x-forwarded-for"]
        hops = [hop.strip() for hop in ",".join(lines).split(",") if hop.strip()]
        while hops and self._is_trusted(ip):
            ip = _host(hops.pop())
        return ip

    def _is_trusted(self, ip: str) -> bool:
        try:
            address = ip_address(ip)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None  # as sockets for both tell IPv4
        return any(address in network or (mapped is not None and mapped in network) for network in self._trusted)


def _host(hop: str) -> str:
    """The address of a hop, which some proxies write with its port: ``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _presented(exchange: Exchange) -> bytes:
    """The request's credential. The index of headers keeps one of each name, so it only serves where none repeats."""
    headers = exchange.headers
    if len(headers) == len(exchange.raw_headers) and b"authorization" in headers and b"x-api-key" not in headers:
        return bearer(headers[b"authorization"])
    return _all_presented(exchange)


def _all_presented(exchange: Exchange) -> bytes:
    def values(wanted: bytes) -> list[bytes]:
        return [value for name, value in exchange.raw_headers if name == wanted]

    return presented(values(b"authorization"), values(b"x-api-key"))
