"""Usage records: what the proxy writes around each call, and what metering enters in the ledger.

`usage.open` is written before the upstream is called, `usage.close` after; both are one line of JSON with a schema
version. They hold counts and names, never a prompt or an answer. Records come back through a log pipe, so reading
one trusts nothing: `UsageClose.parse` raises `BadRecord` with the field that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

SCHEMA = 1
MAX_COUNT = 2**48
"""No single call uses more tokens or micro-dollars than this (281 trillion): more is a corrupt record."""

Outcome = Literal["ok", "client_gone", "upstream_error", "upstream_closed", "timed_out", "not_sent"]
"""How the call ended: answered; answered to a caller who left; refused or failed upstream; broken off; stalled;
never left the gateway (nothing was used)."""


def counts_as_request(outcome: Outcome, status: int, tokens: int) -> bool:
    """Whether a call counts against budgets of requests: not where it never left the gateway, nor where the upstream
    failed and gave nothing. The same for settling and for the ledger, or one would undo the other."""
    return outcome != "not_sent" and not (status >= 500 and tokens == 0)


class BadRecord(ValueError):
    """A usage record that cannot be entered; the message names the field."""


@dataclass(slots=True)  # not frozen: that makes its making three times as slow
class UsageOpen:
    """A call is about to be made. Token counts are estimates; `expires_us` is when its hold is released."""

    id: str
    ts_us: int
    tenant: str
    user: str
    team: str
    key: str
    plan: str
    model: str
    upstream: str
    upstream_model: str
    route: str
    input_tokens: int
    output_tokens: int
    cost_microusd: int
    expires_us: int
    use_case: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "event": "usage.open", "v": SCHEMA, "id": self.id, "ts_us": self.ts_us, "tenant": self.tenant,
            "user": self.user, "team": self.team, "key": self.key, "plan": self.plan, "model": self.model,
            "upstream": self.upstream, "upstream_model": self.upstream_model, "route": self.route,
            "input_tokens": self.input_tokens, "output_tokens": self.output_tokens,
            "cost_microusd": self.cost_microusd, "expires_us": self.expires_us, "use_case": self.use_case,
        }  # fmt: skip

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> UsageOpen:
        """Read a record that came through the log pipe. Raises `BadRecord`."""
        _expect(record, "usage.open")
        values: dict[str, Any] = {}
        for name in _TEXTS:
            values[name] = _text(record, name, required=name in ("id", "tenant", "model"))
        for name in ("ts_us", "input_tokens", "output_tokens", "cost_microusd", "expires_us"):
            values[name] = _count(record, name)
        return cls(**values)

    def close(self) -> UsageClose:
        """What is billed if nobody ever says how the call ended: the whole estimate, flagged as one."""
        return UsageClose(
            id=self.id, ts_us=self.ts_us, tenant=self.tenant, user=self.user, team=self.team, key=self.key,
            plan=self.plan, model=self.model, upstream=self.upstream, upstream_model=self.upstream_model,
            route=self.route, outcome="timed_out", status=0, input_tokens=self.input_tokens, cached_input_tokens=0,
            cache_write_tokens=0, output_tokens=self.output_tokens, reasoning_tokens=0, estimated=True,
            cost_microusd=self.cost_microusd, latency_ms=0, first_byte_ms=0, use_case=self.use_case,
        )  # fmt: skip


@dataclass(slots=True)
class UsageClose:
    """A call has ended. `input_tokens` includes cached and cache-write tokens, `output_tokens` includes reasoning.

    `ts_us` is the admission's time on the store's clock: it decides the UTC day that is charged, the same one that
    the hold was taken from. `settle` lists what was held, as ``[kind, key, used]`` with kind ``r``, ``b`` or ``c``,
    so that the settlement can be replayed; `used` is None where nothing is to be moved. `budget_models` names, for
    every such budget that counts some models only, its key and those models (the key has only their digest).
    """

    id: str
    ts_us: int
    tenant: str
    user: str
    team: str
    key: str
    plan: str
    model: str
    upstream: str
    upstream_model: str
    route: str
    outcome: Outcome
    status: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated: bool
    cost_microusd: int
    latency_ms: int
    first_byte_ms: int
    use_case: str = ""
    settle: tuple[tuple[str, str, int | None], ...] = ()
    budget_models: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "event": "usage.close", "v": SCHEMA, "id": self.id, "ts_us": self.ts_us, "tenant": self.tenant,
            "user": self.user, "team": self.team, "key": self.key, "plan": self.plan, "model": self.model,
            "upstream": self.upstream, "upstream_model": self.upstream_model, "route": self.route,
            "outcome": self.outcome, "status": self.status, "input_tokens": self.input_tokens,
            "cached_input_tokens": self.cached_input_tokens, "cache_write_tokens": self.cache_write_tokens,
            "output_tokens": self.output_tokens, "reasoning_tokens": self.reasoning_tokens,
            "estimated": self.estimated, "cost_microusd": self.cost_microusd, "latency_ms": self.latency_ms,
            "first_byte_ms": self.first_byte_ms, "use_case": self.use_case, "settle": self.settle,
            "budget_models": self.budget_models,
        }  # fmt: skip

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> UsageClose:
        """Read a record that came through the log pipe. Unknown fields are ignored (a newer proxy may add some)."""
        _expect(record, "usage.close")
        values: dict[str, Any] = {}
        for name in _TEXTS:
            values[name] = _text(record, name, required=name in ("id", "tenant", "model"))
        for name in _COUNTS:
            values[name] = _count(record, name)
        if record.get("outcome") not in get_args(Outcome):
            raise BadRecord(f"outcome: found {record.get('outcome')!r:.80}")
        if not isinstance(record.get("estimated"), bool):
            raise BadRecord("estimated: expected true or false")
        return cls(
            outcome=record["outcome"],
            estimated=record["estimated"],
            settle=_settle(record),
            budget_models=_budget_models(record),
            **values,
        )


_TEXTS = ("id", "tenant", "user", "team", "key", "plan", "model", "upstream", "upstream_model", "route", "use_case")
_COUNTS = (
    "ts_us", "status", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens",
    "reasoning_tokens", "cost_microusd", "latency_ms", "first_byte_ms",
)  # fmt: skip


def _expect(record: Mapping[str, Any], event: str) -> None:
    if record.get("event") != event:
        raise BadRecord(f"event: expected {event}, found {record.get('event')!r:.80}")
    if record.get("v") != SCHEMA:
        raise BadRecord(f"v: this version reads schema {SCHEMA}, found {record.get('v')!r:.80}")


def _text(record: Mapping[str, Any], name: str, *, required: bool) -> str:
    value = record.get(name, "")
    if not isinstance(value, str) or len(value) > 256 or (required and not value):
        raise BadRecord(f"{name}: expected text of at most 256 characters, found {value!r:.80}")
    return value


def _count(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    limit = 2**53 if name.endswith("_us") else MAX_COUNT
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise BadRecord(f"{name}: expected a whole number from 0 to {limit}, found {value!r:.80}")
    return value


def _settle(record: Mapping[str, Any]) -> tuple[tuple[str, str, int | None], ...]:
    entries = record.get("settle", [])
    if not isinstance(entries, list) or len(entries) > 256:
        raise BadRecord("settle: expected a list of at most 256 entries")
    found: list[tuple[str, str, int | None]] = []
    for entry in entries:
        match entry:
            case ["r" | "b" | "c" as kind, str(key), (int() | None) as used] if used is None or 0 <= used <= MAX_COUNT:
                found.append((kind, key, used))
            case _:
                raise BadRecord(f"settle: found {entry!r:.80}")
    return tuple(found)


def _budget_models(record: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    entries = record.get("budget_models", [])
    if not isinstance(entries, list) or len(entries) > 256:
        raise BadRecord("budget_models: expected a list of at most 256 entries")
    found: list[tuple[str, tuple[str, ...]]] = []
    for entry in entries:
        match entry:
            case [str(key), [*models]] if len(models) <= 256 and all(isinstance(model, str) for model in models):
                found.append((key, tuple(models)))
            case _:
                raise BadRecord(f"budget_models: found {entry!r:.80}")
    return tuple(found)
