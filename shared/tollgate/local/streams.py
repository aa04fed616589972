"""From the tables' streams to the publisher function, as Lambda's event source mapping does it.

Records of a shard are delivered in order. A batch whose invocation fails is split in two, again and again, and each
part tried before anything after it; a single record that fails for good is given up, so that it holds up no others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from tollgate.local.children import say

POLL_S = 0.4
"""An edit is felt within this time and the publisher's own; asking more often only warms the machine."""
LOOK_FOR_SHARDS_S = 5.0
MAX_RECORDS = 100
RETRY_S = 0.3
MAX_RETRY_S = 5.0
RETRIES = 20
"""The template's `MaximumRetryAttempts`, of a single record."""

Invoke = Callable[[Mapping[str, Any]], Awaitable[Any]]


def not_snapshot(record: Mapping[str, Any]) -> bool:
    """The template's filter of the policy table's stream: the publisher's own write is no edit."""
    return bool(record["dynamodb"]["Keys"].get("id") != {"S": "snapshot"})


class Api(Protocol):
    """DynamoDB or DynamoDB Streams: `AwsClient`."""

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]: ...


class TableStream:
    """Delivers the records of one table's stream to a function, from the oldest that is left.

    `wanted` stands for the mapping's filter; what it refuses is not delivered.
    """

    def __init__(
        self,
        dynamodb: Api,
        streams: Api,
        table: str,
        invoke: Invoke,
        *,
        wanted: Callable[[Mapping[str, Any]], bool] = lambda _: True,
        poll_s: float = POLL_S,
    ) -> None:
        self._dynamodb = dynamodb
        self._streams = streams
        self._table = table
        self._invoke = invoke
        self._wanted = wanted
        self._poll_s = poll_s
        self._arn = ""
        self._positions: dict[str, str] = {}
        """Shard id -> the sequence number delivered last; ``""``: none yet."""
        self._iterators: dict[str, str] = {}
        self._pause_s = RETRY_S

    async def run(self) -> None:
        """Until cancelled. A stream that cannot be read is asked again, and that is said once."""
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the stream, the stack goes on
                if self._pause_s == RETRY_S:
                    say(f"cannot read the stream of {self._table}, trying again: {error}")
                self._iterators.clear()
                await asyncio.sleep(self._pause_s)
                self._pause_s = min(self._pause_s * 2, MAX_RETRY_S)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        look_at = 0.0
        while True:
            if loop.time() >= look_at:
                await self._find_shards()
                self._pause_s = RETRY_S
                look_at = loop.time() + LOOK_FOR_SHARDS_S
            found = False
            for shard in list(self._iterators):
                found |= await self._poll(shard)
            if not found:
                await asyncio.sleep(self._poll_s)

    async def _find_shards(self) -> None:
        if not self._arn:
            table = (await self._dynamodb.call("DescribeTable", {"TableName": self._table}))["Table"]
            self._arn = table["LatestStreamArn"]
        described = (await self._streams.call("DescribeStream", {"StreamArn": self._arn}))["StreamDescription"]
        for shard in described["Shards"]:
            shard_id = shard["ShardId"]
            if shard_id in self._iterators or self._positions.get(shard_id) == "closed":
                continue
            start = {"StreamArn": self._arn, "ShardId": shard_id, "ShardIteratorType": "TRIM_HORIZON"}
            if last := self._positions.get(shard_id):
                start |= {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": last}
            self._iterators[shard_id] = (await self._streams.call("GetShardIterator", start))["ShardIterator"]

    async def _poll(self, shard: str) -> bool:
        """Deliver what is new in one shard; whether there was anything."""
        asked = {"ShardIterator": self._iterators[shard], "Limit": MAX_RECORDS}
        answer = await self._streams.call("GetRecords", asked)
        records = answer.get("Records", [])
        if records:
            wanted = [{**record, "eventSourceARN": self._arn} for record in records if self._wanted(record)]
            if wanted:
                await self._deliver(wanted)
            self._positions[shard] = records[-1]["dynamodb"]["SequenceNumber"]
        if following := answer.get("NextShardIterator"):
            self._iterators[shard] = following
        else:
            del self._iterators[shard]
            self._positions[shard] = "closed"
        return bool(records)

    async def _deliver(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Returns when each has been taken or given up. On AWS the dead-letter queue is told of the latter."""
        pause_s = RETRY_S
        for attempt in range(1 + RETRIES):
            try:
                await self._invoke({"Records": records})
            except Exception as error:  # noqa: BLE001 - whatever a function raises is its failure, not ours
                failure = error
            else:
                return
            if half := len(records) // 2:
                await self._deliver(records[:half])
                await self._deliver(records[half:])
                return
            if attempt == 0:
                say(f"the publisher failed and is asked again, up to {RETRIES} times: {failure!r}")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_RETRY_S)
        edited = f"{self._table} {records[0]['dynamodb']['Keys']}"
        say(f"the publisher failed {1 + RETRIES} times, and an edit is not announced: {edited}: {failure!r}")
