"""Redis loses what it knew, or an older copy of it answers: budgets go on, and rates stay within the stated bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.fault_proxy import FaultProxy
from tests.faults.rig import (
    MINUTE,
    Container,
    Redis,
    budget,
    containers,
    outage_bound,
    redis_to_hurt,
    requests,
    run,
    say,
    until,
)
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import RateTake

DAILY = 1_000
"""Tokens of a day's budget; each request takes 25 and uses 10."""
STEPS = 60
"""Requests before the loss; each is one of `RATE`, too."""


def rate() -> RateTake:
    return requests(60, burst=STEPS, period_us=MINUTE, name="limited")


async def spend(container: Container, number: int) -> int:
    """So many requests against the budget; how many were admitted."""
    admitted = 0
    for _ in range(number):
        admitted += (await container.use(budget(25, DAILY), used=[10])).admitted
    return admitted


async def drain(container: Container) -> int:
    """Requests until the rate refuses; how many were admitted."""
    admitted = 0
    while (await container.ask(rate()))[1].admitted:
        admitted += 1
    return admitted


async def whole_budget(container: Container, lose: Callable[[], Awaitable[None]]) -> None:
    """However the store forgets, the day's budget admits what it would have admitted: until less is left than a request
    asks for. So does the rate, but for one more burst."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    admitted = await spend(container, STEPS)
    taken = await drain(container)
    await lose()
    taken += await drain(container)
    admitted += await spend(container, STEPS)
    assert admitted * 10 == DAILY - 20, "at 980 a request of 25 does not fit"
    bound = outage_bound(rate().limit, t=loop.time() - began, losses=1)
    say(f"{taken} of a rate admitted over the loss, bound {bound}; {admitted * 10} of a budget of {DAILY} spent")
    assert rate().limit.burst <= taken <= bound


def test_everything_is_flushed_in_the_middle_of_the_day() -> None:
    async def scenario(redis: Redis) -> None:
        async with containers(redis.url, MemoryLimitStore) as (container,):

            async def flush() -> None:
                with redis.client() as client:
                    client.flushall()

            await whole_budget(container, flush)
            assert container.failover._breaker.doubts == 0

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))


def test_a_redis_that_is_back_empty_before_anybody_noticed() -> None:
    async def scenario(redis: Redis) -> None:
        async with containers(redis.url, MemoryLimitStore) as (container,):

            async def restart() -> None:
                redis.kill()
                redis.restart()

            await whole_budget(container, restart)

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))


@pytest.mark.parametrize("lag", [0, 1])
def test_a_replica_is_promoted(lag: int) -> None:
    """The replica has not heard of the last half of everything (lag 1), or has heard it all. It answers at the old
    address at once, so that nobody sees an outage; only its identity tells that it is another server."""

    async def scenario(master: Redis, replica: Redis) -> None:
        async with AsyncExitStack() as stack:
            replication = await stack.enter_async_context(FaultProxy(master.port))
            address = await stack.enter_async_context(FaultProxy(master.port))
            with replica.client() as there, master.client() as here:

                def in_step() -> bool:
                    mine, theirs = here.info("replication"), there.info("replication")
                    return (
                        theirs.get("master_link_status") == "up"
                        and theirs["slave_repl_offset"] == mine["master_repl_offset"]
                    )

                there.replicaof("127.0.0.1", replication.port)
                (container,) = await stack.enter_async_context(
                    containers(f"redis://127.0.0.1:{address.port}", MemoryLimitStore, reply_timeout=5)
                )
                # what is spent here, the replica learns
                await container.ask(rate())
                await spend(container, 1)
                await asyncio.to_thread(_wait, in_step)
                began = asyncio.get_running_loop().time()
                if lag:
                    replication.stall()
                admitted = 1 + await spend(container, STEPS - 1)
                taken = 1 + await drain(container)
                if not lag:
                    await asyncio.to_thread(_wait, in_step)
                there.replicaof("NO", "ONE")
                address.target = replica.port
                address.reset()
                taken += await drain(container)
                admitted += await spend(container, STEPS)
                assert admitted * 10 == DAILY - 20
                bound = outage_bound(rate().limit, t=asyncio.get_running_loop().time() - began, losses=lag)
                say(f"replica promoted, lag {lag}: {taken} of a rate admitted, bound {bound}; budget unchanged")
                assert taken <= bound
                assert container.failover._breaker.is_closed
                assert there.hlen("{g}servers") == 2

    with redis_to_hurt() as master, redis_to_hurt() as replica:
        run(lambda: scenario(master, replica))


def _wait(condition: Callable[[], bool]) -> None:
    asyncio.run(_until(condition))


async def _until(condition: Callable[[], bool]) -> None:
    await until(condition)


def test_the_same_server_is_no_stranger_to_new_connections_and_containers() -> None:
    """A container that starts, or a connection that was lost, begins no epoch: that would load every budget again."""

    async def scenario(redis: Redis) -> None:
        async with containers(redis.url, MemoryLimitStore, count=5) as five:
            for container in five:
                await container.ask(budget(25, DAILY))
            with redis.client() as client:
                epoch = client.get("{g}epoch")
                client.client_kill_filter(_type="normal", skipme=True)
                for container in five:
                    await container.ask(budget(25, DAILY))
                assert (client.get("{g}epoch"), client.hlen("{g}servers")) == (epoch, 1)

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))
