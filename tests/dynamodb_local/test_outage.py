"""Redis dies at 100 requests a second, and DynamoDB Local stands by."""

from __future__ import annotations

import asyncio

from tests.aws_fixture import PATIENT
from tests.faults.killed import redis_is_killed
from tests.faults.rig import dynamodb_table, redis_to_hurt, requests, run
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Admission

AT_ONCE = 4
WARM_UP = 2_000
"""Admissions before the test: a Java program that has just started is compiled while it runs."""


async def warm_up(url: str) -> None:
    async with dynamodb_table(url, PATIENT) as (client, table):
        store = DynamoLimitStore(client, table)
        takes = [requests(1_000_000)]
        for i in range(0, WARM_UP, AT_ONCE):
            some = (Admission(f"r{i + j}", [*takes], 60_000_000, "acme") for j in range(AT_ONCE))
            await asyncio.gather(*map(store.admit, some))


def test_redis_is_killed_at_a_hundred_requests_a_second(url: str) -> None:
    run(lambda: warm_up(url))
    with redis_to_hurt() as redis:
        run(lambda: redis_is_killed(redis, url, 100))
