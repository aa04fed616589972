"""Very many at once on one key, in one container: all are decided, exactly, by few writes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from tests.dynamodb_local.takes import budget, requests, slot
from tests.faults.rig import say
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limit_items import counter
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Admission, Settlement, Take

CROWD = 10_000
PLACES = 4_000
MINUTE = 60_000_000


class Watched:
    """A client that knows how many writes of subjects were made, and how many calls were on their way at once."""

    def __init__(self, client: AwsClient) -> None:
        self._client = client
        self.clock_offset_us, self.clock_known = 0, True
        self.writes = self.most = self._now = 0

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        self.writes += operation == "UpdateItem" and payload["Key"]["pk"]["S"].startswith("s#")
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            return await self._client.call(operation, payload, retry=retry)
        finally:
            self._now -= 1


def test_ten_thousand_at_once(table: str, client: AwsClient, runner: asyncio.Runner) -> None:
    """A rate, a budget and slots of one tenant: no error, no turning away, and nothing stays behind once settled."""
    watched, told, waited = Watched(client), Counter[str](), list[float]()
    store = DynamoLimitStore(watched, table)
    takes: list[Take] = [requests(PLACES + 1), budget(7, 7 * CROWD), slot(CROWD)]

    async def one(number: int) -> None:
        began = time.monotonic()
        decision = await store.admit(Admission(f"r{number}", takes, 10 * MINUTE, "acme"))
        told["admitted" if decision.admitted else "refused"] += 1
        waited.append(time.monotonic() - began)

    async def settle(number: int) -> None:
        settled = await store.settle(Settlement(f"r{number}", takes, [None, 3, 0], "acme"))
        told["settled"] += settled

    async def counted() -> list[int]:
        key = {"pk": {"S": f"s#{takes[0].subject}"}}
        item = (await client.call("GetItem", {"TableName": table, "Key": key, "ConsistentRead": True}))["Item"]
        return [int(item[counter(take)]["N"]) for take in takes]

    async def crowd() -> tuple[list[int], list[int], int]:
        first = await store.admit(Admission("first", [takes[0], budget(0, seed=0)], MINUTE, "acme"))
        tat = first.values[0]
        await asyncio.gather(*(one(i) for i in range(CROWD)))
        taken, writes = await counted(), watched.writes
        await asyncio.gather(*(settle(i) for i in range(CROWD)))
        say(f"{CROWD:,} settled at once: {watched.writes - writes} writes of the item")
        taken[0] = (taken[0] - tat) // requests(PLACES + 1).inc_us
        return taken, (await counted())[1:], writes

    taken, left, writes = runner.run(crowd())
    p50, p99 = (sorted(waited)[len(waited) * share // 100] for share in (50, 99))
    say(f"{CROWD:,} at once on DynamoDB Local: {dict(told)}, {writes} writes, p50 {p50:.1f} s, p99 {p99:.1f} s")
    assert told == {"admitted": PLACES, "refused": CROWD - PLACES, "settled": PLACES}
    assert taken == [PLACES, 7 * PLACES, PLACES]
    assert left == [3 * PLACES, 0]
    assert writes < 50
    assert watched.most <= 100
