"""Containers that were frozen while their breakers were open, and thawed an hour later: in virtual time, on the
simulator's stores."""

from __future__ import annotations

import asyncio
import copy
import random
import uuid
from typing import Literal

import pytest

from bench.simulator.chance import Delay
from bench.simulator.costs import COSTS, Costs
from bench.simulator.judge import Judge
from bench.simulator.stores import RedisLink, RedisServer
from bench.simulator.table import Items, TableClient
from bench.simulator.virtual_time import WALL_CLOCK, run
from tests.faults.rig import outage_bound, requests
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import Admission, Decision, Status

NOON_US = 1_795_262_400_000_000
HOUR_S = 3600.0
TAKE = requests(100, burst=100, period_us=600_000_000)
"""A hundred per ten minutes: a bucket that is full again after an hour."""


class World:
    """One Redis, one table, and containers that can be frozen."""

    def __init__(self, containers: int) -> None:
        loop = asyncio.get_running_loop()
        self.now_us = lambda: NOON_US + round(loop.time() * 1e6)
        WALL_CLOCK.set(self.now_us)
        COSTS.set(Costs())
        self.redis, self._items, self._chance = RedisServer(self.now_us, Judge(NOON_US)), Items(), random.Random(1)
        self.awake = [asyncio.Event() for _ in range(containers)]
        self.stores = [self._container(awake) for awake in self.awake]
        for awake in self.awake:
            awake.set()

    def _container(self, awake: asyncio.Event) -> FailoverLimitStore:
        table = TableClient(self._items, self._chance, clock=self.now_us, true_clock=self.now_us)
        second = DynamoLimitStore(table, "limits", unknown="half")
        link = RedisLink(self.redis, self._chance, awake, Delay(0.0006, 0.4))
        local = MemoryLimitStore(self.now_us)
        return FailoverLimitStore(link, second, local, lambda: "fallback", outage_begins=second.outage_begins)


async def ask(store: FailoverLimitStore) -> Decision:
    take = copy.copy(TAKE)
    admission = Admission(uuid.uuid4().hex, [take], 60_000_000, "acme")
    while (decision := await store.admit(admission)).status is Status.COLD:
        (known,) = await store.recall([take], [0])
        take.seed_us = known or 0
    return decision


async def drain(store: FailoverLimitStore) -> int:
    admitted = 0
    while (await ask(store)).admitted:
        admitted += 1
    return admitted


@pytest.mark.parametrize(("health", "decides"), [("up", "redis"), ("stalled", "dynamodb"), ("refusing", "dynamodb")])
def test_an_hour_later_all_of_them_together_admit_what_one_may(
    health: Literal["up", "refusing", "stalled"], decides: str
) -> None:
    """Redis had been away for ten seconds. It is there when they wake: then nobody may have anything beyond the burst.
    Or it is away again: then DynamoDB, which knows nothing of this hour, gives half of one."""

    async def scenario() -> None:
        world, loop = World(containers=6), asyncio.get_running_loop()
        first, *frozen = world.stores
        for store in world.stores:
            await ask(store)
        await asyncio.sleep(HOUR_S)
        world.redis.health = "stalled"
        for store in world.stores:
            await ask(store)
        await asyncio.sleep(2)
        assert all(store._breaker.is_open for store in world.stores)
        for awake in world.awake[1:]:
            awake.clear()
        await asyncio.sleep(8)
        world.redis.health = "up"
        await asyncio.sleep(HOUR_S)
        assert first.deciding == "redis"
        began = loop.time()
        admitted = await drain(first)
        assert admitted >= TAKE.limit.burst
        world.redis.health = health
        for store, awake in zip(frozen, world.awake[1:], strict=True):
            awake.set()
            decision = await ask(store)
            assert decision.store == decides
            admitted += decision.admitted + await drain(store)
        outages = int(health != "up")
        assert admitted <= outage_bound(TAKE.limit, t=loop.time() - began, outages=outages, share=0.5)
        for store in world.stores:
            await store.aclose()

    run(scenario(), seed=1)
