"""Usage records: what the proxy writes around each call, and what metering enters in the ledger.

`usage.open` is written before the upstream is called, `usage.close` after; both are one line of JSON with a schema
version. They hold counts and names, never a prompt or an answer. Records come back through a log pipe, so reading
one trusts nothing: `parse` raises `BadRecord` with the field that is wrong.

The classes are the schema: a field's annotation says what may stand there, and a field with a default may be missing.
`v` is the schema's version; a reader refuses any other, so that what it cannot understand is kept, and entered when
it can. `minor` grows when a field is added: an older reader ignores such fields, so they may tell more of a call but
never change what another field means; a newer reader takes their defaults where they are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import FOREVER_US

SCHEMA = 1
MINOR = 2
"""1: kinds of tokens (audio, long-lived cache writes), the price that was used, what a call was degraded from.
2: who settled, and what rates were settled with (`store`, `rates_us`)."""
MAX_COUNT = 2**48
"""No single call uses more tokens or micro-dollars than this (281 trillion): more is a corrupt record."""

Outcome = Literal["ok", "upstream_error", "upstream_closed", "timed_out", "not_sent"]
"""How the call ended: answered; refused or failed upstream; broken off; stalled; never left the gateway (nothing was
used). Whether the caller was still there does not matter: the answer is drained, and billed."""
Priced = Literal["table", "ceiling", "none"]
"""What the cost was reckoned by: a price of the policy; its ceiling, because the model has none; nothing (or a record
that does not say)."""


def counts_as_request(outcome: Outcome, status: int, tokens: int) -> bool:
    """Whether a call counts against budgets of requests: not where it never left the gateway, nor where the upstream
    failed and gave nothing. The same for settling and for the ledger, or one would undo the other."""
    return outcome != "not_sent" and not (status >= 500 and tokens == 0)


class BadRecord(ValueError):
    """A usage record that cannot be entered; the message names the field."""


@dataclass(kw_only=True)  # without slots: its line is made of its dictionary, in a quarter of the time
class UsageRecord:
    """What both records say of a call. `ts_us` is the admission's time on the store's clock: it decides the UTC day
    that is charged, the same one that the hold was taken from."""

    event: ClassVar[str]
    HEAD: ClassVar[Mapping[str, str | int]]
    """What every such record begins with."""

    id: str
    ts_us: int
    tenant: str
    user: str = ""
    team: str = ""
    key: str = ""
    plan: str = ""
    model: str
    upstream: str = ""
    upstream_model: str = ""
    route: str = ""
    input_tokens: int
    output_tokens: int
    cost_microusd: int
    price: str = ""
    """The row of the price table that the cost was reckoned by; empty if none was."""
    priced: Priced = "none"
    degraded_from: str = ""
    """The model that was asked for, where the plan's degradation chose another; else empty."""
    use_case: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {**self.HEAD, **self.__dict__}

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Self:
        """Read a record that came through the log pipe. Raises `BadRecord`."""
        if record.get("event") != cls.event:
            raise BadRecord(f"event: expected {cls.event}, found {record.get('event')!r:.80}")
        v = record.get("v")
        if type(v) is not int or v != SCHEMA:  # True is 1, and so is 1.0
            raise BadRecord(f"v: this version reads schema {SCHEMA}, found {v!r:.80}")
        schema, found, get = _SCHEMAS[cls], dict[str, Any](), record.get
        for name in schema.texts:
            value = get(name)
            if type(value) is str and len(value) <= 256 and (value or name not in _NAMED):  # nearly always
                found[name] = value
            elif name in record:
                found[name] = _text(name, value)
        for name in schema.counts:
            value = get(name)
            if type(value) is int and 0 <= value <= MAX_COUNT:
                found[name] = value
            elif name in record:
                found[name] = _count(name, value)
        for name, read in schema.others:
            if name in record:
                found[name] = read(name, record[name])
        if missing := schema.required - found.keys():
            raise BadRecord(f"{min(missing)}: missing")
        return cls(**found)


@dataclass(kw_only=True)
class UsageOpen(UsageRecord):
    """A call is about to be made. Token counts and cost are what is held; `expires_us` is when that is released."""

    event: ClassVar[str] = "usage.open"
    HEAD: ClassVar[Mapping[str, str | int]] = {"event": event, "v": SCHEMA, "minor": MINOR}

    expires_us: int

    def close(self) -> UsageClose:
        """What is billed if nobody ever says how the call ended: the whole estimate, flagged as one."""
        known = {name: getattr(self, name) for name in _COMMON}
        return UsageClose(**known, outcome="upstream_closed", status=0, estimated=True, latency_ms=0, first_byte_ms=0)


