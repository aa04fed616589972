"""When Redis may forget: not before a limit is whole again or a settlement can no longer come; in the end always."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from tests.contract.conftest import make_driver
from tests.contract.test_limit_store import MINUTE, SECOND, TENANT, USER, budget, slot
from tollgate.adapters.redis_connection import ConnectionLost
from tollgate.adapters.redis_limits import EPOCH, RedisLimitStore
from tollgate.domain.limits import Admission, BudgetTake, Rate, RateTake, Scope, Settlement, Status, Take, Unit
from tollgate.ports import StoreUnavailable

HOUR, DAY = 60 * MINUTE, 1440 * MINUTE
DEBTS = 20 * MINUTE
"""For so long a rate of tokens is kept, so that a debt finds it (`lua/admit.lua`)."""
SLOW = SECOND
"""What may pass between two of a test's commands."""


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.set(EPOCH, 1, px=40 * DAY // 1000)
        yield client


def rate(unit: Unit, period_us: int = MINUTE, burst: int = 1_000, cost: int = 1) -> RateTake:
    limit = Rate(Scope.USER, unit, 1_000, period_us, burst, f"user.{unit}")
    return RateTake(USER, f"{USER}:{unit}", limit, cost, cost)


def test_a_rate_is_kept_until_it_is_full_whatever_came_before(client: redis.Redis, redis_url: str) -> None:
    """Other plans' periods and bursts, give-backs and debts among it: an expiry that is not moved is late enough."""
    chance = random.Random(5)

    async def scenario() -> None:
        store = RedisLimitStore(redis_url, reply_timeout=5)
        checked = 0
        for number in range(500):
            unit = chance.choice((Unit.REQUESTS, Unit.TOKENS))
            period, burst = chance.choice((SECOND, MINUTE, HOUR, DAY)), chance.choice((10, 1_000, 5_000))
            take, life = rate(unit, period, burst, chance.randrange(10)), chance.choice((SECOND, MINUTE, 2 * DEBTS))
            decision = await store.admit(Admission(f"r{number}", [take], life, "acme"))
            if not decision.admitted:  # somebody else's burst: start again
                client.delete(take.key)
                continue
            if unit is Unit.TOKENS:
                assert client.pttl(take.key) * 1_000 >= life - SLOW
                if chance.random() < 0.5:
                    used = chance.choice((0, 5, 3_000))
                    assert await store.settle(Settlement(f"r{number}", [take], [used], "acme"))
            raw = client.get(take.key)
            assert isinstance(raw, bytes)
            assert client.pttl(take.key) * 1_000 >= int(raw) - decision.now_us - SLOW
            checked += 1
        assert checked > 200
        await store.aclose()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("take", "longest_us"),
    [
        (rate(Unit.REQUESTS), MINUTE + SECOND),
        (rate(Unit.TOKENS), MINUTE + SECOND + DEBTS),
        (slot(), MINUTE * 9 / 8 + MINUTE),
        (budget(1, at=time.time_ns() // 1_000), 25 * HOUR),
    ],
    ids=["requests", "tokens", "slots", "budget"],
)
def test_everything_expires(client: redis.Redis, redis_url: str, take: Take, longest_us: int) -> None:
    async def scenario() -> None:
        store = RedisLimitStore(redis_url, reply_timeout=5)
        for id in ("a", "b"):
            call = Admission(id, [take], MINUTE, "acme", tenant_version=1, policy_version=1)
            assert (await store.admit(call)).admitted
        await store.settle(Settlement("a", [take], [1], "acme"))
        await store.aclose()

    asyncio.run(scenario())
    assert 0 < client.pttl(take.key) * 1_000 <= longest_us
    assert client.pttl(f"{TENANT}m:b") * 1_000 <= MINUTE * 9 / 8
    assert all(client.pttl(key) > 0 for key in client.scan_iter())


def test_what_is_held_takes_as_much_room_as_there_are_moments_at_which_holds_expire(
    client: redis.Redis, redis_url: str
) -> None:
    now = 1_763_740_000_000_000

    async def scenario() -> None:
        nonlocal now
        store = RedisLimitStore(redis_url, reply_timeout=5, clock=lambda: now)
        many = slot(10**6)
        for number in range(500):  # for two minutes and a half, of which each is held for one
            assert (await store.admit(Admission(f"r{number}", [many], MINUTE, "acme"))).admitted
            now += MINUTE // 200
        decision = await store.look(Admission("look", [many], 0, "acme"))
        assert 200 <= decision.values[0] <= 200 * 9 / 8 + 1
        assert client.strlen(many.key) <= 8 * (3 + 2 * (17 + 1))
        await store.aclose()

    asyncio.run(scenario())


def test_what_was_lost_and_made_anew_is_not_settled_against_others_holds(client: redis.Redis, redis_url: str) -> None:
    now = 1_763_740_000_000_000

    async def scenario() -> None:
        nonlocal now
        store = RedisLimitStore(redis_url, reply_timeout=5, clock=lambda: now)
        taken: list[Take] = [budget(10, at=now), slot(5)]
        for id in ("lost", "kept"):
            assert (await store.admit(Admission(id, taken, MINUTE, "acme"))).admitted
            if id == "lost":
                client.delete(*(take.key for take in taken))
                now += 1
        assert await store.settle(Settlement("lost", taken, [7, 0], "acme"))
        decision = await store.look(Admission("look", taken, 0, "acme"))
        assert decision.values == [10, 1]
        assert await store.settle(Settlement("kept", taken, [4, 0], "acme"))
        decision = await store.look(Admission("look", taken, 0, "acme"))
        assert decision.values == [4, 0]
        await store.aclose()

    asyncio.run(scenario())


def test_what_the_ledger_told_is_kept_although_nothing_was_taken(client: redis.Redis, redis_url: str) -> None:
    """By who only looked, as groups of a cluster do that refused lately, and by who was refused."""
    now = time.time_ns() // 1_000

    async def scenario() -> None:
        store = RedisLimitStore(redis_url, reply_timeout=5)
        for life in (0, MINUTE):
            told = [budget(1, seed=7, at=now), slot(0)]
            client.delete(told[0].key)
            assert (await store.admit(Admission("refused", told, life, "acme"))).status is Status.REFUSED
            assert client.pttl(told[0].key) > 0
            decision = await store.look(Admission("look", [budget(1, seed=None, at=now)], 0, "acme"))
            assert (decision.status, decision.values[0]) == (Status.ADMITTED, 7)
        await store.aclose()

    asyncio.run(scenario())


def test_a_slot_is_held_however_long_ago_others_only_looked(client: redis.Redis, redis_url: str) -> None:
    """Who only looks prolongs nothing; the first to take does."""

    async def scenario() -> None:
        store = RedisLimitStore(redis_url, reply_timeout=5)
        one = slot(1)
        await store.look(Admission("look", [one], 0, "acme"))
        client.pexpire(one.key, 5_000)  # nearly a day later
        assert (await store.admit(Admission("a", [one], MINUTE, "acme"))).admitted
        assert client.pttl(one.key) * 1_000 > MINUTE
        assert not (await store.admit(Admission("b", [one], MINUTE, "acme"))).admitted
        await store.aclose()

    asyncio.run(scenario())


def test_who_is_refused_or_cold_makes_no_key_for_slots(client: redis.Redis, redis_url: str) -> None:
    """A flood from a million addresses, each of which may have some requests in flight, leaves nothing behind."""
    now = time.time_ns() // 1_000

    async def scenario() -> None:
        store = RedisLimitStore(redis_url, reply_timeout=5)
        refused: list[Take] = [rate(Unit.REQUESTS, burst=1, cost=2), slot()]
        cold: list[Take] = [budget(1, seed=None, at=now), slot()]
        for takes, status in ((refused, Status.REFUSED), (cold, Status.COLD)):
            assert (await store.admit(Admission(f"r{status}", takes, MINUTE, "acme"))).status is status
        assert not client.exists(slot().key)
        await store.aclose()

    asyncio.run(scenario())


def test_slots_are_kept_as_long_as_the_longest_hold_whoever_comes_after(client: redis.Redis, redis_url: str) -> None:
    async def scenario() -> None:
        store = RedisLimitStore(redis_url, reply_timeout=5)
        for id, life in (("long", 2 * DAY), ("short", SECOND)):
            assert (await store.admit(Admission(id, [slot()], life, "acme"))).admitted
        assert client.pttl(slot().key) * 1_000 >= 2 * DAY - SLOW
        await store.aclose()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_a_late_settlement_does_not_charge_what_a_floor_brought(
    kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest
) -> None:
    """Metering was there first: its batch could not be settled again, but was entered, and its total pushed."""
    driver = make_driver(kind, runner, request)
    for late, spent in ((True, 60), (False, 120)):
        taken = budget(100, amount=1_000, at=driver.now)
        taken.key += str(late)
        assert driver.admit(taken, id=f"{late}").admitted
        driver.now += SECOND
        driver.run(driver.store.raise_floor({taken.key: 60}))
        assert driver.run(driver.store.settle(Settlement(f"{late}", [taken], [60], "acme", late=late)))
        assert driver.run(driver.store.look(Admission("look", [taken], 0, "acme"))).values == [spent]
    driver.run(driver.store.aclose())


@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_a_late_settlement_does_not_charge_what_the_ledger_may_have_told(
    kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest
) -> None:
    """A container that was away tells what waited, after another one loaded the budget from a ledger that knows it."""
    driver = make_driver(kind, runner, request)
    for late, loaded, spent in ((True, 60, 60), (False, 60, 120), (True, None, 60)):
        id, taken = f"{late}.{loaded}", [budget(100, amount=1_000, at=driver.now), slot()]
        taken[0].key += id
        assert driver.admit(*taken, id=id).admitted
        driver.now += SECOND
        if loaded is not None:
            driver.run(driver.store.reopen(0))  # type: ignore[attr-defined]  # only stores that can be lost have it
            cold = driver.admit(*(replace(take, seed=None) for take in taken if isinstance(take, BudgetTake)))
            assert cold.status is Status.COLD
            assert not driver.admit(replace(taken[0], seed=loaded, cost=2_000, floor=2_000)).admitted
        assert driver.run(driver.store.settle(Settlement(id, taken, [60, 0], "acme", late=late)))
        assert driver.run(driver.store.look(Admission("look", taken, 0, "acme"))).values == [spent, 0]
    driver.run(driver.store.aclose())


def test_a_copy_of_an_admission_that_comes_after_its_settlement_takes_nothing(
    client: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks before the reply, the admission is sent again on another, and is settled; then the first
    copy arrives."""
    takes: list[Take] = [rate(Unit.TOKENS, cost=10), slot(5)]

    async def scenario() -> None:
        store = RedisLimitStore(redis_url, reply_timeout=5)
        await store.ping()
        connection = store._node.connection
        assert connection is not None
        held_back: list[bytes] = []

        def lose(packed: bytes) -> asyncio.Future[object]:
            held_back.append(packed)
            connection.connection_lost(None)
            lost: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            lost.set_exception(ConnectionLost("the connection to Redis was lost"))
            return lost

        def unanswered(packed: bytes) -> asyncio.Future[object]:
            lost: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            lost.set_exception(StoreUnavailable("Redis did not answer in time"))
            return lost

        monkeypatch.setattr(connection, "send", lose)
        assert (await store.admit(Admission("a", takes, MINUTE, "acme"))).admitted
        again = await store._node.connected()
        with monkeypatch.context() as patch:  # the first try of its settlement fails
            patch.setattr(again, "send", unanswered)
            with pytest.raises(StoreUnavailable):
                await store.settle(Settlement("a", takes, [10, 0], "acme"))
        assert await store.settle(Settlement("a", takes, [10, 0], "acme"))
        before = client.get(takes[0].key)
        await again.send(held_back[0])
        assert client.get(takes[0].key) == before
        assert (await store.look(Admission("look", takes, 0, "acme"))).values[1] == 0
        assert 0 < client.pttl(f"{TENANT}m:a") <= 60_000
        assert await store.replay([Settlement("a", takes, [10, 0], "acme")]) == 0
        await store.aclose()

    asyncio.run(scenario())
