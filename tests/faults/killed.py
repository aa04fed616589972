"""Redis dies under load, and DynamoDB decides until it is back: the same story for each DynamoDB that can stand by."""

from __future__ import annotations

import asyncio
import time

from tests.faults.rig import Container, Redis, containers, dynamodb_table, load, outage_bound, requests, say, until
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Decision

STANDBY_SHARE = 0.25
"""Of what the standby can do: the test is about Redis's death, and an overloaded standby is another story."""


async def bearable_rps(standby: DynamoLimitStore) -> float:
    """Requests a second that leave the standby room on this machine, as busy as it is."""
    asked = 20
    container, take = Container(standby), requests(1_000_000, name="measured")
    await container.use(take, used=[None])
    began = time.perf_counter()
    for _ in range(asked):
        await container.use(take, used=[None])
    return STANDBY_SHARE * asked / (time.perf_counter() - began)


async def redis_is_killed(redis: Redis, url: str, most_rps: float) -> None:
    """Four containers at `most_rps` requests a second in all (fewer where the standby is slow), and a bucket that had
    been emptied before."""
    async with (
        dynamodb_table(url) as (client, table),
        containers(redis.url, lambda: DynamoLimitStore(client, table, unknown="half"), count=4) as four,
    ):
        loop = asyncio.get_running_loop()
        rps = min(most_rps, await bearable_rps(DynamoLimitStore(client, table)))
        roomy, scarce = requests(1_000_000, name="roomy"), requests(600, burst=20, name="scarce")
        admitted = 0
        began = loop.time()
        while (await four[0].ask(scarce))[1].admitted:
            admitted += 1

        async def one(number: int) -> Decision:
            nonlocal admitted
            container = four[number % len(four)]
            if number % 2:
                return await container.use(roomy, used=[None])
            _, decision = await container.ask(scarce)
            admitted += decision.admitted
            return decision

        async with load(rps, one) as seen:
            await asyncio.sleep(1)
            redis.kill()
            died = loop.time()
            first = await until(lambda: any(not c.failover._breaker.is_closed for c in four))
            await until(lambda: all(c.failover._breaker.is_open for c in four))
            opened = loop.time()
            await asyncio.sleep(3)
            redis.restart()
            returned = loop.time()
            await until(lambda: any(c.failover.deciding == "redis" for c in four))
            some_back = loop.time()
            await until(lambda: all(c.failover.deciding == "redis" for c in four))
            back = loop.time()
            await asyncio.sleep(1)
            for container in four:
                assert (await container.ask(roomy))[1].store == "redis"
        overlap = (opened - died - first) + (back - some_back)
        bound = outage_bound(scarce.limit, t=loop.time() - began, overlap=overlap, outages=1, share=0.5)
        say(
            f"kill -9 at {rps:.0f} rps: open after {opened - died:.2f} s, back after {back - returned:.2f} s; "
            f"p99 {seen.p99_ms(until=died):.1f} ms before, {seen.p99_ms(died, opened):.1f} ms while opening, "
            f"{seen.p99_ms(opened, returned):.1f} ms once open; {admitted} admitted, bound {bound}"
        )
        assert not seen.failures, seen.failures[:3]
        assert {"redis", "dynamodb"} <= set(seen.stores)
        assert admitted <= bound
