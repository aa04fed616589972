"""What docs/architecture.md says under "Bounds", computed for what is not a plain outage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fault_proxy import FaultProxy
from tests.faults.rig import (
    TENANT,
    Books,
    Container,
    Redis,
    containers,
    outage_bound,
    redis_to_hurt,
    requests,
    run,
    say,
    until,
)
from tests.unit.test_failover import Away
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import FilePolicySource
from tollgate.adapters.redis_limits import EPOCH, RedisLimitStore
from tollgate.domain.identity import Identity
from tollgate.domain.limits import Concurrency, RateTake, Scope, SlotTake, Take
from tollgate.ports import Overloaded
from tollgate.services.admit import Admitter, Request
from tollgate.services.directory import Directory
from tollgate.wire.errors import ApiError


def believed(redis: Redis) -> None:
    """Its epoch is long past, so that it believes what it has."""
    with redis.client() as client:
        client.set(EPOCH, 1)


async def drain(container: Container, take: RateTake | SlotTake) -> int:
    """Ask until that is refused; how many were admitted."""
    admitted = 0
    while (await container.ask(take))[1].admitted:
        admitted += 1
    return admitted


def test_some_containers_are_cut_off_from_redis() -> None:
    """Those use DynamoDB, the others Redis, as long as the partition lasts; so does the overlap."""

    async def scenario(redis: Redis) -> None:
        async with FaultProxy(redis.port) as proxy:
            second, books, made = MemoryLimitStore(), Books(), []
            second.name = "second"
            for port in (proxy.port, redis.port):
                primary = RedisLimitStore(f"redis://127.0.0.1:{port}")
                store = FailoverLimitStore(primary, second, MemoryLimitStore(), lambda: "fallback")
                made.append(Container(store, books))
            cut_off, other = made
            take, loop = requests(600, burst=20), asyncio.get_running_loop()
            began, admitted = loop.time(), {"redis": 0, "second": 0}

            async def ask_for(seconds: float) -> None:
                end = loop.time() + seconds
                while loop.time() < end:
                    for container in made:
                        _, decision = await container.ask(take)
                        admitted[decision.store] += decision.admitted
                    await asyncio.sleep(0.02)

            await ask_for(1)
            proxy.half_open = True
            parted = loop.time()
            await ask_for(5)
            proxy.half_open = False
            proxy.reset()
            while cut_off.failover.deciding != "redis":
                await ask_for(0.1)
            overlap = loop.time() - parted
            await ask_for(1)
            bound = outage_bound(take.limit, t=loop.time() - began, outages=1, overlap=overlap)
            say(f"cut off for {overlap:.1f} s: {admitted} admitted, bound {bound}")
            assert other.failover._breaker.doubts == 0
            assert min(admitted.values()) > take.limit.burst, "both have decided all the time"
            assert sum(admitted.values()) <= bound
            for container in made:
                await container.store.aclose()

    with redis_to_hurt() as redis:
        believed(redis)
        run(lambda: scenario(redis))


@pytest.mark.parametrize(("remembers", "switches"), [(True, 1), (False, 2)])
def test_slots_are_counted_by_each_store_alone(remembers: bool, switches: int) -> None:
    """What is in flight when another store begins to decide is not known there: a switch admits as many once more, and
    so does the way back to a Redis that has lost what it knew."""

    async def scenario(redis: Redis) -> None:
        limit = Concurrency(Scope.TENANT, 5, "tenant.slots")
        take = SlotTake(TENANT, f"{TENANT}:c:{limit.id}", limit)
        async with containers(redis.url, MemoryLimitStore) as (container,):
            in_flight = await drain(container, take)
            redis.stall() if remembers else redis.kill()
            in_flight += await drain(container, take)
            await until(lambda: container.failover._breaker.is_open)
            redis.wake() if remembers else redis.restart()
            await until(lambda: container.failover.deciding == "redis")
            in_flight += await drain(container, take)
            assert in_flight == limit.amount * (1 + switches)

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))


@pytest.mark.parametrize("broken", [True, False])
def test_what_dynamodb_cannot_tell_when_redis_is_back_is_half_empty(broken: bool) -> None:
    class Standby(MemoryLimitStore):
        broken = False

        async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
            if self.broken:
                raise Overloaded("throttled")
            return await super().recall(takes, cold)

    async def scenario(redis: Redis) -> None:
        second, loop = Standby(), asyncio.get_running_loop()
        async with containers(redis.url, lambda: second) as (container,):
            take = requests(1, burst=100, period_us=3_600_000_000)
            began = loop.time()
            admitted = (await container.ask(take))[1].admitted + 0
            redis.stall()
            while not container.failover._breaker.is_open:
                admitted += (await container.ask(take))[1].admitted
                await asyncio.sleep(0.01)
            admitted += await drain(container, take)
            second.broken = broken
            redis.wake()
            await until(lambda: container.failover.deciding == "redis")
            back = await drain(container, take)
            half = take.limit.burst // 2
            assert back == (half if broken else 0)
            bound = outage_bound(take.limit, t=loop.time() - began, outages=1) + half * broken
            assert admitted + back <= bound

    with redis_to_hurt() as redis:
        believed(redis)
        run(lambda: scenario(redis))


POLICY = """
version: 1
upstreams: {one: {api: openai, base_url: "http://127.0.0.1:9/v1"}}
models: {small: {route: [{upstream: one, model: s}], price: {input: 1, output: 2}}}
plans:
  free:
    models: [small]
    when_stores_fail: open
    limits: [{scope: user, requests: 1000, per: minute}]
    budgets: [{scope: tenant, tokens: 1000, per: day}, {scope: user, requests: 5, per: day}]
tenants: {acme: {plan: free}}
"""


@pytest.mark.parametrize(("tokens", "most"), [(300, 900), (10, 50)])
def test_budgets_of_an_open_plan_are_counted_by_each_container_alone(tokens: int, most: int, tmp_path: Path) -> None:
    """With both stores away: at most the whole budget in each, whatever was spent before."""
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)

    def clock() -> int:
        return time.time_ns() // 1000

    async def one_container(number: int) -> int:
        """How many tokens it admits."""
        second, local = Away(), MemoryLimitStore()
        second.name = "second"
        directory = Directory(FilePolicySource(path, {}), clock, versioned=lambda: False)
        store = FailoverLimitStore(Away(), second, local, lambda: "fallback")
        admitter, admitted = Admitter(store, Books(), directory, local, clock), 0

        async def all_it_can() -> None:
            nonlocal admitted
            while True:
                request = Request(f"c{number}.{admitted}", "openai", "small", tokens, 0, 60_000_000)
                await admitter.admit(Identity("acme", "alice"), "192.0.2.1", request, 0)
                admitted += tokens

        with pytest.raises(ApiError) as refused:
            await all_it_can()
        assert refused.value.status == 402
        await store.aclose()
        return admitted

    async def scenario() -> None:
        admitted = [await one_container(number) for number in range(3)]
        assert all(0 < tokens <= most for tokens in admitted)

    run(scenario)
