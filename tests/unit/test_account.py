"""What a caller sees of their own account, and how seldom that asks the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.records import NOON, a_close
from tests.unit.test_admit import ALICE, POLICY
from tollgate.adapters.memory_ledger import MemoryLedger
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import FilePolicySource
from tollgate.domain.limits import DAY_US, Admission, BudgetTake, Decision, RateTake, Status
from tollgate.ports import StoreUnavailable
from tollgate.services.account import KEPT_US, Account
from tollgate.services.admit import Admitter, Request
from tollgate.services.directory import Directory
from tollgate.wire.errors import ApiError


class Books(MemoryLedger):
    """A ledger that counts how often it is asked, and may be down."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.down = False

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("as if it were down")
        return await super().spent(takes)


class Store(MemoryLimitStore):
    """May have lost its rates: then another store has to be asked for them, as Redis says after it has started."""

    cold = False

    async def look(self, admission: Admission) -> Decision:
        rates = tuple(i for i, take in enumerate(admission.takes) if isinstance(take, RateTake))
        if self.cold and rates:
            return Decision(Status.COLD, self._clock(), cold=rates)
        return await super().look(admission)


class World:
    def __init__(self, folder: Path) -> None:
        large = "large: {route: [{upstream: here, model: l}], price: {input: 2, output: 4}}"
        (folder / "policy.yaml").write_text(POLICY.replace("models: {", f"models: {{{large}, "))
        self.now = NOON
        self.books = Books()
        source = FilePolicySource(folder / "policy.yaml", {})
        directory = Directory(source, lambda: self.now, versioned=lambda: True)
        self.store = Store(lambda: self.now)
        self.account = Account(directory, self.books, self.store, lambda: self.now)
        self.admitter = Admitter(self.store, self.books, directory, self.store, lambda: self.now)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_own_use_and_cost_of_day_and_month(world: World) -> None:
    entries = [
        a_close("a", input_tokens=10, output_tokens=5, cost_microusd=3, key="k1"),
        a_close("b", model="large", input_tokens=20, cost_microusd=4, ts_us=NOON - DAY_US),
        a_close("c", user="bob", input_tokens=1000, cost_microusd=1000),
    ]

    async def ask() -> tuple[dict[str, Any], dict[str, Any]]:
        await world.books.enter(entries)
        return await world.account.usage(ALICE), await world.account.usage(ALICE._replace(key="k1"))

    seen, with_key = asyncio.run(ask())
    first = {"requests": 1, "total_tokens": 15, "cost_microusd": 3}
    today = {"scope": "user", "window": "2026-11-21", **first, "models": [{"model": "small", **first}]}
    month = {"scope": "user", "window": "2026-11", "requests": 2, "total_tokens": 35, "cost_microusd": 7}
    large = {"model": "large", "requests": 1, "total_tokens": 20, "cost_microusd": 4}
    assert seen["used"] == [today, {**month, "models": [large, {"model": "small", **first}]}]
    assert with_key["used"][2:] == [{**today, "scope": "key"}, {**today, "scope": "key", "window": "2026-11"}]
    assert [b["resets_at"] for b in seen["budgets"]] == ["2026-11-22T00:00:00Z"]
    assert [(b["unit"], b["used"]) for b in seen["budgets"]] == [("tokens", 15 + 1000)]


def test_what_is_left_is_told_and_not_taken(world: World) -> None:
    async def ask() -> list[list[int]]:
        left = []
        for i in range(4):
            seen = await world.account.usage(ALICE)
            left.append([limit["remaining"] for limit in seen["limits"]])
            world.now += KEPT_US
            if i == 1:
                request = Request("r", "openai", "small", 70_000, 0, 60_000_000)
                await world.admitter.admit(ALICE, "192.0.2.1", request, 0)
        return left

    # 60 requests and 100,000 tokens a minute: three seconds give 3 and 5,000 back
    assert asyncio.run(ask()) == [[10, 100_000], [10, 100_000], [9, 30_000], [10, 35_000]]


def test_what_the_store_has_lost_is_told_by_the_other(world: World) -> None:
    async def ask() -> list[int]:
        request = Request("r", "openai", "small", 70_000, 0, 60_000_000)
        await world.admitter.admit(ALICE, "192.0.2.1", request, 0)
        world.store.cold = True
        return [limit["remaining"] for limit in (await world.account.usage(ALICE))["limits"]]

    assert asyncio.run(ask()) == [9, 30_000]


def test_a_crowd_asks_the_ledger_once_in_some_seconds(world: World) -> None:
    async def crowd() -> list[int]:
        asked = []
        for wait in (0, KEPT_US - 1, 1):
            world.now += wait
            await asyncio.gather(*(world.account.usage(ALICE._replace(expires_at=i)) for i in range(50)))
            asked.append(world.books.asked)
        await world.account.usage(ALICE._replace(user="bob"))
        return [*asked, world.books.asked]

    assert asyncio.run(crowd()) == [1, 1, 2, 3]


def test_a_failure_is_not_kept(world: World) -> None:
    async def ask() -> dict[str, Any]:
        world.books.down = True
        failed = await asyncio.gather(*(world.account.usage(ALICE) for _ in range(3)), return_exceptions=True)
        assert [error.status for error in failed if isinstance(error, ApiError)] == [503] * 3
        world.books.down = False
        return await world.account.usage(ALICE)

    assert asyncio.run(ask())["tenant"] == "acme"
    assert world.books.asked == 2
