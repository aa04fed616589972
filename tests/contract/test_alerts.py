"""Alerts in DynamoDB: each once per budget, window and threshold, delivered at least once, never in the way."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from tests.aws_fixture import Recorder, make_table
from tests.contract.conftest import Dynamo
from tests.records import NOON, a_close
from tollgate.adapters.alert_table import AlertTable
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.memory_ledger import MemoryLedger
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import parse
from tollgate.domain.alerts import Alert
from tollgate.domain.identity import Identity
from tollgate.domain.limits import DAY_US, SECOND_US
from tollgate.domain.policy import CreditSpec, Policy, TenantRecord
from tollgate.domain.records import UsageClose
from tollgate.domain.terms import bind_budgets, budgets
from tollgate.ports import PolicyUnavailable, StoreUnavailable
from tollgate.services.alerts import Budgets, Thresholds, deliver, look_back
from tollgate.services.meter import DeadLetter, MeterReport, meter

HOUR_US = 3600 * SECOND_US
POLICY = parse(
    """
version: 1
upstreams: {here: {api: openai, base_url: "http://127.0.0.1:9/v1"}}
models: {small: {route: [{upstream: here, model: s}], price: {input: 1, output: 2}}}
plans:
  pro:
    models: [small]
    budgets:
      - {scope: tenant, tokens: 1000, per: day}
      - {scope: user, usd: 10, per: month, alert_at: [0.9]}
      - {scope: user, requests: 1000, per: day, alert_at: []}
""",
    {},
)


class Source:
    """The policy and one tenant's record."""

    def __init__(self) -> None:
        self.record: TenantRecord | None = TenantRecord(tenant="acme", plan="pro")
        self.down = False
        self.reads = 0

    async def policy(self) -> Policy:
        self.reads += 1
        if self.down:
            raise PolicyUnavailable("no table")
        return POLICY

    async def tenant(self, name: str) -> TenantRecord | None:
        self.reads += 1
        if self.down:
            raise PolicyUnavailable("no table")
        return self.record if name == "acme" else None


class Bus:
    """Takes what it is told to take."""

    def __init__(self) -> None:
        self.taken: list[Alert] = []
        self.refuses = False

    async def send(self, alerts: Sequence[Alert]) -> list[Alert]:
        if self.refuses:
            return []
        self.taken += alerts
        return list(alerts)


