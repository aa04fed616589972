"""Redis dies, or hangs, under load: nobody sees an error, few wait, and what is admitted stays within the bound."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.faults.killed import redis_is_killed
from tests.faults.rig import (
    STANDBY_RPS,
    Container,
    Redis,
    budget,
    containers,
    dynamodb_server,
    load,
    redis_to_hurt,
    requests,
    run,
    say,
    until,
)
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_limits import RedisLimitStore
from tollgate.domain.limits import Admission, Decision, FailureMode, Settlement
from tollgate.ports import StoreUnavailable


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[str]:
    with dynamodb_server() as url:
        yield url


class Watched(RedisLimitStore):
    """Counts the admissions that found no answer, and so waited for Redis in vain."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.in_vain = 0

    async def admit(self, admission: Admission) -> Decision:
        try:
            return await super().admit(admission)
        except StoreUnavailable:
            self.in_vain += 1
            raise


def test_redis_is_killed_at_a_steady_load(dynamodb: str) -> None:
    with redis_to_hurt() as redis:
        run(lambda: redis_is_killed(redis, dynamodb, STANDBY_RPS))


def test_a_hanging_redis_is_waited_for_by_those_who_asked_before_it_was_noticed() -> None:
    """20 s of SIGSTOP at 50 rps. Only admissions that were made before the first one timed out wait for Redis, and no
    more until it answers again: probes have connections of their own time."""

    async def scenario(redis: Redis) -> None:
        primary = Watched(redis.url)
        store = FailoverLimitStore(primary, MemoryLimitStore(), MemoryLimitStore(), lambda: "fallback")
        container, take = Container(store), requests(1_000_000)
        loop = asyncio.get_running_loop()

        async def one(number: int) -> Decision:
            return await container.use(take, used=[None])

        async with load(50, one) as seen:
            await asyncio.sleep(2)
            before = seen.p99_ms()
            redis.stall()
            stalled = loop.time()
            doubted = await until(lambda: not store._breaker.is_closed)
            issued = sum(began <= stalled + doubted for began, _ in seen.seconds) - sum(
                began < stalled for began, _ in seen.seconds
            )
            await asyncio.sleep(20 - doubted)
            in_vain = primary.in_vain
            redis.wake()
            back = await until(lambda: store.deciding == "redis")
            await asyncio.sleep(1)
        slow = seen.slower_than(before / 1000 + 0.25)
        say(
            f"SIGSTOP for 20 s at 50 rps: {in_vain} admissions waited, {slow} of {len(seen.seconds)} requests "
            f"took more than 250 ms above their normal time; back after {back:.2f} s"
        )
        assert not seen.failures, seen.failures[:3]
        in_flight = 50 * doubted + 2
        assert in_vain <= in_flight, f"{issued} were issued before the doubt"
        assert primary.in_vain == in_vain, "nobody waited after it had woken up"
        await store.aclose()

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))


def test_a_stall_under_concurrency_is_one_doubt_and_does_not_open_the_breaker() -> None:
    async def scenario(redis: Redis) -> None:
        async with containers(redis.url, MemoryLimitStore) as (container,):
            take = requests(1_000_000)
            await container.ask(take)
            breaker = container.failover._breaker
            redis.stall()
            asked = [asyncio.create_task(container.ask(take)) for _ in range(500)]
            await until(lambda: not breaker.is_closed)
            redis.wake()
            answers = await asyncio.gather(*asked)
            assert all(decision.admitted for _, decision in answers)
            await until(lambda: breaker.is_closed)
            assert breaker.doubts == 1
            assert (await container.ask(take))[1].store == "redis"

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))


def test_a_redis_that_refuses_writes_is_not_taken_for_a_good_one() -> None:
    """It answers every PING, as one that has lost its disk, or became a replica, does."""

    async def scenario(redis: Redis) -> None:
        async with containers(redis.url, MemoryLimitStore) as (container,):
            take = requests(1_000_000)
            await container.ask(take)
            with redis.client() as client:
                client.replicaof("127.0.0.1", 1)
                await asyncio.sleep(0.1)
                for _ in range(10):
                    assert (await container.ask(take))[1].admitted
                    await asyncio.sleep(0.05)
                await until(lambda: container.failover._breaker.is_open)
                await asyncio.sleep(2)
                assert container.failover._breaker.is_open
                client.replicaof("NO", "ONE")
            await until(lambda: container.failover.deciding == "redis")
            assert (await container.ask(take))[1].store == "redis"

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))


def test_a_new_connection_that_is_never_answered_holds_nobody_up() -> None:
    """The first connection is half-open: what waits is told after the connection's own time, the rest at once."""
    from tests.fault_proxy import FaultProxy

    async def scenario(redis: Redis) -> None:
        async with FaultProxy(redis.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}"
            async with containers(url, MemoryLimitStore) as (container,):
                take = requests(1_000_000)
                await container.ask(take)
                proxy.half_open = True
                assert (await container.ask(take))[1].store == "second"
                await until(lambda: container.failover._breaker.is_open)
                for _ in range(100):
                    assert (await container.ask(take))[1].store == "second"
                proxy.half_open = False
                await until(lambda: container.failover.deciding == "redis")

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))


@pytest.mark.parametrize("mode", ["fallback", "open", "closed"])
def test_settlements_of_an_outage_are_made_when_it_is_over(mode: FailureMode) -> None:
    """2,000 holds, and as many settlements that Redis does not hear: afterwards the budget says what was used."""

    async def scenario(redis: Redis) -> None:
        async with containers(redis.url, MemoryLimitStore, mode=mode) as (container,):
            take = budget(100, 1_000_000)
            held = await asyncio.gather(*(container.ask(take) for _ in range(2_000)))
            redis.stall()
            for at in range(0, len(held), 100):
                await asyncio.gather(
                    *(
                        container.store.settle(Settlement(a.id, a.takes, [30], "acme", decision.store))
                        for a, decision in held[at : at + 100]
                    )
                )
            await until(lambda: container.failover._breaker.is_open)
            redis.wake()
            await until(lambda: container.failover.deciding == "redis")
            container.books.spent_of[take.key] = 60_000
            _, decision = await container.ask(budget(0, 1_000_000))
            assert decision.values[0] == 60_000

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))


def test_what_the_ledger_has_told_meanwhile_is_not_spent_again() -> None:
    """One container is asleep when Redis returns; another begins the epoch, and loads the budget from a ledger that
    knows all calls. Then the first one wakes, and tells what it could not tell before."""

    async def scenario(redis: Redis) -> None:
        async with containers(redis.url, MemoryLimitStore, count=2) as (asleep, awake):
            take, look = budget(100, 1_000_000), budget(0, 1_000_000)
            held = [await asleep.ask(take) for _ in range(10)]
            await awake.ask(look)
            redis.stall()
            for admission, decision in held:
                settlement = Settlement(admission.id, admission.takes, [60], "acme", decision.store)
                assert not await asleep.store.settle(settlement)
            await awake.ask(look)
            await until(lambda: all(each.failover._breaker.is_open for each in (asleep, awake)))
            watcher = asleep.failover._watcher
            assert watcher is not None
            watcher.cancel()
            awake.books.spent_of[take.key] = 600
            redis.wake()
            await until(lambda: awake.failover.deciding == "redis")
            _, decision = await awake.ask(look)
            assert decision.values[0] == 600 + 10 * 100, "what is held may be used beyond what the ledger knows"
            asleep.failover._watch_it()
            await until(lambda: asleep.failover.deciding == "redis")
            _, decision = await awake.ask(look)
            assert decision.values[0] == 600

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))
