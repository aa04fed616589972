"""One run: callers, containers and stores in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.simulator.arrivals import BURST_S, arrivals
from bench.simulator.chance import Delay
from bench.simulator.container import Container
from bench.simulator.costs import COSTS, Costs
from bench.simulator.ideal import Ideal
from bench.simulator.judge import Judge
from bench.simulator.operators import Operators
from bench.simulator.population import Call, Population
from bench.simulator.scenarios import Scenario
from bench.simulator.stores import MakeStore, RedisMemory, RedisServer
from bench.simulator.table import Items
from bench.simulator.tally import Tally
from bench.simulator.virtual_time import WALL_CLOCK
from tollgate.domain.limits import BudgetTake, RateTake, Settlement, Take, Unit
from tollgate.domain.usage import tokens_of
from tollgate.ports import StoreUnavailable
from tollgate.services.admit import Grant, Request
from tollgate.services.bills import sample_of
from tollgate.services.estimates import Estimate
from tollgate.wire import routes
from tollgate.wire.errors import ApiError

HOLD_US = 15 * 60 * 1_000_000
COLD_START = Delay(0.35, 0.3)
METERING = Delay(6.0, 0.5)
"""From the end of a request until the ledger has it."""
METERING_EVERY_S = 5.0
GREEDY_FROM = 500
"""The rank of the first tenant with a greedy user; all of them are on a plan with one request per second."""
READ = Delay(0.004, 0.35, tail_share=0.005, tail_median_s=0.05)
"""One read of the ledger or of the policy's tables."""


