"""Headers: what passes in either direction, and what tells the caller about limits.

Both directions pass an allow-list. The provider's key belongs to all tenants, so nothing passes that identifies it,
authenticates a caller, or is remembered by the provider under a caller's choice (`idempotency-key`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tollgate.domain.limits import (
    SECOND_US,
    Admission,
    Decision,
    Rate,
    RateTake,
    Scope,
    Unit,
)
from tollgate.wire.errors import Api, invalid_request, shown

Headers = list[tuple[bytes, bytes]]

_USE_CASE = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
USE_CASE_HEADER = b"x-tollgate-use-case"

# Betas of Anthropic's that change neither the price of a token nor what is stored or run at the provider. Others are
# dropped: the fields that they would enable are then refused by the provider.
_BETAS = (
    b"computer-use-",
    b"context-management-",
    b"extended-cache-ttl-",
    b"fine-grained-tool-streaming-",
    b"interleaved-thinking-",
    b"output-128k-",
    b"pdfs-",
    b"prompt-caching-",
    b"structured-outputs-",
    b"token-efficient-tools-",
)
_ANTHROPIC_VERSION = b"2023-06-01"

_FROM_UPSTREAM = {
    b"content-type": b"content-type",
    b"content-encoding": b"content-encoding",  # it was asked for identity; if it did not listen, the caller must know
    b"openai-processing-ms": b"openai-processing-ms",
    b"openai-version": b"openai-version",
    b"x-request-id": b"x-upstream-request-id",
    b"request-id": b"x-upstream-request-id",
    b"x-amzn-requestid": b"x-upstream-request-id",
    b"x-amzn-errortype": b"x-amzn-errortype",
}


def use_case(value: bytes | None) -> str:
    """The label that a caller gave a request; empty if none. It attributes and routes, and never grants anything."""
    if value is None or not value:
        return ""
    text = value.decode("latin-1")
    if _USE_CASE.fullmatch(text) is None:
        raise invalid_request(
            f"x-tollgate-use-case must be at most 64 letters, digits, '.', '_' or '-', not {shown(text)}.",
            "x-tollgate-use-case",
            "invalid_value",
        )
    return text


def to_upstream(incoming: Sequence[tuple[bytes, bytes]], api: Api) -> Headers:
    """The caller's headers that the upstream gets (names in lower case), and those that it always gets.

    The upstream's own credentials are added by whoever knows them.
    """
    given = dict(incoming)
    accept = given.get(b"accept")
    passed: Headers = [
        (b"content-type", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"accept", accept if accept is not None and _is_plain(accept) else b"*/*"),
    ]
    if api == "anthropic":
        version = given.get(b"anthropic-version", _ANTHROPIC_VERSION)
        passed.append((b"anthropic-version", version if _is_plain(version) else _ANTHROPIC_VERSION))
        asked = [value for name, value in incoming if name == b"anthropic-beta" and _is_plain(value)]
        betas = [beta for item in b",".join(asked).split(b",") if (beta := item.strip()).startswith(_BETAS)]
        if betas:
            passed.append((b"anthropic-beta", b",".join(betas)))
    return passed


def from_upstream(incoming: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The upstream's headers that the caller gets (names in lower case)."""
    allowed = _FROM_UPSTREAM
    return [(allowed[name], value) for name, value in incoming if name in allowed and _is_plain(value)]


def _is_plain(value: bytes) -> bool:
    """Whether a header's value is short, printable ASCII: it cannot end its line or mean something else further on."""
    return len(value) <= 1024 and value.isascii() and value.decode("ascii").isprintable()


# -- limits ------------------------------------------------------------------------------------------------------

_SCOPE_NAMES = {
    Scope.IP: "IP",
    Scope.USER: "User",
    Scope.KEY: "Key",
    Scope.TEAM: "Team",
    Scope.TENANT: "Tenant",
    Scope.GLOBAL: "Global",
}


def limit_type(scope: Scope, *, local: bool) -> str:
    """The value of `X-RateLimit-Type`: whose limit it is, and whether this container decided alone."""
    return ("Local-" if local else "") + _SCOPE_NAMES[scope]


