"""Redis killed, stalled, emptied and brought back, under the failover store: admissions go on, budgets survive."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.contract.test_limit_store import budget, tokens
from tests.fault_proxy import FaultProxy
from tests.faults.rig import Redis, containers, redis_to_hurt, requests, run, until
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_limits import EPOCH, RedisLimitStore
from tollgate.domain.limits import Admission, BudgetTake, Decision, FailureMode, Settlement, Status, Take


@asynccontextmanager
async def failover(mode: FailureMode = "fallback") -> AsyncIterator[tuple[Redis, FailoverLimitStore, MemoryLimitStore]]:
    with redis_to_hurt() as redis:
        with redis.client() as client:
            client.set(EPOCH, 1)  # long ago, so that rates are believed
        second = MemoryLimitStore()
        second.name = "second"
        store = FailoverLimitStore(RedisLimitStore(redis.url), second, MemoryLimitStore(), lambda: mode)
        try:
            yield redis, store, second
        finally:
            await store.aclose()


def admission(*takes: Take) -> Admission:
    return Admission(uuid.uuid4().hex, list(takes), 60_000_000, "acme")


def now_budget(cost: int, seed: int | None = None, amount: int = 1000) -> BudgetTake:
    import time

    return budget(cost, amount=amount, seed=seed, at=time.time_ns() // 1000)


def test_a_killed_redis_costs_no_admission_and_comes_back() -> None:
    async def scenario() -> None:
        async with failover() as (redis, store, _):
            assert (await store.admit(admission(tokens(1)))).store == "redis"
            redis.kill()
            while store.deciding == "redis":
                decision = await store.admit(admission(tokens(1)))
                assert (decision.admitted, decision.store) == (True, "second")
            assert store.deciding == "second"
            redis.restart()
            await until(lambda: store.deciding == "redis")
            assert (await store.admit(admission(tokens(1)))).store == "redis"

    run(scenario)


def test_a_stalled_redis_opens_the_breaker_soon() -> None:
    async def scenario() -> None:
        async with failover() as (redis, store, _):
            await store.admit(admission(tokens(1)))
            redis.stall()
            loop = asyncio.get_running_loop()
            began = loop.time()
            waited: list[float] = []
            while store.deciding == "redis":
                sent = loop.time()
                assert (await store.admit(admission(tokens(1)))).admitted
                waited.append(loop.time() - sent)
            assert loop.time() - began < 5
            assert max(waited) < 3  # a busy machine; the stall itself lasts until the end
            redis.wake()
            await until(lambda: store.deciding == "redis")

    run(scenario)


def test_what_a_stalled_redis_may_have_taken_is_given_back() -> None:
    """The admission reached Redis, its answer did not reach us, DynamoDB decided: the hold in Redis must not stay."""

    async def scenario() -> None:
        async with failover() as (redis, store, _):
            await store.admit(admission(now_budget(1, seed=0)))
            redis.stall()
            await asyncio.gather(*(store.admit(admission(now_budget(100, seed=0))) for _ in range(5)))
            redis.wake()
            await until(lambda: store.deciding == "redis")
            decision = await store.admit(admission(now_budget(0, seed=0)))
            assert decision.values[0] == 1

    run(scenario)


def test_an_emptied_redis_asks_for_its_budgets_before_it_admits() -> None:
    async def scenario() -> None:
        async with failover() as (redis, store, _):
            take = now_budget(900, seed=0)
            spent = admission(take)
            first = await store.admit(spent)
            await store.settle(Settlement(spent.id, [take], [900], "acme", first.store))
            redis.kill()
            redis.restart()
            decision: Decision = await store.admit(admission(now_budget(200)))
            if decision.store == "second":  # the first call after the kill found no server
                await until(lambda: store.deciding == "redis")
                decision = await store.admit(admission(now_budget(200)))
            assert decision.status is Status.COLD
            assert (await store.admit(admission(now_budget(200, seed=900)))).status is Status.REFUSED

    run(scenario)


def test_a_redis_that_returns_with_old_numbers_loads_its_budgets_again() -> None:
    async def scenario() -> None:
        async with failover() as (redis, store, _):
            await store.admit(admission(now_budget(1, seed=0)))
            redis.stall()
            while not store._breaker.is_open:
                await store.admit(admission(now_budget(1, seed=0)))
                await asyncio.sleep(0.01)
            redis.wake()
            await until(lambda: store.deciding == "redis")
            assert (await store.admit(admission(now_budget(1)))).status is Status.COLD
            assert (await store.admit(admission(now_budget(1, seed=700)))).values[0] >= 701
            assert (await store.admit(admission(now_budget(1)))).admitted

    run(scenario)


@pytest.mark.parametrize(("mode", "expected"), [("open", "memory"), ("closed", None)])
def test_the_failure_mode_decides_who_decides(mode: FailureMode, expected: str | None) -> None:
    from tollgate.ports import StoreUnavailable

    async def scenario() -> None:
        async with failover(mode) as (redis, store, _):
            redis.kill()
            if expected is None:
                with pytest.raises(StoreUnavailable):
                    await store.admit(admission(tokens(1)))
            else:
                decision = await store.admit(admission(tokens(1)))
                assert (decision.store, decision.local) == (expected, True)

    run(scenario)


def test_a_settlement_redis_did_not_hear_is_made_when_it_returns() -> None:
    async def scenario() -> None:
        async with failover() as (redis, store, _):
            take = now_budget(500, seed=0)
            call = admission(take)
            decision = await store.admit(call)
            redis.stall()
            assert not await store.settle(Settlement(call.id, [take], [30], "acme", decision.store))
            while store.deciding == "redis":
                await store.admit(admission(tokens(1)))
            redis.wake()
            await until(lambda: store.deciding == "redis")
            assert (await store.admit(admission(now_budget(0, seed=0)))).values[0] == 30

    run(scenario)


def test_both_stores_are_connected_to_before_the_first_request() -> None:
    async def scenario() -> None:
        with redis_to_hurt() as redis:
            async with FaultProxy(redis.port) as proxy:
                url = f"redis://127.0.0.1:{proxy.port}"
                async with containers(url, MemoryLimitStore) as (container,):
                    await container.failover.warm()
                    assert proxy.accepted == 1
                    assert (await container.ask(requests(10)))[1].store == "redis"
                    assert proxy.accepted == 1
                proxy.refuse()
                async with containers(url, MemoryLimitStore) as (container,):
                    await container.failover.warm()
                    assert (await container.ask(requests(10)))[1].store == "second", "a start waits for nobody"

    run(scenario)