class Simulation:
    """Everything that exists once: the true clock, the load, the servers, the fleet."""

    def __init__(self, scenario: Scenario, seed: int, make_store: MakeStore = RedisMemory) -> None:
        self.scenario = scenario
        self.seconds = scenario.minutes * 60
        self.chance = random.Random(seed * 7 + 3)
        self.population = Population(scenario.tenants, seed)
        self.operators = Operators(self.population)
        for tenant in range(GREEDY_FROM, GREEDY_FROM + scenario.greedy):
            self.population.plans[tenant] = "pro"
        if scenario.flood is not None and scenario.flood.plan:
            self.population.plans[scenario.flood.tenant] = scenario.flood.plan
        self.judge = Judge(scenario.start_us)
        self.tally = Tally(self.seconds)
        self.items = Items()
        self.metered: dict[str, int] = {}
        """What the ledger knows to be spent, by budget key."""
        self.loading: dict[str, int] = {}
        self._seed = seed
        self._make_store = make_store
        self._unmetered: dict[str, int] = {}
        self._running: dict[asyncio.Task[None], None] = {}
        self._idle: list[Container] = []
        self.made: list[Container] = []
        self.parted = False
        """Whether some containers cannot reach Redis."""
        self.back_s: float | None = None
        """When Redis came back."""
        self.changed_s = 0.0
        """When an operator last changed records."""

    def now_us(self) -> int:
        """The true time, in µs since 1970."""
        return self.scenario.start_us + round(self._loop.time() * 1e6)

    async def run(self) -> None:
        """The whole run, until the last answer is over."""
        self._loop = asyncio.get_running_loop()
        WALL_CLOCK.set(self.now_us)
        self.redis = RedisServer(self.now_us, self.judge, self._make_store)
        self.ideal = Ideal(self.now_us)
        self._metering = Container(self, -1)
        background = [self._loop.create_task(work) for work in (self._meter(), self._events())]
        for at, tenant, user, group in self._load():
            if at > self._loop.time():
                await asyncio.sleep(at - self._loop.time())
            self._arrive(tenant, user, group)
        while self._running:
            await asyncio.wait(list(self._running))
        for container in self.made:
            container.end()
        for task in background:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for other in asyncio.all_tasks() - {asyncio.current_task()}:
            other.cancel()

    # -- what happens

    def _load(self) -> Iterator[tuple[float, int, int, str]]:
        """(second, tenant, user, group) of every request, in order."""
        return heapq.merge(self._everyone(), self._flood(), self._greedy())

    def _everyone(self) -> Iterator[tuple[float, int, int, str]]:
        waiting: list[tuple[float, int, int, str]] = []
        chance = random.Random(self._seed * 7 + 4)
        flood = self.scenario.flood
        for at, size in arrivals(self.scenario.rps, self.seconds, self._seed):
            while waiting and waiting[0][0] <= at:
                yield heapq.heappop(waiting)
            tenant, user = self.population.someone()
            group = "neighbours" if flood and tenant == flood.tenant else "others"
            for nth in range(size):
                heapq.heappush(waiting, (at + (chance.random() * BURST_S if nth else 0.0), tenant, user, group))
        while waiting:
            yield heapq.heappop(waiting)

    def _flood(self) -> Iterator[tuple[float, int, int, str]]:
        """X"""
        flood, chance = self.scenario.flood, random.Random(self._seed * 7 + 5)
        if flood is None:
            return
        at, end = flood.start * self.seconds, flood.end * self.seconds
        while at < end:
            yield at, flood.tenant, int(flood.users * chance.random()), "flood"
            if chance.random() < 1.0 / flood.rps:
                yield at, flood.tenant, flood.users + int(2 * chance.random()), "neighbours"
            at += chance.expovariate(flood.rps)

    def _greedy(self) -> Iterator[tuple[float, int, int, str]]:
        """Users who always ask for twice their limit, so that their buckets are always empty."""
        greedy, chance, at = self.scenario.greedy, random.Random(self._seed * 7 + 6), 0.0
        while greedy and (at := at + chance.expovariate(2.0 * greedy)) < self.seconds:
            yield at, GREEDY_FROM + int(greedy * chance.random()), 0, "greedy"

    async def _events(self) -> None:
        """What the scenario does to the stores and to the tenants' records."""
        scenario = self.scenario
        if scenario.outage is not None:
            at, length_s = scenario.outage
            await asyncio.sleep(at * self.seconds)
            self.redis.health = "refusing"
            await asyncio.sleep(length_s)
            self.redis.restart()
            self.redis.health = "up"
            self.back_s = self._loop.time()
        if scenario.partition is not None:
            at, length_s = scenario.partition
            await asyncio.sleep(at * self.seconds)
            self.parted = True
            await asyncio.sleep(length_s)
            self.parted, self.back_s = False, self._loop.time()
        if scenario.boost is not None:
            start, end = scenario.boost
            await asyncio.sleep(start * self.seconds)
            await self._publish(self.operators.boost(10))
            await asyncio.sleep((end - start) * self.seconds)
            await self._publish(self.operators.boost(1))

    async def _publish(self, versions: Mapping[str, int]) -> None:
        self.changed_s = self._loop.time()
        await asyncio.sleep(1.0)  # the stream, and the publisher's function
        await self._metering.store.publish(tenants=versions)

    async def _meter(self) -> None:
        """Bring what was metered to the stores, as floors."""
        COSTS.set(Costs())
        while True:
            await asyncio.sleep(METERING_EVERY_S)
            floors, self._unmetered = self._unmetered, {}
            if floors:
                with contextlib.suppress(StoreUnavailable):
                    await self._metering.store.raise_floor(floors)

    def _metered(self, settlement: Settlement) -> None:
        for take, used in zip(settlement.takes, settlement.used, strict=True):
            if isinstance(take, BudgetTake):
                self.metered[take.key] = self.metered.get(take.key, 0) + (used or 0)
                self._unmetered[take.key] = self.metered[take.key]

    # -- one request

    def _arrive(self, tenant: int, user: int, group: str) -> None:
        container = self._container()
        if container is None:
            self.tally.turned_away += 1
            return
        call = self.population.call(tenant, user)
        task = self._loop.create_task(self._serve(container, call, group))
        self._running[task] = None
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        task.result()

    def _container(self) -> Container | None:
        """As Lambda does it: an idle one if there is any (half of the time the last one used), else a new one."""
        chance, idle = self.chance, self._idle
        fresh = self.scenario.fresh and chance.random() < self.scenario.fresh
        if idle and not (fresh and len(self.made) < self.scenario.containers):
            at = len(idle) - 1 if chance.random() < 0.5 else int(chance.random() * len(idle))
            container = idle[at]
            container.take()
            if container.full:
                idle[at] = idle[-1]
                idle.pop()
            return container
        if len(self.made) >= self.scenario.containers:
            return None
        container = Container(self, len(self.made))
        self.made.append(container)
        container.take()
        if not container.full:
            idle.append(container)
        return container

    async def _serve(self, container: Container, call: Call, group: str) -> None:
        COSTS.set(costs := Costs())
        WALL_CLOCK.set(container.clock_us)
        if container.served == 1:
            await asyncio.sleep(COLD_START.draw(self.chance))
        at_s = self._loop.time()
        self.tally.count(group, "offered", at_s)
        likely = container.estimates.of(call.who.tenant, call.model)
        prompt, guess = tokens_of(call.prompt_bytes, likely.learned.bytes_per_token), likely.learned.answer_tokens
        ask = likely.ask(container.clock_us())
        request = Request(call.id, "openai", call.model, prompt, call.max_tokens, HOLD_US, ask=ask)
        ideal = self._ask_ideal(call, request, guess, group)
        try:
            grant = await container.admitter.admit(call.who, call.ip, request, guess)
        except ApiError as error:
            self._refused(error, call, group, at_s, ideal)
        else:
            self._admitted(grant, container, call, group, at_s)
            if ask:
                container.estimates.hear(likely, grant.decision.told, container.clock_us())
            await asyncio.sleep(call.seconds)
            await self._answered(grant, container, call, likely)
        self._account(group, container, costs, at_s)
        if container.full:
            self._idle.append(container)
        container.leave()

    def _ask_ideal(self, call: Call, request: Request, guess: int, group: str) -> bool:
        """Whether the ideal limiter admits it now; it serves it as long as the fleet would."""
        record = self.operators.record(call.tenant)
        held = self.ideal.admit(call, request, guess, self.operators.policy, record)
        if held is None:
            return False
        self.tally.count(group, "ideal", self._loop.time())
        self.tally.group(group).ideal[call.tenant] += 1
        self._loop.call_later(call.seconds, self.ideal.settle, held)
        return True

    def _refused(self, error: ApiError, call: Call, group: str, at_s: float, ideal: bool) -> None:
        limit = error.headers.get("x-ratelimit-type", "")
        if error.status >= 500:
            what = "failed"
        else:
            what = "refused locally" if limit.startswith("Local-") else "refused by the store"
        self.tally.count(group, what, at_s)
        if ideal:
            self.tally.count(group, "falsely refused", at_s)
            self.tally.group(group).reasons[f"{error.status} {limit or error.code}"] += 1

    def _admitted(self, grant: Grant, container: Container, call: Call, group: str, at_s: float) -> None:
        tally, decision, now_s = self.tally, grant.decision, self._loop.time()
        decided_us = container.decided_us(decision, call.id)
        self.judge.admitted(call.id, decision.store, decided_us, grant.admission.takes, decision.granted)
        tally.count(group, "admitted", at_s)
        tally.group(group).admitted[call.tenant] += 1
        tally.waits.append(now_s - at_s)
        tally.holds["guessed" if call.max_tokens is None else "given"].append(
            held_tokens(grant.admission.takes, decision.granted, grant.cost.tokens) / call.usage.total_tokens
        )
        tally.point(f"decided by {decision.store}", now_s)
        if decision.store == "dynamodb" and self.back_s is not None:
            tally.late.append(now_s - self.back_s)
        if grant.entitlement.record.version != self.operators.record(call.tenant).version:
            tally.outdated.append(now_s - self.changed_s)

    async def _answered(self, grant: Grant, container: Container, call: Call, likely: Estimate) -> None:
        """What `Gateway` does at the end of an answer; metering hears of it some seconds later."""
        price = grant.entitlement.terms.price
        microusd = price.cost(call.usage) if price is not None else 0
        settlement = grant.settlement(call.usage.total_tokens, microusd, counts=True)
        sample = sample_of(asked(call), call.usage)
        if sample is not None and likely.learn(sample, container.clock_us()):
            settlement.sample, settlement.learn = sample, likely.key
        self.judge.ended(settlement, self.now_us())
        await container.admitter.settle(settlement)
        self._loop.call_later(METERING.draw(self.chance), self._metered, settlement)

    def _account(self, group: str, container: Container, costs: Costs, at_s: float) -> None:
        found = self.tally.group(group)
        found.costs.add(costs)
        for name in ("redis", "writes", "loads", "throttled"):
            if amount := getattr(costs, name):
                self.tally.point(name, at_s, amount)
        if calls := costs.redis + costs.writes + costs.reads:
            found.calls_by_second[container.number, int(at_s)] += calls

    # -- what containers ask for besides limits

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        """The ledger: what metering has brought so far."""
        COSTS.get().loads += len(takes)
        for take in takes:
            self.loading[take.key] = self.loading.get(take.key, 0) + 1
        await asyncio.sleep(READ.draw(self.chance))
        return [self.metered.get(take.key, 0) for take in takes]

    async def policy(self) -> Any:
        COSTS.get().records += 1
        await asyncio.sleep(READ.draw(self.chance))
        return self.operators.policy

    async def tenant(self, name: str) -> Any:
        COSTS.get().records += 1
        await asyncio.sleep(READ.draw(self.chance))
        return self.operators.record(int(name[1:]))


def asked(call: Call) -> routes.Call:
    """As the gateway reads it from a body: a text, and one answer."""
    route = routes.ROUTES["/v1/chat/completions"]
    return routes.Call(
        route, call.model, False, call.prompt_bytes, 0, 1, call.max_tokens, "max_tokens", withhold_usage=False
    )


def held_tokens(takes: Sequence[Take], granted: Sequence[int], wanted: int) -> int:
    """The tokens that a call holds of the limit that granted it the fewest: a guess shrinks to what is left."""
    of_tokens = [pair for pair in zip(takes, granted, strict=True) if pair[0].limit.unit is Unit.TOKENS]
    held = [take.limit.units(got) if isinstance(take, RateTake) else got for take, got in of_tokens]
    return min(held, default=wanted)
