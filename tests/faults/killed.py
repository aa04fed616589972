"""Redis dies under load, and DynamoDB decides until it is back: the same story for each DynamoDB that can stand by."""

from __future__ import annotations

import asyncio

from tests.faults.rig import Redis, containers, dynamodb_table, load, outage_bound, requests, say, until
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Decision


async def redis_is_killed(redis: Redis, url: str, rps: float) -> None:
    """Four containers at `rps` requests a second in all, and a bucket that had been emptied before."""
    async with (
        dynamodb_table(url) as (client, table),
        containers(redis.url, lambda: DynamoLimitStore(client, table, unknown="half"), count=4) as four,
    ):
        loop = asyncio.get_running_loop()
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
        overlap = (opened - died - first) + (back - some_back)
        bound = outage_bound(scarce.limit, t=loop.time() - began, overlap=overlap, outages=1, share=0.5)
        say(
            f"kill -9 at {rps} rps: open after {opened - died:.2f} s, back after {back - returned:.2f} s; "
            f"p99 {seen.p99_ms(until=died):.1f} ms before, {seen.p99_ms(died, opened):.1f} ms while opening, "
            f"{seen.p99_ms(opened, returned):.1f} ms once open; {admitted} admitted, bound {bound}"
        )
        assert seen.failures == []
        assert {"redis", "dynamodb"} <= set(seen.stores)
        assert admitted <= bound
