"""Alerts: found while metering, kept until they are delivered, and looked for in each hour's history.

Metering knows what each budget has used after every batch. It compares that with the budget's thresholds, by the policy
and the tenant's record as they are now, and puts what is reached in the outbox, once: the latch and the event are one
write. Delivery is another function's work, so that it holds up no metering: whatever is in the outbox is sent, and sent
again until the bus has taken it. At least once, with an id by which repetitions are known.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tollgate.domain import keys
from tollgate.domain.alerts import Alert, anomaly, crossed
from tollgate.domain.anomaly import DAYS, FLOOR, unusual
from tollgate.domain.dataclass import dataclass
from tollgate.domain.identity import Identity
from tollgate.domain.limits import DAY_US, SECOND_US, Budget, BudgetTake, Scope, Unit, Window
from tollgate.domain.policy import Policy, TenantRecord
from tollgate.domain.records import UsageClose
from tollgate.domain.terms import Bound, all_alike, bind_budgets, budgets
from tollgate.ports import PolicySource, PolicyUnavailable, Spending

FRESH_US = 30 * SECOND_US
"""How old the policy and a record may be: what a budget's amount was half a minute ago is good enough for an alert."""
MAX_RECORDS = 10_000
AT_ONCE = 8
"""Records that are read at the same time, and tenants whose hours are."""
LOOKED_AT = 500
"""Tenants whose alerts are put together; far fewer than records are remembered."""
DELIVERED_AT_ONCE = 100
HOUR_US = 3600 * SECOND_US


class Outbox(Protocol):
    """Alerts that were raised. Everything raises `StoreUnavailable`."""

    async def put(self, alerts: Sequence[Alert]) -> int:
        """Keep those whose ids are new; how many were. Whatever was kept once is never new again."""
        ...

    async def waiting(self, limit: int) -> list[Alert]:
        """Those that were not delivered yet, oldest first."""
        ...

    async def delivered(self, alerts: Sequence[Alert]) -> None: ...