@dataclass(kw_only=True)
class UsageClose(UsageRecord):
    """A call has ended. Kinds of tokens are parts of their totals, as `Usage` has them.

    `settle` lists what was held, as ``[kind, key, used]`` with kind ``r``, ``b`` or ``c``, so that the settlement can
    be made again (`domain/replay.py`); `used` is None where nothing is to be moved. `budget_models` names, for every
    such budget that counts some models only, its key and those models (the key has only their digest).
    """

    event: ClassVar[str] = "usage.close"
    HEAD: ClassVar[Mapping[str, str | int]] = {"event": event, "v": SCHEMA, "minor": MINOR}

    outcome: Outcome
    status: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_long_tokens: int = 0
    audio_input_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    estimated: bool
    latency_ms: int
    first_byte_ms: int
    store: str = ""
    """Which store decided (`Decision.store`)."""
    settle: tuple[tuple[str, str, int | None], ...] = ()
    rates_us: tuple[int, ...] = ()
    """Of each rate in `settle` that moves, in their order: what was used in microseconds of TAT. (Units mean nothing to
    who does not know the limit.)"""
    budget_models: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def bill(self) -> tuple[Any, ...]:
        """Everything that somebody pays by. A repeated record has the same; another with its id was tampered with."""
        return _BILL(self)


# -- reading ------------------------------------------------------------------------------------------------------

Reader = Callable[[str, Any], Any]
"""Takes a field's name and what was found there. Raises `BadRecord`."""


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 256 or (not value and name in _NAMED):
        raise BadRecord(f"{name}: expected text of at most 256 characters, found {value!r:.80}")
    return value


_NAMED = frozenset({"id", "tenant", "model"})
"""Texts that must not be empty."""


def _count(name: str, value: Any) -> int:
    limit = FOREVER_US if name.endswith("_us") else MAX_COUNT
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise BadRecord(f"{name}: expected a whole number from 0 to {limit}, found {value!r:.80}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRecord(f"{name}: expected true or false")
    return value


def _one_of(allowed: Any) -> Reader:
    words = frozenset(get_args(allowed))

    def read(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in words:
            raise BadRecord(f"{name}: found {value!r:.80}")
        return value

    return read


def _entries(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > 256:
        raise BadRecord(f"{name}: expected a list of at most 256 entries")
    return value


def _settle(name: str, value: Any) -> tuple[tuple[str, str, int | None], ...]:
    found: list[tuple[str, str, int | None]] = []
    for entry in _entries(name, value):
        match entry:
            case ["r" | "b" | "c" as kind, str(key), (int() | None) as used] if used is None or 0 <= used <= MAX_COUNT:
                found.append((kind, key, used))
            case _:
                raise BadRecord(f"{name}: found {entry!r:.80}")
    return tuple(found)


def _rates_us(name: str, value: Any) -> tuple[int, ...]:
    return tuple([_count(name, us) for us in _entries(name, value)])


def _budget_models(name: str, value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found: list[tuple[str, tuple[str, ...]]] = []
    for entry in _entries(name, value):
        match entry:
            case [str(key), [*models]] if len(models) <= 256 and all(isinstance(model, str) for model in models):
                found.append((key, tuple(models)))
            case _:
                raise BadRecord(f"{name}: found {entry!r:.80}")
    return tuple(found)


_BY_NAME: dict[str, Reader] = {"settle": _settle, "rates_us": _rates_us, "budget_models": _budget_models}
_BY_TYPE: dict[Any, Reader] = {"bool": _flag, "Outcome": _one_of(Outcome), "Priced": _one_of(Priced)}


class _Schema(NamedTuple):
    """A class's fields by how they are read: most are texts or counts, and there is one of these for every line."""

    texts: tuple[str, ...]
    counts: tuple[str, ...]
    others: tuple[tuple[str, Reader], ...]
    required: frozenset[str]

    @classmethod
    def of(cls, record: type[UsageRecord]) -> _Schema:
        known = {f.name: f.type for f in fields(record)}
        return cls(
            tuple([name for name, kind in known.items() if kind == "str"]),
            tuple([name for name, kind in known.items() if kind == "int"]),
            tuple([(name, _BY_NAME.get(name) or _BY_TYPE[kind]) for name, kind in known.items() if kind not in _PLAIN]),
            frozenset([f.name for f in fields(record) if f.default is MISSING]),
        )


_PLAIN = frozenset({"str", "int"})
_SCHEMAS: dict[type[UsageRecord], _Schema] = {cls: _Schema.of(cls) for cls in (UsageOpen, UsageClose)}
_BILL = attrgetter(
    "ts_us", "tenant", "user", "team", "key", "model", "upstream", "upstream_model", "outcome", "status",
    "input_tokens", "cached_input_tokens", "cache_write_tokens", "cache_write_long_tokens", "output_tokens",
    "reasoning_tokens", "audio_input_tokens", "audio_output_tokens", "estimated", "cost_microusd", "price", "priced",
    "use_case",
)  # fmt: skip
_COMMON = tuple([f.name for f in fields(UsageRecord)])