class NoLetters:
    async def send(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(letters)


class World:
    """A metering function with its ledger, and an outbox in DynamoDB."""

    def __init__(self, client: AwsClient, runner: asyncio.Runner) -> None:
        self.run = runner.run
        self.client = Recorder(client)
        self.outbox = AlertTable(self.client, self.run(make_table(client, sort_key=True)))
        self.ledger, self.source, self.bus = MemoryLedger(), Source(), Bus()
        self.budgets = Budgets()

    async def meter(self, *closes: UsageClose, now_us: int = NOON, cold: bool = False) -> MeterReport:
        """One invocation; `cold`: of a new container."""
        budgets = Budgets() if cold else self.budgets
        lines = [json.dumps(close.as_dict()) for close in closes]
        thresholds = Thresholds(budgets, self.source, self.outbox)
        store = MemoryLimitStore(lambda: now_us)
        return await meter(lines, self.ledger, store, NoLetters(), now_us, (), thresholds)

    def waiting(self) -> list[Alert]:
        return self.run(self.outbox.waiting(1000))

    def told(self) -> list[tuple[str, str, float]]:
        """Budget, window and threshold of what waits."""
        found = self.waiting()
        return sorted((a.facts["budget"], a.facts["window"], a.facts["threshold"]) for a in found)


def close(
    id: str, source: Source, *, tokens: int = 0, usd: float = 0, at: int = NOON, user: str = "alice"
) -> UsageClose:
    """A call that was counted against every budget of its user, as the proxy writes it."""
    record = source.record or TenantRecord(tenant="acme", plan="pro", version=0)
    settle = []
    for bound in bind_budgets(budgets(POLICY.plans["pro"], record, user, at), Identity("acme", user)):
        label = bound.limit.window.bounds(at)[0]  # type: ignore[union-attr]  # a budget
        settle.append(("b", f"{bound.key}:{label}", 1))
    amounts = {"input_tokens": tokens, "cost_microusd": round(usd * 1e6), "ts_us": at}
    return a_close(id, user=user, settle=tuple(settle), **amounts)


@pytest.fixture
def world(each_dynamodb: Dynamo) -> World:
    return World(*each_dynamodb)


DAY = ("tenant.tokens.day", "2026-11-21")
MONTH = ("user.microusd.month", "2026-11")


def test_each_threshold_once_whatever_is_repeated_and_done_at_once(world: World) -> None:
    closes = [close(f"c{i}", world.source, tokens=55, usd=0.44) for i in range(20)]
    batches = [closes[i : i + 4] for i in range(0, 20, 4)] * 2
    random.Random(1).shuffle(batches)

    async def all_at_once() -> None:
        await asyncio.gather(*(world.meter(*batch, cold=True) for batch in batches))

    world.run(all_at_once())
    assert world.told() == [(*DAY, 0.5), (*DAY, 0.8), (*DAY, 1.0)]
    world.run(world.meter(close("last", world.source, usd=0.2)))
    assert world.told() == [(*DAY, 0.5), (*DAY, 0.8), (*DAY, 1.0), (*MONTH, 0.9)]
    world.run(world.meter(*closes))
    world.run(deliver(world.outbox, world.bus))
    world.run(world.meter(*closes))
    assert world.waiting() == []


def test_what_an_alert_says(world: World) -> None:
    report = world.run(world.meter(close("a", world.source, usd=9.5)))
    assert (report.alerts, report.alert_failure) == (1, "")
    (alert,) = world.waiting()
    assert alert.as_dict() == {
        "text": "acme: user alice's budget for 2026-11 has reached 90% ($9.50 of $10.00 used)",
        "v": 1,
        "id": alert.id,
        "kind": "budget.threshold",
        "tenant": "acme",
        "raised_at": "2026-11-21T12:00:00Z",
        "scope": "user",
        "name": "alice",
        "plan": "pro",
        "budget": "user.microusd.month",
        "unit": "microusd",
        "window": "2026-11",
        "ends_at": "2026-12-01T00:00:00Z",
        "threshold": 0.9,
        "amount": 10_000_000,
        "used": 9_500_000,
        "late": False,
    }
    assert len(alert.id) == 22


def test_every_user_and_window_has_its_own(world: World) -> None:
    world.run(world.meter(close("a", world.source, usd=9), close("b", world.source, usd=9, user="bob")))
    assert sorted(a.facts["name"] for a in world.waiting()) == ["alice", "bob"]


def test_the_records_own_budgets_count(world: World) -> None:
    assert world.source.record is not None
    world.source.record = world.source.record.replace(budgets=())
    world.run(world.meter(close("a", world.source, tokens=600)))
    assert world.told() == [(*DAY, 0.5)]


def test_a_top_up_arms_the_thresholds_of_credit_again(world: World) -> None:
    def credit(usd: int) -> None:
        account = CreditSpec(usd=Decimal(usd), used_before=Decimal(5))
        world.source.record = TenantRecord(tenant="acme", plan="pro", credit=(account,))

    credit(10)
    world.run(world.meter(a_close("before", user="eve", cost_microusd=5_000_000)))
    world.run(world.meter(close("a", world.source, usd=4.9, user="u1")))
    assert world.told() == [], "4.9 of 10: the 5 before are not drawn from it"
    world.run(world.meter(close("b", world.source, usd=0.2, user="u1")))
    life = ("tenant.microusd.life", "life")
    assert world.told() == [(*life, 0.5)]
    credit(20)
    later = NOON + 60 * SECOND_US
    world.run(world.meter(close("c", world.source, usd=0.1, user="u1"), now_us=later))
    assert world.told() == [(*life, 0.5)]
    world.run(world.meter(close("d", world.source, usd=8, user="u2"), now_us=later))
    assert world.told() == [(*life, 0.5), (*life, 0.5)]
    assert [alert.facts["amount"] for alert in world.waiting()] == [10_000_000, 20_000_000]


def test_late_usage_alerts_for_its_own_window_for_a_day(world: World) -> None:
    yesterday = close("a", world.source, tokens=600, at=NOON - DAY_US)
    world.run(world.meter(yesterday))
    assert world.told() == [("tenant.tokens.day", "2026-11-20", 0.5)]
    assert [alert.facts["late"] for alert in world.waiting()] == [True]
    world.run(world.meter(close("b", world.source, tokens=600, at=NOON - 2 * DAY_US)))
    assert len(world.waiting()) == 1


def test_the_policy_is_read_once_in_a_while(world: World) -> None:
    for i in range(5):
        world.run(world.meter(close(f"c{i}", world.source, tokens=1), now_us=NOON + i * SECOND_US))
    assert world.source.reads == 2
    world.run(world.meter(close("c9", world.source, tokens=1), now_us=NOON + 31 * SECOND_US))
    assert world.source.reads == 4


def test_a_policy_that_cannot_be_read_holds_up_nothing(world: World) -> None:
    world.source.down = True
    report = world.run(world.meter(close("a", world.source, tokens=600)))
    assert (report.entered, report.alerts, report.alert_failure) == (1, 0, "no table")
    world.source.down = False
    world.run(world.meter(close("b", world.source, tokens=1)))
    assert world.told() == [(*DAY, 0.5)]


def test_an_outbox_that_cannot_be_written_has_the_batch_delivered_again(world: World) -> None:
    async def down(operation: str, payload: dict[str, Any]) -> None:
        raise Recorder.outage()

    world.client.fault = down
    one = close("a", world.source, tokens=600)
    with pytest.raises(StoreUnavailable):
        world.run(world.meter(one))
    world.client.fault = None
    report = world.run(world.meter(one))
    assert (report.repeated, report.alerts) == (1, 1)


def test_a_lost_reply_raises_nothing_twice(world: World) -> None:
    async def lost(operation: str, payload: dict[str, Any]) -> None:
        if operation == "TransactWriteItems":
            await world.client._client.call(operation, payload)
            raise Recorder.outage()

    world.client.fault = lost
    one = close("a", world.source, tokens=600)
    with pytest.raises(StoreUnavailable):
        world.run(world.meter(one))
    world.client.fault = None
    assert world.run(world.meter(one)).alerts == 0
    assert world.told() == [(*DAY, 0.5)]


def test_delivery_is_repeated_until_it_succeeds(world: World) -> None:
    world.run(world.meter(close("a", world.source, tokens=1000)))
    world.bus.refuses = True
    assert world.run(deliver(world.outbox, world.bus)) == (0, 3)
    assert len(world.waiting()) == 3
    world.bus.refuses = False

    async def killed(operation: str, payload: dict[str, Any]) -> None:
        if operation == "BatchWriteItem":
            raise Recorder.outage()

    world.client.fault = killed
    with pytest.raises(StoreUnavailable):
        world.run(deliver(world.outbox, world.bus))
    world.client.fault = None
    assert world.run(deliver(world.outbox, world.bus)) == (3, 0)
    ids = [alert.id for alert in world.bus.taken]
    assert len(ids) == 6
    assert len(set(ids)) == 3, "what was sent twice is known by its id"
    assert world.waiting() == []
    recent = world.run(world.outbox.recent(["2026-11-21"]))
    assert sorted((alert.facts["threshold"], sent) for alert, sent in recent) == [(0.5, True), (0.8, True), (1.0, True)]
    assert world.run(world.outbox.recent(["2026-11-20"])) == []


# -- looking back ----------------------------------------------------------------------------------------------------


def look(world: World, now_us: int = NOON) -> int:
    return world.run(look_back(world.ledger, world.outbox, world.outbox, world.budgets, world.source, now_us))


def history(world: World, days: int = 8, peak: int = 5_000_000) -> None:
    for back in range(1, days + 1):
        day = f"2026-11-{21 - back:02d}"
        world.run(world.outbox.note("acme", day, 9, peak))
        world.run(world.outbox.note("acme", day, 12, peak // 2))


def test_an_hour_far_above_history_alerts_once_a_day(world: World) -> None:
    history(world)
    world.run(world.ledger.enter([a_close("a", user="bob", cost_microusd=100_000_000, ts_us=NOON - HOUR_US // 2)]))
    world.run(world.outbox.note("acme", "2026-11-21", 10, 0))
    assert look(world) == 1
    (alert,) = world.waiting()
    assert alert.kind == "usage.anomaly"
    assert alert.facts == {
        "hour": "2026-11-21T11:00:00Z", "unit": "microusd", "used": 100_000_000, "usual": 5_000_000, "most": 5_000_000,
    }  # fmt: skip
    assert alert.text.startswith("acme: $100.00 in the hour from 2026-11-21T11:00:00Z")
    assert look(world) == 0, "repeated"
    assert world.run(world.outbox.since("acme", "2026-11-21"))["2026-11-21"][11] == 100_000_000
    world.run(world.ledger.enter([a_close("b", user="bob", cost_microusd=200_000_000, ts_us=NOON + 1)]))
    assert look(world, NOON + HOUR_US) == 0, "the same day"


def test_hours_in_which_nobody_looked_share_what_was_used(world: World) -> None:
    history(world)
    world.run(world.ledger.enter([a_close("a", user="bob", cost_microusd=24_000_000, ts_us=NOON - HOUR_US)]))
    assert look(world) == 0
    assert world.run(world.outbox.since("acme", "2026-11-21"))["2026-11-21"][11] == 2_000_000


def test_a_tenant_without_a_history_is_left_alone(world: World) -> None:
    history(world, days=6)
    world.run(world.ledger.enter([a_close("a", user="bob", cost_microusd=100_000_000, ts_us=NOON - HOUR_US // 2)]))
    assert look(world) == 0


def test_thresholds_of_tenants_are_looked_at_again(world: World) -> None:
    """Metering could not, because the policy could not be read."""
    world.source.down = True
    world.run(world.meter(close("a", world.source, tokens=600, usd=0.01, at=NOON - HOUR_US)))
    world.source.down = False
    assert look(world) == 1
    assert world.told() == [(*DAY, 0.5)]
