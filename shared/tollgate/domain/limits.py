"""Limits, and the arithmetic that decides an admission.

A **rate** is a token bucket, kept as one integer: its theoretical arrival time (TAT), in microseconds of the
store's clock (the generic cell rate algorithm, ITU-T I.371 and RFC 2697's relative). A cost adds `inc` to the
TAT; it is admitted when ``max(tat, now) + inc <= now + burst_us``. There is no refill loop: time itself refills
the bucket. Giving back and debt both just move the TAT, and two copies of a bucket merge by `max`.

A **budget** counts requests, tokens or micro-dollars in a UTC calendar window (or for life):
``committed = spent + held``. A **concurrency** limit counts slots that expire if their holder dies.

Everything here is pure: no clock, no IO. Stores return what they saw (`Decision`), so that every store gives the same
answer for the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import ClassVar, Literal

from tollgate.domain.dataclass import dataclass
from tollgate.domain.estimates import Learned, Sample

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
FOREVER_US = 2**53 - 1
"""The largest integer that Lua's and JavaScript's doubles hold exactly; the end of a `life` window."""
FIRM_US = 10 * SECOND_US
"""How long a refusal holds of a store that decides all limits in one step: until an operator's change must be felt."""

PERIOD_US = {"second": SECOND_US, "minute": 60 * SECOND_US, "hour": 3600 * SECOND_US, "day": DAY_US}


FailureMode = Literal["fallback", "open", "closed"]
"""While Redis does not answer: another store decides, each container alone does, or nobody does (503)."""


class Scope(StrEnum):
    """Whom a limit is counted for; declared narrowest first, the order in which DynamoDB takes subjects."""

    IP = "ip"
    USER = "user"
    KEY = "key"
    TEAM = "team"
    TENANT = "tenant"
    GLOBAL = "global"


