"""One table of limits, and what tests take from it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from tests.aws_fixture import Recorder, make_table
from tests.records import NOON
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limit_items import counter
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain import keys
from tollgate.domain.limits import (
    Admission,
    Budget,
    BudgetTake,
    Concurrency,
    Decision,
    Rate,
    RateTake,
    Scope,
    Settlement,
    SlotTake,
    Take,
    Unit,
    Window,
)

T = TypeVar("T")
SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY_S = 86_400


def rate(scope: Scope, amount: int = 100, *, cost: int = 1, unit: Unit = Unit.REQUESTS, floor: int = -1) -> RateTake:
    subject = {
        Scope.IP: keys.ip_subject("203.0.113.7"),
        Scope.USER: keys.member_subject("acme", "u", "alice"),
        Scope.TENANT: keys.tenant_subject("acme"),
    }.get(scope, keys.global_subject())
    limit = Rate(scope, unit, amount, MINUTE, amount, f"{scope}.{unit}.minute")
    return RateTake(subject, f"{subject}:{unit}.minute", limit, cost, cost if floor < 0 else floor)


def budget(
    cost: int = 10, *, amount: int = 100, floor: int = -1, window: Window = Window.DAY, at: int = NOON
) -> BudgetTake:
    subject = keys.tenant_subject("acme")
    label, start, end = window.bounds(at)
    limit = Budget(Scope.TENANT, Unit.TOKENS, amount, window, f"tenant.tokens.{window}")
    key = f"{subject}:b:tokens.{window}:{label}"
    return BudgetTake(subject, key, limit, cost, cost if floor < 0 else floor, label, start, end, 0)


def loaded(take: T) -> T:
    """The same take of a budget that has been loaded before."""
    if isinstance(take, BudgetTake):
        return replace(take, seed=None)  # type: ignore[return-value]  # of the same class
    return take


def slot(amount: int = 5) -> SlotTake:
    subject = keys.tenant_subject("acme")
    return SlotTake(subject, f"{subject}:slots", Concurrency(Scope.TENANT, amount, "tenant.slots"))


class World:
    """One table, a clock, and containers that use it."""

    def __init__(self, client: AwsClient, runner: asyncio.Runner) -> None:
        self.client = client
        self.calls = Recorder(client)
        self.now = NOON
        self._runner = runner
        self.table = self.run(make_table(client))
        self.store = self.container()

    def container(self) -> DynamoLimitStore:
        return DynamoLimitStore(self.calls, self.table, clock=lambda: self.now)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def admit(self, *takes: Take, id: str = "", life: int = MINUTE, store: DynamoLimitStore | None = None) -> Decision:
        admission = Admission(id or uuid.uuid4().hex, list(takes), life, "acme")
        return self.run((store or self.store).admit(admission))

    def settle(self, id: str, *pairs: tuple[Take, int | None]) -> bool:
        return self.run(self.store.settle(Settlement(id, [t for t, _ in pairs], [u for _, u in pairs], "acme")))

    def items(self) -> dict[str, dict[str, Any]]:
        found = self.run(self.client.call("Scan", {"TableName": self.table}))["Items"]
        return {item["pk"]["S"]: {k: next(iter(v.values())) for k, v in item.items()} for item in found}

    def number(self, take: Take) -> int:
        """What is counted for `take`: TAT, committed units, slots in use."""
        return int(self.items()[f"s#{take.subject}"][counter(take)])

    def counted(self) -> list[str]:
        calls, self.calls.calls = self.calls.calls, []
        return calls


EVERYTHING = (rate(Scope.IP), rate(Scope.USER), rate(Scope.TENANT), rate(Scope.GLOBAL))
