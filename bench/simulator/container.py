"""One container: the product's own objects, wired as `bootstrap.py` wires them, with a clock that may be wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bench.simulator.stores import RedisLink, Watched
from bench.simulator.table import TableClient
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import Decision
from tollgate.ports import LimitStore
from tollgate.services.admit import Admitter
from tollgate.services.directory import Directory
from tollgate.services.estimates import Estimates

if TYPE_CHECKING:
    from bench.simulator.simulation import Simulation


CUT_OFF = 3
"""One in so many containers is cut off from Redis while the network is parted."""


class Container:
    """Awake while it serves; Lambda freezes it in between, and then nothing of it runs."""

    def __init__(self, world: Simulation, number: int) -> None:
        scenario, chance = world.scenario, world.chance
        self.number = number
        self.served = 0
        self._world = world
        self._serving = 0
        self._skew_us = round(chance.uniform(-1, 1) * scenario.skew_s * 1e6)
        self._lag_us = 0
        self._frozen_us = 0
        self._awake = asyncio.Event()
        if number < 0 or scenario.at_once > 1:
            self._awake.set()
        local = MemoryLimitStore(self.clock_us)
        client = TableClient(world.items, chance, clock=self.clock_us, true_clock=world.now_us)
        behind = scenario.store == "redis"
        dynamodb = DynamoLimitStore(client, "limits", unknown="half" if behind else "full")
        self.dynamodb = Watched(dynamodb, world.now_us, world.judge)
        self.store: LimitStore = self.dynamodb
        if behind:
            redis = RedisLink(world.redis, chance, self._awake, reaches=self._reaches)
            self.store = FailoverLimitStore(
                redis, self.dynamodb, local, lambda: "fallback", outage_begins=dynamodb.outage_begins
            )
        directory = Directory(world, self.clock_us, versioned=lambda: True)
        self.admitter = Admitter(self.store, world, directory, local, self.clock_us)
        self.estimates = Estimates()

    def clock_us(self) -> int:
        """This container's own idea of the time, in µs since 1970."""
        return self._world.now_us() + self._skew_us - self._lag_us

    @property
    def full(self) -> bool:
        return self._serving >= self._world.scenario.at_once

    def end(self) -> None:
        """The run is over: nobody has to wait for this one any more."""
        self._awake.set()

    def _reaches(self) -> bool:
        """Whether the network lets it reach Redis."""
        return not (self._world.parted and self.number % CUT_OFF == 0)

    def take(self) -> None:
        """A request more. Some containers wake with the clock that they fell asleep with, until the next one."""
        world = self._world
        self.served += 1
        self._serving += 1
        if world.scenario.at_once > 1:
            return
        stale = self.served > 1 and world.chance.random() < world.scenario.stale
        self._lag_us = world.now_us() - self._frozen_us if stale else 0
        self._awake.set()

    def leave(self) -> None:
        """A request less."""
        self._serving -= 1
        if self._world.scenario.at_once == 1:
            self._frozen_us = self._world.now_us()
            self._awake.clear()

    def decided_us(self, decision: Decision, id: str) -> int:
        """The true moment of an admission: Redis has the true clock; on DynamoDB, when the container asked."""
        if decision.store == "redis":
            return decision.now_us
        return self.dynamodb.begun_us.pop(id, self._world.now_us())
