"""A planned failover: two servers swap their roles behind one endpoint, and nobody's connection breaks."""

from __future__ import annotations

import asyncio

from tests.fault_proxy import FaultProxy
from tests.faults.rig import Redis, budget, containers, direct, redis_to_hurt, requests, run, until
from tollgate.adapters.memory_limits import MemoryLimitStore

AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A replica is sent everything as soon as it asks."""


def follow(replica: Redis, master: Redis) -> None:
    with replica.client() as there:
        there.replicaof("127.0.0.1", master.port)


async def in_step(replica: Redis) -> None:
    with replica.client() as there:
        await until(lambda: there.info("replication").get("master_link_status") == "up")


def swap(old: Redis, new: Redis) -> None:
    with new.client() as there:
        there.replicaof("NO", "ONE")
    follow(old, new)


def test_who_is_still_connected_to_the_old_master_finds_the_new_one() -> None:
    """The call that the old one answers is made again where the endpoint leads now: the fallback decides none."""

    async def scenario(first: Redis, second: Redis) -> None:
        follow(second, first)
        async with FaultProxy(first.port) as endpoint:
            url = f"redis://127.0.0.1:{endpoint.port}"
            async with containers(url, MemoryLimitStore, reply_timeout=5) as (container,):
                for old, new in ((first, second), (second, first)):
                    assert (await container.use(requests(100), budget(10, 1_000), used=[None, 10])).store == "redis"
                    await in_step(new)
                    swap(old, new)
                    endpoint.target = new.port
                    made = endpoint.accepted
                    answers = [await container.use(requests(100), budget(10, 1_000), used=[None, 10]) for _ in range(3)]
                    assert [(each.admitted, each.store) for each in answers] == [(True, "redis")] * 3
                    assert endpoint.accepted == made + 1
                assert container.failover._breaker.doubts == 0
            async with direct(first.url) as reader:
                reader.books.spent_of[budget(0, 1_000).key] = 0  # what the masters themselves know
                assert (await reader.ask(budget(0, 1_000)))[1].values[0] == 80

    with redis_to_hurt(*AT_ONCE) as first, redis_to_hurt(*AT_ONCE) as second:
        run(lambda: scenario(first, second))


def test_an_endpoint_that_still_leads_to_the_old_master_is_asked_until_it_leads_to_the_new_one() -> None:
    """DNS is late. Meanwhile the fallback decides; a probe that is answered by a replica is no answer."""

    async def scenario(first: Redis, second: Redis) -> None:
        follow(second, first)
        async with (
            FaultProxy(first.port) as endpoint,
            containers(f"redis://127.0.0.1:{endpoint.port}", MemoryLimitStore) as (container,),
        ):
            assert (await container.ask(requests(100)))[1].store == "redis"
            await in_step(second)
            swap(first, second)
            while not container.failover._breaker.is_open:
                _, decision = await container.ask(requests(100))
                assert (decision.admitted, decision.local) == (True, False)
                await asyncio.sleep(0.01)
            endpoint.target = second.port
            await until(lambda: container.failover._breaker.is_closed)
            assert (await container.ask(requests(100)))[1].store == "redis"

    with redis_to_hurt(*AT_ONCE) as first, redis_to_hurt(*AT_ONCE) as second:
        run(lambda: scenario(first, second))
