"""Usage records for tests."""

from __future__ import annotations

from typing import Any

from tollgate.domain.records import UsageClose, UsageOpen

NOON = 1_795_262_400_000_000  # 2026-11-21 12:00:00 UTC, in microseconds

_WHO: dict[str, Any] = {
    "tenant": "acme",
    "user": "alice",
    "team": "",
    "key": "",
    "plan": "pro",
    "model": "small",
    "upstream": "openai",
    "upstream_model": "gpt-4o-mini",
    "route": "/v1/chat/completions",
    "ts_us": NOON,
    "input_tokens": 12,
    "output_tokens": 0,
    "cost_microusd": 2,
}


def a_close(id: str = "id", **changed: Any) -> UsageClose:
    rest: dict[str, Any] = {
        "outcome": "ok",
        "status": 200,
        "cached_input_tokens": 0,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "estimated": False,
        "latency_ms": 800,
        "first_byte_ms": 200,
    }
    return UsageClose(id=id, **(_WHO | rest | changed))


def an_open(id: str = "id", **changed: Any) -> UsageOpen:
    return UsageOpen(id=id, **(_WHO | {"expires_us": NOON + 300_000_000} | changed))
