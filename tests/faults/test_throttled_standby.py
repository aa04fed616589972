"""Redis is away, and DynamoDB turns writes away: those are told to come again, and the others do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.fault_proxy import AwsFaultProxy
from tests.faults.rig import (
    Container,
    containers,
    dynamodb_server,
    dynamodb_table,
    outage_bound,
    redis_to_hurt,
    requests,
    run,
    until,
)
from tollgate.adapters.dynamodb_limit_subjects import SHED_S
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Decision, RateTake
from tollgate.ports import Overloaded

THROTTLED = 400, "ProvisionedThroughputExceededException"


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[str]:
    with dynamodb_server() as url:
        yield url


async def drain(container: Container, take: RateTake) -> int:
    admitted = 0
    while (await container.ask(take))[1].admitted:
        admitted += 1
    return admitted


async def served(container: Container, take: RateTake) -> Decision:
    """Ask until it is turned away no more."""
    for _ in range(100):
        with suppress(Overloaded):
            return (await container.ask(take))[1]
        await asyncio.sleep(SHED_S)
    raise AssertionError("it is turned away for ever")


def test_one_subject_is_throttled_during_an_outage(dynamodb: str) -> None:
    hot, cold = requests(600, burst=20, name="hot"), requests(600, burst=20, name="cold")
    throttled: set[str] = set()

    def fault(operation: str, payload: dict[str, Any]) -> tuple[int, str] | None:
        if operation == "UpdateItem" and any(subject in payload["Key"]["pk"]["S"] for subject in throttled):
            return THROTTLED
        return None

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with redis_to_hurt() as redis:
            async with (
                AwsFaultProxy(int(dynamodb.rpartition(":")[2]), fault) as proxy,
                dynamodb_table(f"http://127.0.0.1:{proxy.port}") as (client, table),
                containers(redis.url, lambda: DynamoLimitStore(client, table, unknown="half")) as (container,),
            ):
                began, store = loop.time(), container.failover
                admitted = (await container.ask(hot))[1].admitted + 0
                redis.kill()
                assert (await container.ask(cold))[1].store == "dynamodb"
                await until(lambda: store._breaker.is_open)
                throttled.add(hot.subject)
                for _ in range(3):
                    with pytest.raises(Overloaded):
                        await container.ask(hot)
                    _, decision = await container.ask(cold)
                    assert (decision.admitted, decision.store) == (True, "dynamodb")
                throttled.add(cold.subject)
                for take in (hot, cold):
                    with pytest.raises(Overloaded):
                        await container.ask(take)
                throttled.clear()
                assert (await served(container, cold)).store == "dynamodb"
                admitted += (await served(container, hot)).admitted
                admitted += await drain(container, hot)
                redis.restart()
                await until(lambda: store.deciding == "redis")
                admitted += await drain(container, hot)
                bound = outage_bound(hot.limit, t=loop.time() - began, outages=1, share=0.5)
                assert hot.limit.burst // 2 <= admitted <= bound

    run(scenario)
