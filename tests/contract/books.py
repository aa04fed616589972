"""A ledger, as the tests of ledgers drive it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from tests.aws_fixture import Recorder, make_table
from tests.records import NOON
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.adapters.memory_ledger import MemoryLedger
from tollgate.domain import keys
from tollgate.domain.limits import Budget, BudgetTake, Scope, Unit, Window
from tollgate.domain.records import UsageClose
from tollgate.domain.reports import ALL_KEYS, Line, grouped
from tollgate.services.billing import Bill, export

T = TypeVar("T")
USER = keys.member_subject("acme", "u", "alice")
TENANT = keys.tenant_subject("acme")


class Books:
    """A ledger, driven synchronously."""

    def __init__(self, ledger: DynamoLedger | MemoryLedger, runner: asyncio.Runner) -> None:
        self.ledger = ledger
        self._runner = runner

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def enter(self, *entries: UsageClose, provisional: bool = False) -> tuple[int, int]:
        report = self.run(self.ledger.enter(entries, provisional=provisional))
        return report.entered, report.repeated

    def spent(self, *takes: BudgetTake) -> list[int]:
        return self.run(self.ledger.spent(takes))

    def rows(self, *by: str, **where: str) -> list[Line]:
        """By all keys, unless some are named: then with every kind of token."""
        days = {name: where.pop(name) for name in ("tenant", "since", "until") if name in where}
        return grouped(self.run(self.ledger.report(**days, where=where)), by or ALL_KEYS, kinds=bool(by))

    def told(self, by: Sequence[str], since: str | None, until: str | None) -> list[Line]:
        return grouped(self.run(self.ledger.report(since=since, until=until, by=by)), by, kinds=True)

    def added_up(self, by: Sequence[str], since: str | None, until: str | None) -> list[Line]:
        """The same from single rows."""
        return grouped(self.run(self.ledger.report(since=since, until=until)), by, kinds=True)

    def entries(self, tenant: str, day: str) -> list[UsageClose]:
        async def read() -> list[UsageClose]:
            return [entry async for entry in self.ledger.entries(tenant, day)]

        return self.run(read())

    def bill(self, **how: Any) -> tuple[Bill, bytes]:
        """Of acme, in November 2026, and what was written."""
        out = io.BytesIO()
        days = [f"2026-11-{day:02}" for day in range(1, 31)]
        return self.run(export(self.ledger, "acme", days, out.write, **how)), out.getvalue()


def make_books(kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest) -> Books:
    if kind == "memory":
        return Books(MemoryLedger(), runner)
    client: Recorder = request.getfixturevalue("dynamo")
    client.fault = None
    return Books(DynamoLedger(client, runner.run(make_table(client, sort_key=True))), runner)


def take(
    unit: Unit, window: Window, *, subject: str = USER, models: frozenset[str] | None = None, at: int = NOON
) -> BudgetTake:
    what = f"{unit}.{window}" + (f".{'+'.join(sorted(models))}" if models else "")
    key = f"{subject}:b:{unit}.{window}" + (f".{keys.digest(what)}" if models else "")
    label, start, end = window.bounds(at)
    limit = Budget(Scope.USER, unit, 10**9, window, f"user.{what}", models)
    return BudgetTake(subject, f"{key}:{label}", limit, 1, 1, label, start, end)
