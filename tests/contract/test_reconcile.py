"""The reconciler on every shared store: what lost a settlement and its floor is raised to what the ledger knows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from tests.contract.conftest import LOCAL, NOON, Driver, make_driver
from tests.contract.test_limit_store import MINUTE, TENANT, USER
from tests.records import a_close, an_open
from tollgate.adapters.memory_ledger import MemoryLedger
from tollgate.domain import keys
from tollgate.domain.bookkeeping import Question, Row
from tollgate.domain.limits import DAY_US, Budget, BudgetTake, Scope, Status, Unit, Window
from tollgate.domain.records import UsageClose
from tollgate.ports import StoreUnavailable
from tollgate.services.reconcile import Reconciled, reconcile, unbalanced


@pytest.fixture(params=["redis", "cluster", "dynamodb", LOCAL])
def driver(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Driver]:
    made = make_driver(request.param, runner, request)
    yield made
    made.run(made.store.aclose())


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


def budget(subject: str, unit: Unit, window: Window, models: frozenset[str] | None = None, seed: int = 0) -> BudgetTake:
    what = f"{unit}.{window}" + (f".{'+'.join(sorted(models))}" if models else "")
    key = f"{subject}:b:{unit}.{window}" + (f".{keys.digest(what)}" if models else "")
    label, start, end = window.bounds(NOON)
    limit = Budget(Scope.TENANT, unit, 10**9, window, f"tenant.{what}", models)
    return BudgetTake(subject, f"{key}:{label}", limit, 10, 10, label, start, end, seed)


def run(driver: Driver, ledger: MemoryLedger) -> Reconciled:
    return driver.run(reconcile(ledger, [driver.store], driver.now))  # type: ignore[list-item]  # all but memory are


def test_what_was_lost_is_found_and_raised_once(driver: Driver, ledger: MemoryLedger) -> None:
    some = frozenset({"small", "large"})
    takes = [
        budget(TENANT, Unit.TOKENS, Window.DAY, seed=100),
        budget(TENANT, Unit.MICROUSD, Window.MONTH),
        budget(TENANT, Unit.REQUESTS, Window.LIFE),
        budget(USER, Unit.TOKENS, Window.MONTH),
        budget(USER, Unit.TOKENS, Window.MONTH, some),
    ]
    assert driver.admit(*takes, id="a").admitted
    driver.now += 2 * MINUTE  # its hold has expired, and nobody settled
    told = ((takes[4].key, tuple(sorted(some))),)
    settle = tuple(("b", take.key, 1) for take in takes)
    driver.run(ledger.enter([a_close("a", input_tokens=70, cost_microusd=9, settle=settle, budget_models=told)]))
    report = run(driver, ledger)
    assert (report.compared, report.behind, report.ahead, report.unread, report.failures) == (5, 4, 1, 0, [])
    assert report.drift == {Unit.MICROUSD: 9, Unit.REQUESTS: 1, Unit.TOKENS: 140}
    assert report.on_the_way == {Unit.TOKENS: 30}
    again = run(driver, ledger)
    assert (again.behind, again.drift, again.ahead) == (0, {}, 1)
    values = driver.admit(*takes, id="b").values
    assert [value - 10 for value in values] == [100, 9, 1, 70, 70]


def test_only_budgets_are_looked_at_and_only_those_of_now(driver: Driver, ledger: MemoryLedger) -> None:
    day = budget(TENANT, Unit.TOKENS, Window.DAY)
    driver.admit(day, id="a")
    driver.run(ledger.enter([a_close("a", input_tokens=5)]))
    driver.now += DAY_US
    assert run(driver, ledger).compared == 0
    driver.now -= DAY_US
    assert run(driver, ledger).compared == 1


def test_a_budget_whose_models_nobody_told_is_left_alone(driver: Driver, ledger: MemoryLedger) -> None:
    driver.admit(budget(TENANT, Unit.TOKENS, Window.DAY, frozenset({"small"})), id="a")
    driver.run(ledger.enter([a_close("a", input_tokens=5)]))
    report = run(driver, ledger)
    assert (report.compared, report.unread) == (0, 1)


def test_many_budgets(driver: Driver, ledger: MemoryLedger) -> None:
    users = [f"user{i}" for i in range(20)]
    for user in users:
        driver.admit(budget(keys.member_subject("acme", "u", user), Unit.TOKENS, Window.DAY), id=user)
    driver.run(ledger.enter([a_close(user, user=user, input_tokens=3) for user in users]))
    report = run(driver, ledger)
    assert report.failures == []
    assert (report.compared, report.behind, report.drift) == (20, 20, {Unit.TOKENS: 60})
    assert run(driver, ledger).behind == 0


def test_redis_is_emptied_while_metering_is_ten_minutes_late(
    runner: asyncio.Runner, request: pytest.FixtureRequest, ledger: MemoryLedger
) -> None:
    """The budget is exceeded by what was in the pipeline at that moment, and no more; one reconciliation later store
    and ledger agree."""
    driver = make_driver("redis", runner, request)
    day = budget(TENANT, Unit.TOKENS, Window.DAY)
    day.limit = replace(day.limit, amount=10_000)
    pipeline: list[UsageClose] = []
    used = calls = 0

    def call() -> bool:
        nonlocal used, calls
        calls += 1
        take = replace(day, cost=100, floor=100, seed=None)
        decision = driver.admit(take, id=f"call{calls}")
        if decision.status is Status.COLD:  # as the gateway does: what the ledger knows
            take = replace(take, seed=driver.run(ledger.spent([take]))[0])
            decision = driver.admit(take, id=f"call{calls}")
        if not decision.admitted:
            return False
        driver.now += 1_000_000
        assert driver.settle(f"call{calls}", [take], [100])
        pipeline.append(a_close(f"call{calls}", input_tokens=100, output_tokens=0, settle=(("b", take.key, 100),)))
        used += 100
        return True

    assert all(call() for _ in range(30))
    driver.run(ledger.enter(pipeline))
    pipeline.clear()
    assert all(call() for _ in range(20))
    in_pipeline = 100 * len(pipeline)
    with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
        client.flushall()
    while call():
        pass
    assert used - 10_000 == in_pipeline
    driver.now += 10 * MINUTE
    driver.run(ledger.enter(pipeline))  # its floors got lost, too
    found = run(driver, ledger)
    assert (found.behind, found.drift) == (1, {Unit.TOKENS: in_pipeline})
    again = run(driver, ledger)
    assert (again.compared, again.behind, again.ahead) == (1, 0, 0)
    assert not call()
    driver.run(driver.store.aclose())


def test_lost_settlements_are_made_up_for_while_others_go_on(driver: Driver, ledger: MemoryLedger) -> None:
    """Floors are enough, without the settlements themselves: a budget is short by no more than what is still in the
    pipeline, and by nothing once that is through (ADR 39)."""
    day = replace(budget(TENANT, Unit.TOKENS, Window.DAY), cost=100, floor=100)
    pipeline: list[UsageClose] = []
    lost = [f"lost{i}" for i in range(5)]

    def call(id: str) -> None:
        assert driver.admit(day, id=id).admitted
        if id not in lost:
            assert driver.settle(id, [day], [100])
        pipeline.append(a_close(id, input_tokens=100, output_tokens=0, settle=(("b", day.key, 100),)))

    def counted() -> int:
        store: Any = driver.store
        return int(driver.run(store.known_spent([day.key]))[day.key])

    for id in lost:
        call(id)
    driver.now += 2 * MINUTE  # their holds have expired
    for i in range(20):
        call(f"call{i}")
        if i % 4 == 3:  # metering is eight calls behind, and the reconciler comes along
            entered, pipeline[:] = pipeline[:-8], pipeline[-8:]
            driver.run(ledger.enter(entered))
            run(driver, ledger)
            used = 100 * (len(lost) + i + 1)
            assert used - counted() <= 100 * min(len(lost), len(pipeline))
    driver.run(ledger.enter(pipeline))
    run(driver, ledger)
    assert counted() == 2500
    assert run(driver, ledger).drift == {}


class TestTheLedgerItself:
    def test_calls_that_nobody_closed_are_billed(self, ledger: MemoryLedger) -> None:
        asyncio.run(ledger.opened([an_open("a", expires_us=NOON)]))
        report = asyncio.run(reconcile(ledger, [], NOON + 10 * MINUTE))
        assert report.resolved == 1

    def test_a_store_that_is_away_is_named_and_the_others_are_compared(self, ledger: MemoryLedger) -> None:
        class Away:
            name = "redis"

            async def budget_keys(self) -> Any:
                raise StoreUnavailable("it is away")
                yield

        report = asyncio.run(reconcile(ledger, [Away()], NOON))  # type: ignore[list-item]  # as little as it needs
        assert report.failures == ["redis: it is away"]

    def test_books_balance_whatever_was_entered_and_replaced(self, ledger: MemoryLedger) -> None:
        async def enter() -> list[str]:
            await ledger.enter([a_close("a", input_tokens=9), a_close("b", tenant="globex", outcome="upstream_error")])
            await ledger.enter([a_close("c", output_tokens=90)], provisional=True)
            await ledger.enter([a_close("c", output_tokens=1), a_close("d", outcome="not_sent")])
            return await unbalanced(ledger, "2026-11-21")

        assert asyncio.run(enter()) == []

    @pytest.mark.parametrize(("lost", "named"), [("", True), ("day", True), ("people", False)])
    def test_rows_that_are_gone_are_noticed(self, lost: str, named: bool) -> None:
        """Those of days: counters of months move all the time."""
        ledger = MemoryLedger()
        asyncio.run(ledger.enter([a_close("a"), a_close("b", tenant="globex")]))
        gone = [row for row in ledger._sums if isinstance(row, Row) and (row.tenant, row.rollup) == ("acme", lost)]
        assert len(gone) == 1
        del ledger._sums[gone[0]]
        assert asyncio.run(unbalanced(ledger, "2026-11-21")) == (["acme"] if named else [])

    def test_a_counter_that_is_not_the_sum_of_its_rows_is_named(self) -> None:
        class Wrong(MemoryLedger):
            async def answers(self, asked: Sequence[Question]) -> list[int]:
                return [answer + 1 for answer in await super().answers(asked)]

        async def enter() -> list[str]:
            ledger = Wrong()
            await ledger.enter([a_close("a"), a_close("b", tenant="globex")])
            return await unbalanced(ledger, "2026-11-21")

        assert asyncio.run(enter()) == ["acme", "globex"]
