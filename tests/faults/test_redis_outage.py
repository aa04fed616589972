"""Redis killed, stalled, emptied and brought back, under the failover store: admissions go on, budgets survive."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.contract.test_limit_store import budget, tokens
from tests.servers import free_port, start_redis
from tollgate.adapters.breaker import FAILURES_TO_OPEN
from tollgate.adapters.failover import FailoverLimitStore, FailureMode
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_limits import RedisLimitStore
from tollgate.domain.limits import Admission, BudgetTake, Decision, Settlement, Status, Take


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


class Redis:
    """A real server that a test can hurt."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] = start_redis(self.port)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = start_redis(self.port)

    def stall(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def failover(mode: FailureMode = "fallback") -> AsyncIterator[tuple[Redis, FailoverLimitStore, MemoryLimitStore]]:
    redis = Redis()
    second = MemoryLimitStore()
    second.name = "second"
    store = FailoverLimitStore(RedisLimitStore(redis.url), second, MemoryLimitStore(), lambda: mode)
    try:
        yield redis, store, second
    finally:
        await store.aclose()
        redis.wake()
        redis.kill()


def admission(*takes: Take) -> Admission:
    return Admission(uuid.uuid4().hex, list(takes), 60_000_000, "acme")


def now_budget(cost: int, seed: int | None = None, amount: int = 1000) -> BudgetTake:
    import time

    return budget(cost, amount=amount, seed=seed, at=time.time_ns() // 1000)


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError


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


def test_a_stalled_redis_opens_the_breaker_within_a_second() -> None:
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
            assert loop.time() - began < 1
            assert max(waited) < 0.7
            redis.wake()
            await until(lambda: store.deciding == "redis")

    run(scenario)


def test_what_a_stalled_redis_may_have_taken_is_given_back() -> None:
    """The admission reached Redis, its answer did not reach us, DynamoDB decided: the hold in Redis must not stay."""

    async def scenario() -> None:
        async with failover() as (redis, store, _):
            await store.admit(admission(now_budget(1, seed=0)))
            redis.stall()
            for _ in range(FAILURES_TO_OPEN):
                await store.admit(admission(now_budget(100, seed=0)))
            redis.wake()
            await until(lambda: store.deciding == "redis")
            decision = await store.admit(admission(now_budget(0, seed=0)))
            assert decision.states[0].value == 1

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
            while store.deciding == "redis":
                await store.admit(admission(now_budget(1, seed=0)))
            redis.wake()
            await until(lambda: store.deciding == "redis")
            assert (await store.admit(admission(now_budget(1)))).status is Status.COLD
            assert (await store.admit(admission(now_budget(1, seed=700)))).states[0].value >= 701
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
            await until(lambda: not store._unsettled)
            assert (await store.admit(admission(now_budget(0, seed=0)))).states[0].value == 30

    run(scenario)