class RateHeaders:
    """What answers to one kind of call say of its rates: as OpenAI says it (the tightest rate of requests and of
    tokens), and as the IETF draft says it (all of them). Global rates are left out: their state is other tenants'
    business. All that does not change from call to call is rendered once."""

    __slots__ = ("_left", "_policies", "_rates")

    def __init__(self, rates: Sequence[Rate]) -> None:
        """`rates`: of an admission's takes, in their order."""
        self._rates: list[tuple[int, Rate, bool, tuple[bytes, bytes]]] = []
        """Position, the rate, whether it counts tokens, and its limit's header."""
        policies: list[str] = []
        left: list[str] = []
        for position, rate in enumerate(rates):
            if rate.scope is Scope.GLOBAL:
                continue
            tokens = rate.unit is Unit.TOKENS
            plain = "".join(c if " " <= c <= "~" else "?" for c in rate.id)
            name = '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
            window = max(1, rate.period_us // SECOND_US)
            policies.append(f"{name};q={rate.amount};w={window}" + (';qu="tokens"' if tokens else ""))
            limit = (b"x-ratelimit-limit-tokens" if tokens else b"x-ratelimit-limit-requests", b"%d" % rate.burst)
            self._rates.append((position, rate, tokens, limit))
            left.append(name.replace("%", "%%") + ";r=%d;t=%d")
        self._policies = (b"ratelimit-policy", ", ".join(policies).encode())
        self._left = ", ".join(left).encode()
        """With two numbers for each rate: what is left, and the seconds until all is."""

    @staticmethod
    @lru_cache(maxsize=1024)
    def shared(rates: tuple[Rate, ...]) -> RateHeaders:
        """Those of these rates: one object for all callers who have the same."""
        return RateHeaders(rates)

    def of(self, values: Sequence[int], now_us: int) -> Headers:
        """The headers for what a store saw of these rates, at its moment `now_us`."""
        if not self._rates or len(values) <= self._rates[-1][0]:
            return []
        found: Headers = []
        told: list[int] = []
        least_requests = least_tokens = -1
        requests: tuple[int, tuple[bytes, bytes]] | None = None
        tokens: tuple[int, tuple[bytes, bytes]] | None = None
        for position, rate, of_tokens, limit in self._rates:
            reset = values[position] - now_us
            if reset < 0:
                reset = 0
            left = rate.units(rate.burst_us - reset)
            told += (left, -(-reset // SECOND_US))
            if of_tokens:
                if tokens is None or left < least_tokens:
                    least_tokens, tokens = left, (reset, limit)
            elif requests is None or left < least_requests:
                least_requests, requests = left, (reset, limit)
        if requests is not None:
            found += (
                requests[1],
                (b"x-ratelimit-remaining-requests", b"%d" % least_requests),
                (b"x-ratelimit-reset-requests", duration(requests[0]).encode()),
            )
        if tokens is not None:
            found += (
                tokens[1],
                (b"x-ratelimit-remaining-tokens", b"%d" % least_tokens),
                (b"x-ratelimit-reset-tokens", duration(tokens[0]).encode()),
            )
        found += (self._policies, (b"ratelimit", self._left % tuple(told)))
        return found


def rate_limit_headers(admission: Admission, decision: Decision) -> Headers:
    """What is left of the rates that these takes are of."""
    rates = [take.limit for take in admission.takes if isinstance(take, RateTake)]
    return RateHeaders(rates).of(decision.values, decision.now_us)


def duration(us: int) -> str:
    """A time as OpenAI's headers write it, in Go's notation: ``20ms``, ``1.5s``, ``6m0s``, ``24h0m0s``; rounded up to
    milliseconds."""
    ms = -(-us // 1000) if us > 0 else 0
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    whole, part = divmod(ms, 1000)
    minutes, secs = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{part:03d}".rstrip("0") if part else ""
    if hours:
        return f"{hours}h{minutes}m{secs}{fraction}s"
    return f"{minutes}m{secs}{fraction}s" if minutes else f"{secs}{fraction}s"
