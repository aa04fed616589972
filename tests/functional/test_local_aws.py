"""The AWS of the local stack keeps DynamoDB's promise that writes of an item happen one after another."""

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from werkzeug.serving import make_server

from tollgate.local.aws import Serialised, application, forget_old_iterators

THREADS = 16
LIMIT = 100
SCOPE = "Credential=local/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = make_server("127.0.0.1", 0, application(), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def call(port: int, operation: str, payload: dict[str, Any], api: str = "DynamoDB_20120810") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {
        "authorization": f"AWS4-HMAC-SHA256 {SCOPE}",
        "x-amz-target": f"{api}.{operation}",
        "content-type": "application/x-amz-json-1.0",
    }
    connection.request("POST", "/", json.dumps(payload), headers)
    response = connection.getresponse()
    body = json.load(response)
    connection.close()
    return response.status, body


def test_concurrent_conditional_writes_grant_no_more_than_they_may(port: int) -> None:
    keys = {"KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}]}
    keys |= {"AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}]}
    assert call(port, "CreateTable", {"TableName": "limits", "BillingMode": "PAY_PER_REQUEST", **keys})[0] == 200
    item = {"pk": {"S": "bucket"}, "used": {"N": "0"}}
    assert call(port, "PutItem", {"TableName": "limits", "Item": item})[0] == 200

    def take(_: int) -> bool:
        status, _body = call(
            port,
            "UpdateItem",
            {
                "TableName": "limits",
                "Key": {"pk": {"S": "bucket"}},
                "UpdateExpression": "SET used = used + :one",
                "ConditionExpression": "used < :limit",
                "ExpressionAttributeValues": {":one": {"N": "1"}, ":limit": {"N": str(LIMIT)}},
            },
        )
        return status == 200

    with ThreadPoolExecutor(THREADS) as threads:
        granted = sum(threads.map(take, range(3 * LIMIT)))
    assert granted == LIMIT
    _, found = call(port, "GetItem", {"TableName": "limits", "Key": {"pk": {"S": "bucket"}}})
    assert found["Item"]["used"] == {"N": str(LIMIT)}


def test_a_cancelled_transaction_is_neither_seen_nor_in_the_way_of_a_streams_readers(port: int) -> None:
    """moto alone puts a copy of the table in its place, and readers of its stream never hear of it again."""
    keys = {"KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}]}
    keys |= {"AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}]}
    stream = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    table = {"TableName": "edited", "BillingMode": "PAY_PER_REQUEST", "StreamSpecification": stream, **keys}
    assert call(port, "CreateTable", table)[0] == 200
    api = "DynamoDBStreams_20120810"
    arn = call(port, "DescribeTable", {"TableName": "edited"})[1]["Table"]["LatestStreamArn"]
    (shard,) = call(port, "DescribeStream", {"StreamArn": arn}, api)[1]["StreamDescription"]["Shards"]
    start = {"StreamArn": arn, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
    iterator = call(port, "GetShardIterator", start, api)[1]["ShardIterator"]

    def put(key: str, **condition: str) -> dict[str, Any]:
        return {"Put": {"TableName": "edited", "Item": {"pk": {"S": key}}, **condition}}

    assert call(port, "TransactWriteItems", {"TransactItems": [put("one")]})[0] == 200
    never = put("one", ConditionExpression="attribute_not_exists(pk)")
    status, answer = call(port, "TransactWriteItems", {"TransactItems": [put("two"), never]})
    assert (status, answer["__type"].rpartition("#")[2]) == (400, "TransactionCanceledException")
    assert "Item" not in call(port, "GetItem", {"TableName": "edited", "Key": {"pk": {"S": "two"}}})[1]
    assert call(port, "PutItem", {"TableName": "edited", "Item": {"pk": {"S": "three"}}})[0] == 200
    records = call(port, "GetRecords", {"ShardIterator": iterator}, api)[1]["Records"]
    assert [record["dynamodb"]["Keys"]["pk"]["S"] for record in records] == ["one", "three"]


def test_only_dynamodb_waits_for_dynamodb() -> None:
    """A slow call of another service must not hold up the tables, nor the other way round."""
    inside = threading.Barrier(2, timeout=5)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        inside.wait()
        return [b""]

    serialised = Serialised(app)

    def one(target: str) -> None:
        serialised({"HTTP_X_AMZ_TARGET": target, "wsgi.input": _Empty()}, None)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(one, ["DynamoDB_20120810.PutItem", "AmazonSQS.SendMessage"]))


class _Empty:
    def read(self, _: int) -> bytes:
        return b""


def test_iterators_of_streams_are_forgotten() -> None:
    """Else a stack that runs for days fills its memory with them."""
    from moto.dynamodbstreams.models import DynamoDBStreamsBackend

    original = DynamoDBStreamsBackend.get_records
    try:
        forget_old_iterators(limit=3)
        backend = DynamoDBStreamsBackend("us-east-1", "1")

        class Iterator_:
            def get(self, limit: int) -> dict[str, Any]:
                return {}

        backend.shard_iterators = dict.fromkeys("abcdef", Iterator_())  # type: ignore[arg-type]  # a stand-in
        backend.get_records("f", 1)
        assert list(backend.shard_iterators) == ["d", "e", "f"]
    finally:
        DynamoDBStreamsBackend.get_records = original  # type: ignore[method-assign]  # put back


def test_shortcuts_change_no_answer(port: int) -> None:
    """What `moto_speed` replaces: partitions, their order and pages, values in expressions, attributes of any kind."""
    keys = {
        "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "n", "KeyType": "RANGE"}],
        "AttributeDefinitions": [
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "n", "AttributeType": "N"},
        ],
    }
    table = {"TableName": "shortcuts"}
    assert call(port, "CreateTable", {**table, "BillingMode": "PAY_PER_REQUEST", **keys})[0] == 200

    def update(partition: str, number: str, value: dict[str, Any]) -> tuple[int, Any]:
        changes = {
            "Key": {"pk": {"S": partition}, "n": {"N": number}},
            "UpdateExpression": "SET v = :v, #k.x = if_not_exists(#k.x, :v) ADD c :one",
            "ConditionExpression": "attribute_exists(#k) OR c < :one",
            "ExpressionAttributeNames": {"#k": "map"},
            "ExpressionAttributeValues": {":v": value, ":one": {"N": "1"}},
            "ReturnValues": "ALL_NEW",
        }
        return call(port, "UpdateItem", {**table, **changes})

    for partition in ("b", "a"):
        for number in ("10", "9", "-1", "2.5"):
            item = {"pk": {"S": partition}, "n": {"N": number}, "map": {"M": {"l": {"L": [{"NULL": True}]}}}}
            assert call(port, "PutItem", {**table, "Item": item})[0] == 200
    for value in ({"S": "1"}, {"N": "1"}, {"SS": ["y", "x"]}, {"BOOL": False}, {"L": [{"M": {"k": {"S": ""}}}]}):
        _, answer = update("a", "9", value)
        assert answer["Attributes"]["v"] in (value, {"SS": ["x", "y"]})
        assert answer["Attributes"]["map"] == {"M": {"l": {"L": [{"NULL": True}]}, "x": {"S": "1"}}}
    assert answer["Attributes"]["c"] == {"N": "5"}
    assert update("c", "9", {"S": "1"})[0] == 400

    found = []
    asked = {
        "KeyConditionExpression": "pk = :p AND n > :n",
        "ExpressionAttributeValues": {":p": {"S": "a"}, ":n": {"N": "0"}},
        "Limit": 2,
    }
    for forward in (True, False):
        page: dict[str, Any] = {"ScanIndexForward": forward}
        while page:
            _, answer = call(port, "Query", {**table, **asked, "ScanIndexForward": forward, **page})
            found.append([item["n"]["N"] for item in answer["Items"]])
            page = {"ExclusiveStartKey": answer["LastEvaluatedKey"]} if "LastEvaluatedKey" in answer else {}
    assert found == [["2.5", "9"], ["10"], ["10", "9"], ["2.5"]]
    nothing = {"ExpressionAttributeValues": {":p": {"S": "c"}, ":n": {"N": "0"}}}
    assert call(port, "Query", {**table, **asked, **nothing})[1]["Items"] == []
    _, answer = call(port, "Scan", table)
    assert [item["n"]["N"] for item in answer["Items"]] == ["-1", "2.5", "9", "10"] * 2
