"""Records of a table's stream arrive in order, once each unless delivery fails, and without the filtered ones; one that
fails for good is passed over."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from tollgate.local import streams
from tollgate.local.streams import TableStream, not_snapshot

ARN = "arn:aws:dynamodb:us-east-1:1:table/t/stream/x"


class FakeStream:
    """DynamoDB Streams with one shard, which may fail."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.closed = False
        self.failures = 0

    def add(self, key: str) -> None:
        number = f"{len(self.records) + 1:020d}"
        self.records.append({"eventName": "INSERT", "dynamodb": {"SequenceNumber": number, "Keys": {"id": {"S": key}}}})

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")
        match operation:
            case "DescribeTable":
                return {"Table": {"LatestStreamArn": ARN}}
            case "DescribeStream":
                return {"StreamDescription": {"Shards": [{"ShardId": "s1"}]}}
            case "GetShardIterator":
                start = 0 if payload["ShardIteratorType"] == "TRIM_HORIZON" else int(payload["SequenceNumber"])
                return {"ShardIterator": str(start)}
            case "GetRecords":
                start = int(payload["ShardIterator"])
                found = self.records[start : start + 2]
                following = None if self.closed and not found else str(start + len(found))
                return {"Records": found} | ({"NextShardIterator": following} if following else {})
        raise AssertionError(operation)


class Publisher:
    def __init__(self, failures: int = 0, poison: str = "") -> None:
        self.failures = failures
        self.poison = poison
        self.poisoned = 0
        self.keys: list[str] = []
        self.arns: set[str] = set()

    async def __call__(self, event: Mapping[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("store is away")
        keys = [record["dynamodb"]["Keys"]["id"]["S"] for record in event["Records"]]
        if self.poison in keys:
            self.poisoned += 1
            raise ValueError("this edit cannot be published")
        self.keys += keys
        self.arns |= {record["eventSourceARN"] for record in event["Records"]}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_S", 0.001)
    monkeypatch.setattr(streams, "MAX_RETRY_S", 0.001)


def follow(stream: FakeStream, publisher: Publisher, **options: Any) -> None:
    async def run() -> None:
        table = TableStream(stream, stream, "t", publisher, poll_s=0.001, **options)
        task = asyncio.create_task(table.run())
        await asyncio.sleep(0.05)
        stream.add("late")
        async with asyncio.timeout(60):
            while "late" not in publisher.keys:  # noqa: ASYNC110 - polling is what is tested
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for key in "abcde":
        stream.add(key)
    asyncio.run(run())


def test_records_arrive_in_order_from_the_oldest() -> None:
    publisher = Publisher()
    follow(FakeStream(), publisher)
    assert publisher.keys == ["a", "b", "c", "d", "e", "late"]
    assert publisher.arns == {ARN}


def test_a_failing_function_is_asked_again_and_nothing_overtakes() -> None:
    publisher = Publisher(failures=3)
    follow(FakeStream(), publisher)
    assert publisher.keys == ["a", "b", "c", "d", "e", "late"]


def test_an_edit_that_fails_for_good_holds_up_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    publisher = Publisher(poison="d")
    follow(FakeStream(), publisher)
    assert publisher.keys == ["a", "b", "c", "e", "late"]
    assert publisher.poisoned == 1 + 1 + streams.RETRIES, "with its neighbour, alone, and again"
    said = capsys.readouterr().err
    assert said.count("is asked again") == 1
    assert "an edit is not announced: t {'id': {'S': 'd'}}: ValueError(" in said


def test_a_stream_that_cannot_be_read_is_asked_again() -> None:
    stream, publisher = FakeStream(), Publisher()
    stream.failures = 3
    follow(stream, publisher)
    assert publisher.keys == ["a", "b", "c", "d", "e", "late"]


def test_the_publishers_own_write_is_no_edit() -> None:
    stream, publisher = FakeStream(), Publisher()
    stream.add("snapshot")
    follow(stream, publisher, wanted=not_snapshot)
    assert publisher.keys == ["a", "b", "c", "d", "e", "late"]
