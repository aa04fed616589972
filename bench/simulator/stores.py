"""The stores as one container reaches them: the real ones, behind a network that delays, loses and refuses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from bench.simulator.chance import Delay
from bench.simulator.costs import COSTS
from bench.simulator.judge import Judge
from bench.simulator.virtual_time import at_once
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_connection import REPLY_TIMEOUT
from tollgate.domain.limits import Admission, BudgetTake, Decision, RateTake, Settlement, Status, Take
from tollgate.ports import LimitStore, StoreUnavailable

T = TypeVar("T")
ROUND_TRIP = Delay(0.0006, 0.4, tail_share=0.0005, tail_median_s=0.03)
REFUSED_S = 0.0005
"""How long a connection takes to be refused."""

Health = Literal["up", "refusing", "stalled"]
DAY_US = 86_400_000_000


class RedisMemory(MemoryLimitStore):
    """The memory store with what `lua/admit.lua` has beyond it: an epoch, in which nothing older is believed."""

    name = "redis"

    def __init__(self, clock: Callable[[], int], epoch_us: int) -> None:
        super().__init__(clock)
        self._epoch_us = epoch_us
        self._loaded: dict[str, int] = {}
        """Key -> when its value was last loaded from elsewhere (µs)."""

    async def admit(self, admission: Admission) -> Decision:
        if cold := self._cold(admission):
            return Decision(Status.COLD, self._clock(), cold=cold, store=self.name)
        return await super().admit(admission)

    async def cancel(self, admission: Admission) -> None:
        """Undo an admission whose answer was lost."""
        used = [None if isinstance(t, RateTake) and not t.limit.refundable else 0 for t in admission.takes]
        await self.settle(Settlement(admission.id, admission.takes, used))

    async def reopen(self, outage_us: int) -> None:
        now = self._clock()
        if self._epoch_us < now - outage_us:
            self._epoch_us = now

    def _cold(self, admission: Admission) -> tuple[int, ...]:
        """Merge what was loaded; which takes must be loaded first."""
        now, epoch, cold = self._clock(), self._epoch_us, []
        for i, take in enumerate(admission.takes):
            if isinstance(take, RateTake):
                if now >= epoch + take.limit.burst_us:
                    continue
                if take.seed_us is not None:
                    self._tats[take.key] = max(self._tats.get(take.key, 0), take.seed_us)
                    self._loaded[take.key] = now
                elif self._loaded.get(take.key, -1) < epoch:
                    cold.append(i)
            elif isinstance(take, BudgetTake):
                if take.seed is not None:
                    self._loaded[take.key] = now
                elif self._loaded.get(take.key, -1) < epoch:
                    cold.append(i)
        return tuple(cold)


MakeStore = Callable[[Callable[[], int], int], RedisMemory]


class RedisServer:
    """The one Redis of a run, and its health."""

    def __init__(self, clock: Callable[[], int], judge: Judge, make: MakeStore = RedisMemory) -> None:
        self.clock = clock
        self.health: Health = "up"
        self._judge = judge
        self._make = make
        self.store = make(clock, clock() - DAY_US)

    def restart(self) -> None:
        """Start empty."""
        self.store = self._make(self.clock, self.clock())

    def settle(self, settlement: Settlement) -> bool:
        done = at_once(self.store.settle(settlement))
        if done:
            self._judge.settled(settlement, self.clock(), self.clock())
        return done


class RedisLink:
    """One container's way to the server (the `primary` of its failover). A frozen container sends nothing."""

    name = "redis"

    def __init__(
        self,
        server: RedisServer,
        chance: random.Random,
        awake: asyncio.Event,
        round_trip: Delay = ROUND_TRIP,
        reaches: Callable[[], bool] = lambda: True,
    ) -> None:
        self._server = server
        self._chance = chance
        self._awake = awake
        self._round_trip = round_trip
        self._reaches = reaches

    async def admit(self, admission: Admission) -> Decision:
        return await self._call(lambda: at_once(self._server.store.admit(admission)))

    async def settle(self, settlement: Settlement) -> bool:
        return await self._call(lambda: self._server.settle(settlement))

    async def cancel(self, admission: Admission) -> None:
        await self._call(lambda: at_once(self._server.store.cancel(admission)))

    async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
        return await self._call(lambda: at_once(self._server.store.recall(takes, cold)))

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        await self._call(lambda: at_once(self._server.store.raise_floor(spent)))

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        await self._call(lambda: at_once(self._server.store.publish(policy=policy, tenants=tenants)))

    async def reopen(self, outage_us: int) -> None:
        await self._call(lambda: at_once(self._server.store.reopen(outage_us)))

    async def ping(self) -> None:
        await self._call(lambda: None)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def _thawed(self) -> None:
        """Wait until the container is awake. Nothing of a frozen one runs: what is over meanwhile, by a timeout say, is
        over when it wakes."""
        over: asyncio.CancelledError | None = None
        while not self._awake.is_set():
            try:
                await self._awake.wait()
            except asyncio.CancelledError as error:
                over = error
        if over is not None:
            raise over

    async def _call(self, act: Callable[[], T]) -> T:
        """Half a round trip there, the server's moment, and half a round trip back. What takes too long happens all the
        same, but nobody hears of it."""
        await self._thawed()
        COSTS.get().redis += 1
        server, seconds = self._server, self._round_trip.draw(self._chance)
        if server.health == "refusing":
            await asyncio.sleep(REFUSED_S)
            raise StoreUnavailable("connection refused")
        if server.health == "stalled" or not self._reaches():
            await asyncio.sleep(REPLY_TIMEOUT)
            raise StoreUnavailable("no answer in time")
        if seconds > REPLY_TIMEOUT:
            if seconds / 2 < REPLY_TIMEOUT:
                asyncio.get_running_loop().call_later(seconds / 2, act)
            await asyncio.sleep(REPLY_TIMEOUT)
            raise StoreUnavailable("no answer in time")
        await asyncio.sleep(seconds / 2)
        if server.health != "up" or not self._reaches():
            raise StoreUnavailable("connection reset")
        result = act()
        await asyncio.sleep(seconds / 2)
        return result


class Watched:
    """Any other limit store: tells the judge when it settles, and remembers when an admission was begun."""

    def __init__(self, store: LimitStore, clock: Callable[[], int], judge: Judge) -> None:
        """`clock`: the true one."""
        self.name = store.name
        self.begun_us: dict[str, int] = {}
        """Request id -> true moment; whoever needs it takes it out."""
        self.writes = self.subjects = 0
        """By admitted requests that had nothing to load: writes to limits, and their subjects."""
        self._store = store
        self._clock = clock
        self._judge = judge
        self.recall = store.recall
        self.raise_floor = store.raise_floor
        self.publish = store.publish
        self.ping = store.ping
        self.aclose = store.aclose

    async def admit(self, admission: Admission) -> Decision:
        begun, costs = self._clock(), COSTS.get()
        writes = costs.subject_writes
        decision = await self._store.admit(admission)
        if decision.admitted:
            self.begun_us[admission.id] = begun
            if not any(isinstance(take, BudgetTake) and take.seed is not None for take in admission.takes):
                self.writes += costs.subject_writes - writes
                self.subjects += len({take.subject for take in admission.takes})
        return decision

    async def settle(self, settlement: Settlement) -> bool:
        begun = self._clock()
        done = await self._store.settle(settlement)
        if done:
            self._judge.settled(settlement, begun, self._clock())
        return done
