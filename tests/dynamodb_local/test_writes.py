"""What an admission costs: writes, and write units of 1 KB, in virtual time and as DynamoDB counts them."""

from __future__ import annotations

import asyncio
import heapq
import random
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.dynamodb_local.takes import budget, requests, slot, tokens
from tests.records import NOON
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limit_items import counter
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Admission, Settlement, Take, Unit

SECOND = 1_000_000
UNITS_PER_S = 1000
"""What DynamoDB lets one item have."""


class Meter:
    """A client that counts calls, and the write units of each item."""

    def __init__(self, client: AwsClient) -> None:
        self._client = client
        self.clock_offset_us, self.clock_known = 0, True
        self.writes: Counter[str] = Counter()
        self.admitting: Counter[str] = Counter()
        """Those that are no settlement."""
        self.units: Counter[str] = Counter()
        self._size = 1.0
        """Units of the last write. One whose condition fails costs as much, but DynamoDB Local does not tell."""

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        if operation != "UpdateItem":
            return await self._client.call(operation, payload, retry=retry)
        kind = payload["Key"]["pk"]["S"][:2]
        self.writes[kind] += 1
        self.admitting[kind] += "ttl" in payload["ExpressionAttributeNames"].values()
        try:
            answer = await self._client.call(operation, payload | {"ReturnConsumedCapacity": "TOTAL"}, retry=retry)
            self._size = answer["ConsumedCapacity"]["CapacityUnits"]
        finally:
            self.units[kind] += self._size
        return answer


class Traffic:
    """Requests that arrive at random moments, at any of some containers, and are settled `hold_s` later."""

    def __init__(self, client: AwsClient, table: str, containers: int, seed: int = 1) -> None:
        self.meter = Meter(client)
        self.now = NOON
        self.random = random.Random(seed)
        self._waiting: list[tuple[int, str, DynamoLimitStore]] = []
        self.stores = [DynamoLimitStore(self.meter, table, clock=lambda: self.now) for _ in range(containers)]

    async def run(self, takes: list[Take], count: int, per_s: float, hold_s: float = 5) -> None:
        used = [None if take.limit.unit is Unit.REQUESTS else 3 for take in takes]
        arrival = float(self.now)
        for _ in range(count):
            arrival += self.random.expovariate(per_s) * SECOND
            while self._waiting and self._waiting[0][0] <= arrival:
                self.now, id, store = heapq.heappop(self._waiting)
                assert await store.settle(Settlement(id, takes, used, "acme"))
            self.now = int(arrival)
            id, store = uuid.UUID(int=self.random.getrandbits(128)).hex, self.random.choice(self.stores)
            assert (await store.admit(Admission(id, takes, 900 * SECOND, "acme"))).admitted
            heapq.heappush(self._waiting, (self.now + int(hold_s * SECOND), id, store))


def a_rate(per_s: int) -> list[Take]:
    """A rate at two thirds of its limit: busy and idle by turns. (Idle or full throughout, guesses are right.)"""
    return [requests(90 * per_s, 60 * SECOND)]


def everything(per_s: int) -> list[Take]:
    """A tenant's limits, all of one subject: two rates at two thirds of their limits, a budget, and slots."""
    return [*a_rate(per_s), tokens(7, 630 * per_s, 60 * SECOND), budget(7, 10**9), slot(10**6)]


@pytest.mark.parametrize(("containers", "most"), [(1, 1.1), (4, 1.8), (32, 1.8), (1000, 1.8)])
@pytest.mark.parametrize("limits", [a_rate, everything])
def test_writes_per_subject_and_admission(
    limits: Callable[[int], list[Take]],
    containers: int,
    most: float,
    table: str,
    client: AwsClient,
    runner: asyncio.Runner,
) -> None:
    """At 10 requests a second, each settled (by one write) 5 s later. Of 1,000 containers each sees few of them."""
    traffic = Traffic(client, table, containers)
    runner.run(traffic.stores[0].admit(Admission("first", [budget(0, seed=0)], SECOND, "acme")))
    runner.run(traffic.run(limits(10), 100, per_s=10))
    traffic.meter.admitting.clear()
    runner.run(traffic.run(limits(10), 400, per_s=10))
    per_admission = traffic.meter.admitting["s#"] / 400
    print(f"{limits.__name__}, {containers} containers: {per_admission:.2f} writes per subject and admission")
    assert per_admission <= most


@pytest.mark.parametrize("per_s", [10, 80, 320])
def test_units_of_a_busy_tenant(per_s: int, table: str, client: AwsClient, runner: asyncio.Runner) -> None:
    """Each request is held for 5 s and settled; from as many containers as are busy at once."""
    traffic = Traffic(client, table, containers=5 * per_s)
    runner.run(traffic.stores[0].admit(Admission("first", [budget(0, seed=0)], SECOND, "acme")))
    runner.run(traffic.run(everything(per_s), 12 * per_s, per_s))
    traffic.meter.writes.clear()
    traffic.meter.units.clear()
    count = 3 * per_s
    runner.run(traffic.run(everything(per_s), count, per_s))
    units, writes = traffic.meter.units["s#"] / count, traffic.meter.writes["s#"] / count
    print(f"{per_s}/s: {writes:.2f} writes and {units:.2f} units per request, settling included")
    assert units <= UNITS_PER_S / per_s


def test_an_item_stays_small_whatever_is_in_flight(table: str, client: AwsClient, runner: asyncio.Runner) -> None:
    """1,000 requests of one tenant, each in a container that has never seen the item, and nobody settles any. All are
    released when they expire."""
    traffic = Traffic(client, table, 1)
    takes = everything(1000)
    runner.run(traffic.stores[0].admit(Admission("first", [budget(0, seed=0)], SECOND, "acme")))

    async def flood() -> None:
        for i in range(1000):
            traffic.now += SECOND // 100
            store = DynamoLimitStore(traffic.meter, table, clock=lambda: traffic.now)
            assert (await store.admit(Admission(f"{i}", takes, 900 * SECOND, "acme"))).admitted

    runner.run(flood())
    key = {"pk": {"S": f"s#{takes[0].subject}"}}
    item = runner.run(client.call("GetItem", {"TableName": table, "Key": key, "ConsistentRead": True}))["Item"]
    size = sum(len(name) + len(next(iter(value.values()))) for name, value in item.items())
    print(f"{size} bytes at most")
    assert size < 4096
    assert [int(item[counter(take)]["N"]) for take in takes[2:]] == [7000, 1000]
    traffic.now += 1200 * SECOND
    decision = runner.run(traffic.stores[0].admit(Admission("last", takes, 900 * SECOND, "acme")))
    assert decision.values[2:] == [7, 1]
