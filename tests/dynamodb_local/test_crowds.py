"""Very many at once on one key, in one container: each is decided, in its turn, or told to come again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from tests.dynamodb_local.takes import requests
from tests.faults.rig import say
from tollgate.adapters import dynamodb_limit_lanes
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limit_items import counter
from tollgate.adapters.dynamodb_limit_lanes import ABREAST
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Admission
from tollgate.ports import Overloaded

CROWD = 2_000
MINUTE = 60_000_000


class Watched:
    """A client that knows how many writes were on their way at once."""

    def __init__(self, client: AwsClient) -> None:
        self._client = client
        self.clock_offset_us, self.clock_known = 0, True
        self.most = self._now = 0

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        if operation != "UpdateItem":
            return await self._client.call(operation, payload, retry=retry)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            return await self._client.call(operation, payload, retry=retry)
        finally:
            self._now -= 1


@pytest.mark.parametrize("patience_s", [600, dynamodb_limit_lanes.PATIENCE_S])
def test_two_thousand_at_once(
    patience_s: float, table: str, client: AwsClient, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as much patience as it takes there is no error at all; otherwise who does not get a turn in time is told so,
    and not charged."""
    monkeypatch.setattr(dynamodb_limit_lanes, "PATIENCE_S", patience_s)
    watched, told, waited = Watched(client), Counter[str](), list[float]()
    store, take = DynamoLimitStore(watched, table), requests(CROWD * 4 // 10)

    async def one(number: int) -> None:
        began = time.monotonic()
        try:
            decision = await store.admit(Admission(f"r{number}", [take], MINUTE, "acme"))
            told["admitted" if decision.admitted else "refused"] += 1
        except Overloaded:
            told["turned away"] += 1
        waited.append(time.monotonic() - began)

    async def crowd() -> int:
        first = await store.admit(Admission("first", [take], MINUTE, "acme"))
        await asyncio.gather(*(one(i) for i in range(CROWD)))
        item = await client.call(
            "GetItem", {"TableName": table, "Key": {"pk": {"S": f"s#{take.subject}"}}, "ConsistentRead": True}
        )
        return (int(item["Item"][counter(take)]["N"]) - first.states[0].value) // take.inc_us

    charged = runner.run(crowd())
    p99 = sorted(waited)[len(waited) * 99 // 100]
    say(f"{CROWD:,} at once on DynamoDB Local: {dict(told)}, p99 {p99:.1f} s")
    assert watched.most <= ABREAST
    assert charged == told["admitted"] <= CROWD * 4 // 10
    assert told.total() == CROWD
    if patience_s > 60:
        assert told == {"admitted": CROWD * 4 // 10 - 1, "refused": CROWD * 6 // 10 + 1}
