"""Headers: what passes in either direction, and what tells the caller about limits.

Both directions pass an allow-list. The provider's key belongs to all tenants, so nothing passes that identifies it,
authenticates a caller, or is remembered by the provider under a caller's choice (`idempotency-key`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
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


def to_upstream(incoming: Iterable[tuple[bytes, bytes]], api: Api) -> Headers:
    """The caller's headers that the upstream gets (names in lower case), and those that it always gets.

    The upstream's own credentials are added by whoever knows them.
    """
    passed: Headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
    accept = b"*/*"
    version = _ANTHROPIC_VERSION
    betas: list[bytes] = []
    for name, value in incoming:
        if name == b"accept" and _is_plain(value):
            accept = value
        elif api == "anthropic":
            if name == b"anthropic-version" and _is_plain(value):
                version = value
            elif name == b"anthropic-beta" and _is_plain(value):
                betas += [beta for item in value.split(b",") if (beta := item.strip()).startswith(_BETAS)]
    passed.append((b"accept", accept))
    if api == "anthropic":
        passed.append((b"anthropic-version", version))
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


_OPENAI_NAMES = {
    unit: tuple(f"x-ratelimit-{what}-{unit}".encode() for what in ("limit", "remaining", "reset")) for unit in Unit
}


def limit_type(scope: Scope, *, local: bool) -> str:
    """The value of `X-RateLimit-Type`: whose limit it is, and whether this container decided alone."""
    return ("Local-" if local else "") + _SCOPE_NAMES[scope]


def rate_limit_headers(admission: Admission, decision: Decision) -> Headers:
    """What is left of the caller's rates: as OpenAI says it (the tightest rate of requests and of tokens), and as the
    IETF draft says it (all of them). Global rates are left out: their state is other tenants' business.
    """
    now = decision.now_us
    requests: tuple[int, Rate, int] | None = None
    tokens: tuple[int, Rate, int] | None = None
    policies: list[str] = []
    states: list[str] = []
    for take, state in zip(admission.takes, decision.states, strict=False):
        if not isinstance(take, RateTake):
            break  # rates come first
        rate = take.limit
        name, policy = _told(rate)
        if not name:
            continue
        reset = state.value - now
        if reset < 0:
            reset = 0
        left = rate.units(rate.burst_us - reset)
        if rate.unit is Unit.TOKENS:
            if tokens is None or left < tokens[0]:
                tokens = (left, rate, reset)
        elif requests is None or left < requests[0]:
            requests = (left, rate, reset)
        policies.append(policy)
        states.append(f"{name};r={left};t={-(-reset // SECOND_US)}")
    found: Headers = []
    if requests is not None:
        left, rate, reset = requests
        found += (
            (b"x-ratelimit-limit-requests", b"%d" % rate.burst),
            (b"x-ratelimit-remaining-requests", b"%d" % left),
            (b"x-ratelimit-reset-requests", duration(reset).encode()),
        )
    if tokens is not None:
        left, rate, reset = tokens
        found += (
            (b"x-ratelimit-limit-tokens", b"%d" % rate.burst),
            (b"x-ratelimit-remaining-tokens", b"%d" % left),
            (b"x-ratelimit-reset-tokens", duration(reset).encode()),
        )
    if policies:
        found += (
            (b"ratelimit-policy", ", ".join(policies).encode()),
            (b"ratelimit", ", ".join(states).encode()),
        )
    return found


@lru_cache(maxsize=4096)
def _told(rate: Rate) -> tuple[str, str]:
    """What can be said about a rate in advance: its name as a structured-field string, and its member of
    `RateLimit-Policy` (window in seconds). Nothing of a global one."""
    if rate.scope is Scope.GLOBAL:
        return "", ""
    quoted = "".join(c if " " <= c <= "~" else "?" for c in rate.id).replace("\\", "\\\\").replace('"', '\\"')
    unit = ';qu="tokens"' if rate.unit is Unit.TOKENS else ""
    return f'"{quoted}"', f'"{quoted}";q={rate.amount};w={max(1, rate.period_us // SECOND_US)}{unit}'


def duration(us: int) -> str:
    """A time as OpenAI's headers write it, in Go's notation: ``20ms``, ``1.5s``, ``6m0s``, ``24h0m0s``; rounded up to
    milliseconds."""
    ms = -(-max(0, us) // 1000)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    whole, part = divmod(ms, 1000)
    minutes, secs = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{part:03d}".rstrip("0") if part else ""
    if hours:
        return f"{hours}h{minutes}m{secs}{fraction}s"
    return f"{minutes}m{secs}{fraction}s" if minutes else f"{secs}{fraction}s"