class Bus(Protocol):
    """Where alerts go."""

    async def send(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Those that it took; the others are to be sent again."""
        ...


class Hours(Protocol):
    """What each hour cost each tenant, in micro-dollars. Everything raises `StoreUnavailable`."""

    async def since(self, tenant: str, day: str) -> dict[str, dict[int, int]]:
        """Day -> hour -> what it cost; days on which nothing was seen are left out."""
        ...

    async def note(self, tenant: str, day: str, hour: int, used: int) -> None: ...


class Book(Spending, Protocol):
    """The ledger, as far as it is looked at here."""

    async def tenants(self) -> list[str]:
        """Every tenant that has used anything."""
        ...


class Budgets:
    """Which budgets a user has, by the policy and the records as they are now, or were half a minute ago. Lives as long
    as its process."""

    def __init__(self) -> None:
        self._policy: tuple[Policy, int] | None = None
        self._records: OrderedDict[str, tuple[TenantRecord | None, int]] = OrderedDict()
        self._shared: dict[tuple[str, str], list[Budget]] = {}
        """By tenant and plan: the budgets of tenants whose users all have the same, whenever it is."""

    async def policy(self, source: PolicySource, now_us: int) -> Policy:
        """Raises `PolicyUnavailable` where none was ever read."""
        known = self._policy
        if known is None or not 0 <= now_us - known[1] < FRESH_US:
            self._shared.clear()
            try:
                known = await source.policy(), now_us
            except PolicyUnavailable:
                if known is None:
                    raise
            self._policy = known
        return known[0]

    async def records(self, source: PolicySource, tenants: Iterable[str], now_us: int) -> None:
        """Read what is not known, or too old. Raises `PolicyUnavailable`."""
        old = [name for name in tenants if not 0 <= now_us - self._records.get(name, (None, -FRESH_US))[1] < FRESH_US]
        for at in range(0, len(old), AT_ONCE):
            names = old[at : at + AT_ONCE]
            found = await asyncio.gather(*(source.tenant(name) for name in names))
            for name, record in zip(names, found, strict=True):
                self._records[name] = record, now_us
                self._shared.pop((name, record.plan if record is not None else ""), None)
        while len(self._records) > MAX_RECORDS:
            self._records.popitem(last=False)

    def of(self, policy: Policy, who: Identity, used_us: int) -> tuple[str, list[Bound]]:
        """The plan and the budgets of a user at a moment; precondition: `records` was asked for the tenant."""
        known, _ = self._records.get(who.tenant, (None, 0))
        record = known or TenantRecord(tenant=who.tenant, plan=who.plan, version=0)
        plan = policy.plans.get(record.plan)
        if plan is None:
            return record.plan, []
        found = self._shared.get((who.tenant, record.plan))
        if found is None:
            found = budgets(plan, record, who.user, used_us)
            if all_alike(record):
                self._shared[who.tenant, record.plan] = found
        return record.plan, bind_budgets(found, who)


@dataclass(slots=True)
class Checked:
    """`failure`: why thresholds could not be looked at; the next batch of the same budgets is."""

    raised: int = 0
    failure: str = ""


class Thresholds:
    """What metering asks after each batch."""

    def __init__(self, budgets: Budgets, source: PolicySource, outbox: Outbox) -> None:
        self._budgets = budgets
        self._source = source
        self._outbox = outbox

    async def check(self, closes: Sequence[UsageClose], totals: Mapping[str, int], now_us: int) -> Checked:
        """Raise what these closes' budgets have reached; `totals`: budget key -> what the ledger knows to be used.

        Raises `StoreUnavailable`: then it is to be asked again, because nobody else will notice.
        """
        latest = {}
        for close in closes:
            if any(kind == "b" and key in totals for kind, key, _ in close.settle):
                who = Identity(close.tenant, close.user, close.plan, close.team, close.key)
                latest[who, close.ts_us // DAY_US] = close.ts_us
        if not latest:
            return Checked()
        try:
            policy = await self._budgets.policy(self._source, now_us)
            await self._budgets.records(self._source, dict.fromkeys(who.tenant for who, _ in latest), now_us)
        except PolicyUnavailable as error:
            return Checked(failure=str(error))
        found: dict[str, Alert] = {}
        for (who, _), used_us in latest.items():
            plan, bounds = self._budgets.of(policy, who, used_us)
            for bound in bounds:
                total = totals.get(f"{bound.key}:{_window(bound).bounds(used_us)[0]}")
                if total is not None:
                    found |= {alert.id: alert for alert in crossed(bound, total, who, plan, used_us, now_us)}
        return Checked(await self._outbox.put(list(found.values())) if found else 0)


async def deliver(outbox: Outbox, bus: Bus) -> tuple[int, int]:
    """Send what waits; how many were taken, and how many were not. Raises `StoreUnavailable`."""
    sent = 0
    while waiting := await outbox.waiting(DELIVERED_AT_ONCE):
        taken = await bus.send(waiting)
        await outbox.delivered(taken)
        sent += len(taken)
        if len(taken) < len(waiting):
            return sent, len(waiting) - len(taken)
        if len(waiting) < DELIVERED_AT_ONCE:
            break
    return sent, 0


async def look_back(
    book: Book, hours: Hours, outbox: Outbox, budgets: Budgets, source: PolicySource, now_us: int
) -> int:
    """Look at the hour that has ended: note what it cost each tenant, and raise what is unusual. Tenants' own budgets
    are compared with their thresholds once more, in case metering could not. How many alerts were raised.

    Raises `StoreUnavailable`, `PolicyUnavailable`. May be repeated.
    """
    hour_us = now_us // HOUR_US * HOUR_US - HOUR_US
    tenants = await book.tenants()
    days = [_day_of(tenant, hour_us) for tenant in tenants]
    spent = dict(zip(tenants, await book.spent(days), strict=True)) if days else {}
    active = [tenant for tenant in tenants if spent[tenant] > 0]
    busy = asyncio.Semaphore(AT_ONCE)

    async def judge(tenant: str) -> Alert | None:
        async with busy:
            return await _judge(hours, tenant, spent[tenant], hour_us, now_us)

    raised = 0
    for at in range(0, len(active), LOOKED_AT):
        some = active[at : at + LOOKED_AT]
        found = [alert for alert in await asyncio.gather(*map(judge, some)) if alert is not None]
        found += await _tenants_thresholds(book, budgets, source, some, hour_us, now_us)
        raised += await outbox.put(found) if found else 0
    return raised


async def _judge(hours: Hours, tenant: str, spent: int, hour_us: int, now_us: int) -> Alert | None:
    """Note what the hour cost: what its day has cost, less the hours before. Hours in which nobody looked are taken to
    have cost the same as this one."""
    day, start_us, _ = Window.DAY.bounds(hour_us)
    hour = (hour_us - start_us) // HOUR_US
    known = await hours.since(tenant, Window.DAY.bounds(hour_us - DAYS * DAY_US)[0])
    today = {at: used for at, used in known.pop(day, {}).items() if at < hour}
    used = max(0, spent - sum(today.values())) // (hour - max(today, default=-1))
    await hours.note(tenant, day, hour, used)
    if used < FLOOR or not known:
        return None
    first = min(known)
    labels = (Window.DAY.bounds(hour_us - back * DAY_US)[0] for back in range(1, DAYS + 1))
    peaks = [max(known.get(label, {}).values(), default=0) for label in labels if label >= first]
    if not unusual(peaks, used):
        return None
    return anomaly(tenant, hour_us, used, sorted(peaks)[len(peaks) // 2], max(peaks), now_us)


async def _tenants_thresholds(
    book: Book, budgets: Budgets, source: PolicySource, tenants: Sequence[str], used_us: int, now_us: int
) -> list[Alert]:
    policy = await budgets.policy(source, now_us)
    await budgets.records(source, tenants, now_us)
    asked: list[tuple[Identity, str, Bound, BudgetTake]] = []
    for tenant in tenants:
        who = Identity(tenant, "")
        plan, bounds = budgets.of(policy, who, used_us)
        for bound in bounds:
            limit = bound.limit
            if isinstance(limit, Budget) and limit.scope is Scope.TENANT:
                label, start, end = limit.window.bounds(used_us)
                asked.append((who, plan, bound, BudgetTake(bound.subject, bound.key, limit, 0, 0, label, start, end)))
    totals = await book.spent([take for *_, take in asked]) if asked else []
    found: list[Alert] = []
    for (who, plan, bound, _), total in zip(asked, totals, strict=True):
        found += crossed(bound, total, who, plan, used_us, now_us)
    return found


def _day_of(tenant: str, at_us: int) -> BudgetTake:
    """What to ask the ledger for a tenant's day."""
    subject = keys.tenant_subject(tenant)
    label, start, end = Window.DAY.bounds(at_us)
    return BudgetTake(subject, "", Budget(Scope.TENANT, Unit.MICROUSD, 0, Window.DAY, ""), 0, 0, label, start, end)


def _window(bound: Bound) -> Window:
    assert isinstance(bound.limit, Budget)
    return bound.limit.window