class Unit(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    MICROUSD = "microusd"
    SLOTS = "slots"


class Window(StrEnum):
    """A budget's calendar window, in UTC."""

    DAY = "day"
    MONTH = "month"
    LIFE = "life"

    def bounds(self, now_us: int) -> tuple[str, int, int]:
        """The window that contains `now_us`: its label (``2026-11-21``, ``2026-11``, ``life``), start and end (µs)."""
        return _bounds(self, now_us // DAY_US)


@lru_cache(maxsize=64)
def _bounds(window: Window, days: int) -> tuple[str, int, int]:
    """The window that contains a day, given in days since 1970. Remembered: a calendar costs more than a bucket."""
    if window is Window.LIFE:
        return "life", 0, FOREVER_US
    start = days * DAY_US
    day = datetime.fromtimestamp(start // SECOND_US, UTC)
    if window is Window.DAY:
        return day.strftime("%Y-%m-%d"), start, start + DAY_US
    first = day.replace(day=1)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return first.strftime("%Y-%m"), int(first.timestamp()) * SECOND_US, int(following.timestamp()) * SECOND_US


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket of requests or model tokens: `amount` per `period_us`, up to `burst` at once."""

    scope: Scope
    unit: Unit
    amount: int
    period_us: int
    burst: int
    id: str
    """Stable across changes of the amount, so that a changed plan keeps its buckets; e.g. ``user.tokens.60s``."""
    burst_us: int = field(init=False, repr=False, compare=False)
    """What the whole burst adds to the TAT."""
    refundable: bool = field(init=False, repr=False, compare=False)
    """Whether settling may give something back (requests never are given back)."""
    unit_us: int = field(init=False, repr=False, compare=False)
    """What one request adds to the TAT; 0 for tokens, which are rounded only as a whole."""

    def __post_init__(self) -> None:
        if min(self.amount, self.period_us, self.burst) < 1:
            raise ValueError(f"a rate's amount, period and burst are 1 or more: {self!r}")
        object.__setattr__(self, "unit_us", -(-self.period_us // self.amount) if self.unit is Unit.REQUESTS else 0)
        object.__setattr__(self, "burst_us", self.inc_us(self.burst))
        object.__setattr__(self, "refundable", self.unit is Unit.TOKENS)

    def inc_us(self, cost: int) -> int:
        """What `cost` adds to the TAT, in microseconds.

        Requests cost a whole number of ``ceil(period / amount)``; tokens round up once for the whole cost. (Rounding
        each of seven requests up while the burst rounds down would admit six of seven.)
        """
        return cost * self.unit_us or -(-cost * self.period_us // self.amount)

    def units(self, us: int) -> int:
        """How many whole requests or tokens `us` microseconds of this bucket are worth, at least 0."""
        if us <= 0:
            return 0
        return us // self.unit_us if self.unit_us else us * self.amount // self.period_us


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `amount` requests, tokens or micro-dollars per calendar window; of `models` only, where given."""

    scope: Scope
    unit: Unit
    amount: int
    window: Window
    id: str
    models: frozenset[str] | None = None
    alert_at: tuple[float, ...] = (0.5, 0.8, 1.0)
    before: int = 0
    """What had been used before prepaid credit began: no part of it, but `amount` holds it, because a counter for life
    counts everything."""


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most `amount` requests in flight."""

    scope: Scope
    amount: int
    id: str
    unit: Unit = Unit.SLOTS


Limit = Rate | Budget | Concurrency


# -- one admission -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RateTake:
    """What one admission takes from a token bucket. All `_us` are microseconds of TAT.

    `cost` is what is wanted, `floor` what is needed (they differ when the cost is a guess that may shrink).
    `seed_us`: the TAT that another store knows (0: it knows none), sent with the second call after a COLD answer.
    """

    kind: ClassVar = "r"
    """What usage records call it."""

    subject: str
    key: str
    limit: Rate
    cost: int
    floor: int
    seed_us: int | None = None
    inc_us: int = field(init=False)
    floor_us: int = field(init=False)

    def __post_init__(self) -> None:
        inc = self.inc_us = self.limit.inc_us(self.cost)
        self.floor_us = inc if self.floor == self.cost else self.limit.inc_us(self.floor)


@dataclass(slots=True)
class BudgetTake:
    """What one admission holds of a budget, in the budget's unit, in the window [start_us, end_us).

    `seed`: what the ledger knows to be spent, sent with the second call after a COLD answer.
    """

    kind: ClassVar = "b"

    subject: str
    key: str
    limit: Budget
    cost: int
    floor: int
    label: str
    start_us: int
    end_us: int
    seed: int | None = None


@dataclass(slots=True)
class SlotTake:
    """One concurrency slot."""

    kind: ClassVar = "c"

    subject: str
    key: str
    limit: Concurrency


Take = RateTake | BudgetTake | SlotTake


@dataclass(slots=True)
class Admission:
    """Everything that one request takes, all or nothing. `takes` are in order: rates, budgets, slots.

    `id` makes the call idempotent and names the hold; `expires_us` is a duration from the store's now, after which
    an unsettled hold is released, or a little later (`hold_expiry_us`; 0: nothing is taken). The versions are those of
    the policy and tenant record that the takes were made from (0: not versioned); a store that knows newer ones takes
    nothing and says STALE.
    """

    id: str
    takes: Sequence[Take]
    expires_us: int
    tenant: str = ""
    tenant_version: int = 0
    policy_version: int = 0
    ask: str = ""
    """The key of estimates (`domain/estimates.py`) that the answer shall tell, too."""
    failure_mode: FailureMode | None = None
    """Who decides it while Redis does not answer, where its plan or tenant says so."""

    def __post_init__(self) -> None:
        if self.expires_us < 0:  # it would be admitted, and take nothing
            raise ValueError(f"a hold lives for 0 µs or more, not {self.expires_us}")


def hold_grid_us(life_us: int) -> int:
    """Holds expire at multiples of this, so that many that are taken one after the other expire together: a power of
    two, an eighth of their life at most."""
    return 1 << max(0, (life_us // 8).bit_length() - 1)


def hold_expiry_us(now_us: int, life_us: int) -> int:
    """When a hold expires that is taken now, in µs: after its life, and before another eighth of it."""
    at, grid = now_us + life_us, hold_grid_us(life_us)
    return at - at % grid + grid


class Status(IntEnum):
    """How an admission ended. Only ADMITTED takes anything."""

    ADMITTED = 1
    REFUSED = 0
    STALE = 2
    """The store knows a newer policy or tenant record: reload, and ask again."""
    COLD = 3
    """The store has lost (or never had) some budgets or rates (`cold` lists the takes): load the ones from the ledger,
    the others from a second store, and ask again."""
    WINDOW = 4
    """A budget's window does not contain the store's now: the caller's clock is off; correct it and ask again."""


@dataclass(slots=True)
class Decision:
    """The store's answer. `now_us` is its clock; `values` and `granted` are parallel to the admission's takes, and
    empty where nothing was decided."""

    status: Status
    now_us: int
    values: Sequence[int] = ()
    """TATs in microseconds, committed units, or slots in use; after taking if admitted, else as they stand."""
    granted: Sequence[int] = ()
    """What was taken: microseconds of TAT, units, or 1; 0 if nothing was."""
    cold: tuple[int, ...] = ()
    policy_version: int = 0
    tenant_version: int = 0
    store: str = ""
    """Which store decided: ``redis``, ``dynamodb``, ``memory``, ``local``."""
    told: Learned | None = None
    """What the store has learned, where it was asked and knows something."""
    local: bool = False
    """Decided by this container alone (from its cache, or because no store answers)."""
    firm_us: int = SECOND_US
    """For how long a refusal will be repeated, but for what settling gives back: `FIRM_US` of one atomic step; shorter
    where somebody's refusal elsewhere may be about to give back; 0 where it may be this request's alone."""

    @property
    def admitted(self) -> bool:
        return self.status is Status.ADMITTED


@dataclass(slots=True)
class Refusal:
    """The limit that refused an admission, and for how long."""

    take: Take
    wait_us: int | None
    """Time until the same request can be admitted, of budgets at the latest: what calls in flight hold, and do not use,
    is free before the window ends. None: no window ends (life budgets), or nobody knows (slots)."""
    remaining: int
    """What is left of that limit, in its unit."""
    never: bool
    """The cost is above the whole burst or budget: no wait can ever help."""


def fits(take: Take, value: int, now_us: int) -> bool:
    """Whether the least that `take` needs fits into what the store saw."""
    if isinstance(take, RateTake):
        return max(value, now_us) + take.floor_us <= now_us + take.limit.burst_us
    if isinstance(take, BudgetTake):
        return value + take.floor <= take.limit.amount
    return value < take.limit.amount


def grant(take: Take, value: int, now_us: int) -> int:
    """How much of a fitting take is granted: the whole cost, or what is left of it, at least the floor."""
    if isinstance(take, RateTake):
        return max(take.floor_us, min(take.inc_us, now_us + take.limit.burst_us - max(value, now_us)))
    if isinstance(take, BudgetTake):
        return max(take.floor, min(take.cost, take.limit.amount - value))
    return 1


def moved(tat: int, delta_us: int, now_us: int) -> int:
    """The TAT after settling: a give-back (negative) lowers it; a debt is taken now, so a bucket that has long been
    full does not swallow it."""
    return (max(tat, now_us) if delta_us > 0 else tat) + delta_us


def remaining(take: Take, value: int, now_us: int) -> int:
    """What is left of the limit, in its own unit, never negative."""
    if isinstance(take, RateTake):
        return take.limit.units(now_us + take.limit.burst_us - max(value, now_us))
    return max(0, take.limit.amount - value)


def reset_us(take: Take, value: int, now_us: int) -> int:
    """Time until the limit is whole again: until the bucket is full, or the window ends; 0 for slots."""
    if isinstance(take, RateTake):
        return max(0, value - now_us)
    if isinstance(take, BudgetTake):
        return max(0, take.end_us - now_us)
    return 0


def refusal(admission: Admission, decision: Decision) -> Refusal:
    """The limit to name for a refusal: one that can never fit, else the one with the longest wait.

    Precondition: the decision is REFUSED, so at least one take does not fit.
    """
    now = decision.now_us
    found: list[Refusal] = []
    for take, value in zip(admission.takes, decision.values, strict=True):
        if fits(take, value, now):
            continue
        left = remaining(take, value, now)
        if isinstance(take, RateTake):
            burst_us = take.limit.burst_us
            wait = max(value, now) + take.floor_us - now - burst_us
            found.append(Refusal(take, wait, left, never=take.floor_us > burst_us))
        elif isinstance(take, BudgetTake):
            for_life = take.limit.window is Window.LIFE  # and may be topped up
            wait_us = None if for_life else take.end_us - now
            found.append(Refusal(take, wait_us, left, never=take.floor > take.limit.amount and not for_life))
        else:
            found.append(Refusal(take, None, left, never=False))
    if not found:
        raise ValueError("a refused decision in which every take fits")
    return max(found, key=_weight)


def _weight(found: Refusal) -> tuple[bool, bool, int]:
    """Of several the heaviest is told. A budget that no wait helps is heavier than one that any does; a slot, of which
    nobody knows, is free again before a rate has refilled, as far as anyone can tell."""
    of_budget = isinstance(found.take, BudgetTake)
    unknown_us = FOREVER_US if of_budget else 0
    return found.never, of_budget, unknown_us if found.wait_us is None else found.wait_us


# -- settlement --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Settlement:
    """What a request really used, in each take's own unit; `used` is parallel to the admission's takes.

    Settling is idempotent by id: the first settlement moves the buckets and budgets, later ones do nothing.
    A `used` of None for a rate leaves it as it was taken (requests are never given back). Raises ValueError for an
    amount below 0, which would give away more than was held, or above 2^53 - 1, which a store cannot count.
    """

    id: str
    takes: Sequence[Take]
    used: list[int | None]
    tenant: str = ""
    store: str = ""
    """Which store admitted it (`Decision.store`)."""
    rates_us: list[int] | None = None
    """What each rate that moves is settled with, in µs of TAT, where that was computed already (`Takes.settled_us`)."""
    sample: Sample | None = None
    """What the call used, for the estimates under `learn`; a store that keeps none ignores it."""
    learn: str = ""
    late: bool = False
    """Told after it had to wait, so that the ledger may know already what was used: a budget that was loaded from it
    since then is not charged again."""
    gives_back: bool = False
    """Undoes the admission, whose id may come again."""

    def __post_init__(self) -> None:
        for amount in self.used:
            if amount and not 0 < amount <= FOREVER_US:
                raise ValueError(f"what a request used is 0 to 2^53 - 1, not {amount}")


def undone(admission: Admission, store: str = "") -> Settlement:
    """Gives back everything, requests included: that restores the buckets exactly, and forgets the request's id."""
    nothing: list[int | None] = [0] * len(admission.takes)
    return Settlement(admission.id, admission.takes, nothing, admission.tenant, store, gives_back=True)
