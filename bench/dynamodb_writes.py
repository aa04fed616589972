"""What one admission on DynamoDB costs: writes per subject, by load, by how long requests are held, by containers.

    .venv/bin/python -m bench.dynamodb_writes [--quick]

The store's own code, on the simulator's table and in virtual time: the figures depend on the seed, not on the machine.
A tenant's limits (two rates, a budget, slots: one subject, one item) are asked for 10 times a second, at random moments
and from random containers; each request is settled after its hold. A container's first meeting with the item, of which
it knows nothing, is told apart: a fleet that is new to a tenant does nothing else for a while.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import random
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from bench.simulator.costs import COSTS, Costs
from bench.simulator.table import Items, TableClient
from bench.simulator.virtual_time import WALL_CLOCK, run
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain import keys
from tollgate.domain.limits import (
    SECOND_US,
    Admission,
    Budget,
    BudgetTake,
    Concurrency,
    Rate,
    RateTake,
    Scope,
    Settlement,
    SlotTake,
    Take,
    Unit,
    Window,
)

PER_S = 10
LIFE_US = 900 * SECOND_US
START_US = 1_795_262_400 * SECOND_US
LOADS = (0.2, 0.5, 0.67, 0.86, 0.95)
HOLDS_S = (5, 60, 600)
CONTAINERS = (1, 4, 32, 1000)
SUBJECT = keys.tenant_subject("acme")


class Client:
    """Answers at once, from items without limits of their own, and counts what is written to subjects."""

    clock_offset_us, clock_known = 0, True

    def __init__(self, items: Items) -> None:
        self._items = items
        self.writes = 0

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        if operation == "UpdateItem":
            self.writes += payload["Key"]["pk"]["S"].startswith("s#")
        return self._items.answer(operation, payload, 0.0)


@dataclass(slots=True)
class Measured:
    """Writes per subject and admission, settling not included."""

    known: float
    """By containers that had met the item."""
    first: float
    """By containers that met it for the first time; 0 where none did."""
    all: float
    share: float
    """Of first meetings."""


def limits(load: float) -> list[Take]:
    """Of one tenant, for which 10 requests of 7 tokens a second are `load` of the rates."""
    minute = 60 * SECOND_US
    requests = Rate(Scope.TENANT, Unit.REQUESTS, n := int(60 * PER_S / load), minute, n, "tenant.requests.60s")
    tokens = Rate(Scope.TENANT, Unit.TOKENS, n := int(420 * PER_S / load), minute, n, "tenant.tokens.60s")
    label, start, end = Window.LIFE.bounds(START_US)
    budget = Budget(Scope.TENANT, Unit.TOKENS, 10**9, Window.LIFE, "tenant.tokens.life")
    return [
        RateTake(SUBJECT, f"{SUBJECT}:requests.60s", requests, 1, 1),
        RateTake(SUBJECT, f"{SUBJECT}:tokens.60s", tokens, 7, 7),
        BudgetTake(SUBJECT, f"{SUBJECT}:b:tokens.life:{label}", budget, 7, 7, label, start, end),
        SlotTake(SUBJECT, f"{SUBJECT}:slots", Concurrency(Scope.TENANT, 10**6, "tenant.slots")),
    ]


async def measure(load: float, hold_s: float, containers: int, *, count: int, seed: int = 1) -> Measured:
    """After as many requests as fill the holds, and a hundred at least, `count` are measured."""
    client, chance = Client(Items(units_per_s=1e12)), random.Random(seed)
    now = START_US
    stores = [DynamoLimitStore(client, "limits", clock=lambda: now) for _ in range(containers)]
    takes = limits(load)
    budget = takes[2]
    assert isinstance(budget, BudgetTake)
    budget.seed = 0
    await DynamoLimitStore(client, "limits", clock=lambda: now).admit(Admission("first", [budget], SECOND_US))
    budget.seed = None
    warm_up = max(100, int(1.2 * PER_S * hold_s))
    met: set[int] = set()
    found: dict[bool, list[int]] = {True: [], False: []}
    settling: list[tuple[int, str, int]] = []
    arrival = float(now)
    for n in range(warm_up + count):
        arrival += chance.expovariate(PER_S) * SECOND_US
        while settling and settling[0][0] <= arrival:
            now, id, who = heapq.heappop(settling)
            assert await stores[who].settle(Settlement(id, takes, [None, 7, 7, 0]))
        now, id, who = int(arrival), f"{n}", chance.randrange(containers)
        before = client.writes
        decision = await stores[who].admit(Admission(id, takes, LIFE_US))
        if not decision.admitted:
            continue
        if n >= warm_up:
            found[who in met].append(client.writes - before)
        met.add(who)
        heapq.heappush(settling, (now + int(hold_s * SECOND_US), id, who))
    every = found[True] + found[False]
    return Measured(_mean(found[True]), _mean(found[False]), _mean(every), len(found[False]) / len(every))


@dataclass(slots=True)
class Crowd:
    admitted: int
    refused: int
    writes: int
    """Of the tenant's item, until all were decided."""
    settling: int
    """And until all were settled."""
    p50_s: float
    p99_s: float


async def crowd(size: int = 10_000) -> Crowd:
    WALL_CLOCK.set(lambda: START_US + int(time.monotonic() * 1e6))
    COSTS.set(Costs())
    clock, items = WALL_CLOCK.get(), Items()
    client = TableClient(items, random.Random(1), clock=clock, true_clock=clock)
    store, takes, waited = DynamoLimitStore(client, "limits"), limits(0.95), list[float]()
    assert isinstance(takes[2], BudgetTake)
    takes[2].seed = 0
    takes[3] = SlotTake(SUBJECT, f"{SUBJECT}:slots", Concurrency(Scope.TENANT, size // 2, "tenant.slots"))
    takes[:2] = [
        RateTake(SUBJECT, t.key, replace(t.limit, burst=10**6), t.cost, t.cost)
        for t in takes[:2]
        if isinstance(t, RateTake)
    ]

    async def ask(number: int) -> bool:
        decision = await store.admit(Admission(f"{number}", takes, LIFE_US))
        waited.append(time.monotonic())
        return decision.admitted

    await store.warm()
    began = time.monotonic()
    admitted = sum(await asyncio.gather(*map(ask, range(size))))
    writes = COSTS.get().subject_writes
    settled = await asyncio.gather(*(store.settle(Settlement(f"{n}", takes, [None, 3, 3, 0])) for n in range(size)))
    assert sum(settled) == admitted
    p50, p99 = (sorted(waited)[size * share // 100] - began for share in (50, 99))
    return Crowd(admitted, size - admitted, writes, COSTS.get().subject_writes - writes, p50, p99)


def _mean(counts: list[int]) -> float:
    return sum(counts) / len(counts) if counts else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 requests each instead of 1,000")
    parser.add_argument("--crowd", action="store_true", help="ten thousand at once")
    options = parser.parse_args()
    if options.crowd:
        print(run(crowd(), seed=1))
        return
    count = 300 if options.quick else 1_000
    print("| containers | held for | " + " | ".join(f"load {load:.0%}" for load in LOADS) + " |")
    print("|---" * (2 + len(LOADS)) + "|")
    for containers, hold_s in itertools.product(CONTAINERS, HOLDS_S):
        told = [asyncio.run(measure(load, hold_s, containers, count=count)) for load in LOADS]
        cells = [f"{m.all:.2f}" + (f" ({m.known:.2f}; {m.first:.2f})" if m.share > 0.02 else "") for m in told]
        print(f"| {containers:,} | {hold_s:g} s | " + " | ".join(cells) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
