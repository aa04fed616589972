"""`memory://`: the limit store in one process. The reference that every other store is compared with; good for
one container without Redis, and for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field

from tollgate.domain.dataclass import dataclass
from tollgate.domain.estimates import Learned
from tollgate.domain.limits import (
    FIRM_US,
    Admission,
    BudgetTake,
    Decision,
    RateTake,
    Settlement,
    SlotTake,
    Status,
    Take,
    fits,
    grant,
    hold_expiry_us,
    moved,
)
from tollgate.domain.takes import Takes

SWEEP_EVERY = 1024
"""Admissions between two removals of what has expired: keeps memory bounded at no cost worth measuring."""


@dataclass(slots=True)
class _BudgetState:
    """One budget in one window."""

    spent: int
    end_us: int
    holds: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Request id -> (amount, expiry in µs)."""

    @property
    def committed(self) -> int:
        return self.spent + sum(amount for amount, _ in self.holds.values())


class MemoryLimitStore:
    """Single-threaded by design: every method runs without awaiting, so the event loop makes it atomic."""

    name = "memory"

    def __init__(self, clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._clock = clock
        self._tats: dict[str, int] = {}
        self._budgets: dict[str, _BudgetState] = {}
        self._slots: dict[str, dict[str, int]] = {}
        self._marks: dict[str, tuple[int, list[int]]] = {}
        self._learned: dict[str, Learned] = {}
        self._policy_version = 0
        self._tenant_versions: dict[str, int] = {}
        self._until_sweep = SWEEP_EVERY

    async def admit(self, admission: Admission) -> Decision:
        takes, now = Takes.of(admission.takes), self._clock()
        self._sweep(now)
        newest = self._tenant_versions.get(admission.tenant, 0)
        told = self._learned.get(admission.ask)
        answer = Decision(Status.ADMITTED, now, [], [], (), self._policy_version, newest, self.name, told)
        answer.firm_us = FIRM_US
        if 0 < admission.policy_version < self._policy_version or 0 < admission.tenant_version < newest:
            answer.status = Status.STALE
            return answer
        budgets = [t for t in takes if isinstance(t, BudgetTake)]
        if any(not t.start_us <= now < t.end_us for t in budgets):
            answer.status = Status.WINDOW
            return answer
        mark = self._marks.get(admission.id)
        if mark is not None and mark[0] > now:
            answer.values = [self._value(take, now) for take in takes]
            answer.granted = _padded(mark[1], len(takes))
            return answer
        for take in budgets:
            if take.seed is not None:
                known = self._budgets.setdefault(take.key, _BudgetState(take.seed, take.end_us))
                known.spent = max(known.spent, take.seed)
        answer.cold = tuple(i for i, t in enumerate(takes) if isinstance(t, BudgetTake) and t.key not in self._budgets)
        if answer.cold:
            answer.status = Status.COLD
            return answer
        answer.values = values = [self._value(take, now) for take in takes]
        answer.granted = [0] * len(values)
        if not all(fits(t, v, now) for t, v in zip(takes, values, strict=True)):
            answer.status = Status.REFUSED
            return answer
        if admission.expires_us:
            answer.granted = self._take(admission, values, now)
        return answer

    async def look(self, admission: Admission) -> Decision:
        return await self.admit(admission)

    async def settle(self, settlement: Settlement) -> bool:
        now = self._clock()
        expiry, granted = self._marks.pop(settlement.id, (0, []))
        if expiry <= now:
            return False
        granted = _padded(granted, len(settlement.takes))
        for take, amount, used in zip(settlement.takes, granted, settlement.used, strict=True):
            if isinstance(take, RateTake):
                if used is not None and take.key in self._tats:
                    self._tats[take.key] = moved(self._tats[take.key], take.limit.inc_us(used) - amount, now)
            elif isinstance(take, BudgetTake):
                budget = self._budgets.get(take.key)
                if budget is not None and budget.holds.pop(settlement.id, (0, 0))[1] > now:
                    budget.spent += used or 0
            else:
                self._slots.get(take.key, {}).pop(settlement.id, None)
        if settlement.sample is not None:
            self._learned.setdefault(settlement.learn, Learned()).add(settlement.sample)
        return True

    async def replay(self, settlements: Sequence[Settlement]) -> int:
        known = [each for each in settlements if len(each.takes) == len(self._marks.get(each.id, (0, ()))[1])]
        return sum([await self.settle(each) for each in known])

    async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
        return [self._tats.get(takes[i].key) for i in cold]

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        for key, amount in spent.items():
            if key in self._budgets:
                self._budgets[key].spent = max(self._budgets[key].spent, amount)

    async def known_spent(self, budgets: Sequence[str]) -> dict[str, int]:
        """As the other stores tell it to who reconciles them, so that they can be compared with this one."""
        return {key: self._budgets[key].spent for key in budgets if key in self._budgets}

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        self._policy_version = max(self._policy_version, policy)
        for tenant, version in (tenants or {}).items():
            self._tenant_versions[tenant] = max(self._tenant_versions.get(tenant, 0), version)

    async def ping(self) -> None:
        """A process always reaches itself."""

    async def aclose(self) -> None:
        """Nothing is open."""

    def _value(self, take: Take, now: int) -> int:
        """TAT, committed units or slots in use; what has expired is released first."""
        if isinstance(take, RateTake):
            return self._tats.get(take.key, 0)
        if isinstance(take, SlotTake):
            holders = self._slots.setdefault(take.key, {})
            for holder in [h for h, expiry in holders.items() if expiry <= now]:
                del holders[holder]
            return len(holders)
        budget = self._budgets.get(take.key)
        if budget is None:
            return 0
        for holder in [h for h, (_, expiry) in budget.holds.items() if expiry <= now]:
            del budget.holds[holder]
        return budget.committed

    def _take(self, admission: Admission, values: list[int], now: int) -> list[int]:
        """What each take is granted; `values` become what they are after taking."""
        expiry = hold_expiry_us(now, admission.expires_us)
        granted = [grant(take, value, now) for take, value in zip(admission.takes, values, strict=True)]
        for i, (take, amount) in enumerate(zip(admission.takes, granted, strict=True)):
            if isinstance(take, RateTake):
                values[i] = self._tats[take.key] = max(values[i], now) + amount
            elif isinstance(take, BudgetTake):
                self._budgets[take.key].holds[admission.id] = (amount, expiry)
                values[i] += amount
            else:
                self._slots[take.key][admission.id] = expiry
                values[i] += amount
        self._marks[admission.id] = (expiry, granted)
        return granted

    def _sweep(self, now: int) -> None:
        self._until_sweep -= 1
        if self._until_sweep > 0:
            return
        self._until_sweep = SWEEP_EVERY
        self._marks = {k: v for k, v in self._marks.items() if v[0] > now}
        self._tats = {k: v for k, v in self._tats.items() if v > now - 3_600_000_000}
        self._budgets = {k: v for k, v in self._budgets.items() if v.end_us + 3_600_000_000 > now}
        self._slots = {k: v for k, v in self._slots.items() if v}


def _padded(granted: list[int], count: int) -> list[int]:
    """What a repeated id was granted: nothing of what it did not ask for before."""
    return [*granted, *[0] * (count - len(granted))]
