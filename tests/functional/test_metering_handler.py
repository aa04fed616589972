"""The metering function in Lambda's real runtime client, with a ledger, a limit store and a queue in moto."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.aws_fixture import ENVIRON, PATIENT, aws_endpoint, dynamodb, make_table
from tests.functional.runtime_api import Answer, LambdaFunction
from tests.records import a_close, an_open
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.http import HttpClient
from tollgate.domain import keys
from tollgate.domain.limits import Admission, Budget, BudgetTake, Scope, Status, Unit, Window
from tollgate.domain.records import UsageClose, UsageOpen
from tollgate.services.subscription import MAX_BYTES, unpack
from tollgate.wiring import clock_us

HANDLER = "functions.metering.handler.handler"
QUEUE = "dead-letters"


def subscription(*messages: Any, **changed: Any) -> dict[str, Any]:
    batch = {
        "messageType": "DATA_MESSAGE",
        "owner": "123456789012",
        "logGroup": "/tollgate/proxy",
        "logStream": "stream",
        "subscriptionFilters": ["usage"],
        "logEvents": [{"id": f"{i}", "timestamp": 0, "message": message} for i, message in enumerate(messages)],
    } | changed
    return packed(json.dumps(batch).encode())


def packed(plain: bytes) -> dict[str, Any]:
    return {"awslogs": {"data": base64.b64encode(gzip.compress(plain)).decode()}}


class TestUnpacking:
    def test_lines(self) -> None:
        assert unpack(subscription("a", "b")) == (["a", "b"], [])

    def test_what_holds_no_lines(self) -> None:
        assert unpack(subscription(messageType="CONTROL_MESSAGE")) == ([], [])
        assert unpack({"source": "aws.events", "detail-type": "Scheduled Event"}) == ([], [])

    @pytest.mark.parametrize(
        "event",
        [
            {},
            {"awslogs": None},
            {"awslogs": {"data": 7}},
            {"awslogs": {"data": "not base64!"}},
            {"awslogs": {"data": base64.b64encode(b"not gzip").decode()}},
            {"awslogs": {"data": base64.b64encode(gzip.compress(b"{}")[:-9]).decode()}},
            packed(b"\xff"),
            packed(b"[" * 200_000),
            packed(b"[]"),
            packed(b'{"logEvents": {}}'),
            subscription(None),
            subscription(logEvents=["text"]),
        ],
    )
    def test_what_cannot_be_unpacked_is_one_dead_letter(self, event: dict[str, Any]) -> None:
        lines, letters = unpack(event)
        assert (lines, len(letters)) == ([], 1)
        assert letters[0].reason

    def test_a_bomb_is_not_unpacked(self) -> None:
        lines, letters = unpack(packed(b" " * (MAX_BYTES + 1)))
        assert (lines, len(letters)) == ([], 1)
        assert f"more than {MAX_BYTES} bytes" in letters[0].reason


class World:
    """The function, and what it writes to."""

    def __init__(self, url: str, runner: asyncio.Runner, client: AwsClient) -> None:
        self.run = runner.run
        self._client = client
        self._environ = ENVIRON | {"AWS_ENDPOINT_URL": url}
        limits, ledger = self.run(make_table(client)), self.run(make_table(client, sort_key=True))
        self.store, self.ledger = DynamoLimitStore(client, limits), DynamoLedger(client, ledger)
        self.queue_url = self.run(self._sqs("CreateQueue", {"QueueName": QUEUE}))["QueueUrl"]
        self.environ = self._environ | {
            "TOLLGATE_STORE_URL": f"dynamodb://{limits}",
            "TOLLGATE_LEDGER_TABLE": ledger,
            "TOLLGATE_DEAD_LETTER_QUEUE_URL": self.queue_url,
        }

    def letters(self) -> list[dict[str, str]]:
        wanted = {"QueueUrl": self.queue_url, "MaxNumberOfMessages": 10}
        return [json.loads(m["Body"]) for m in self.run(self._sqs("ReceiveMessage", wanted)).get("Messages", [])]

    async def _sqs(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        http = HttpClient()
        try:
            return await AwsClient.for_service("sqs", http, self._environ, PATIENT).call(operation, payload)
        finally:
            await http.aclose()

    @contextmanager
    def function(self, **changed: str) -> Iterator[LambdaFunction]:
        with LambdaFunction(HANDLER, self.environ | changed, timeout_s=60) as function:
            yield function


def delivered(function: LambdaFunction, event: Any) -> Answer:
    """What comes of an event that Lambda got from CloudWatch Logs: one that fails is tried twice more."""
    answer = function.invoke(event)
    for _ in range(2):
        if not answer.failed:
            break
        answer = function.invoke(event)
    return answer


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with aws_endpoint() as url, asyncio.Runner() as runner, dynamodb(url, runner) as client:
        yield World(url, runner, client)


@pytest.fixture(scope="module")
def function(world: World) -> Iterator[LambdaFunction]:
    with world.function() as function:
        yield function


def test_a_batch_is_entered_once_and_felt_by_the_limit_store(world: World, function: LambdaFunction) -> None:
    now = clock_us()
    tenant = "umbrella"
    subject = keys.tenant_subject(tenant)
    label, start, end = Window.MONTH.bounds(now)
    limit = Budget(Scope.TENANT, Unit.TOKENS, 1000, Window.MONTH, "tenant.tokens.month")
    take = BudgetTake(subject, f"{subject}:b:tokens.month:{label}", limit, 10, 10, label, start, end, 0)
    assert world.run(world.store.admit(Admission("first", [take], 60_000_000))).admitted
    settle = (("b", take.key, 995),)
    records: list[UsageOpen | UsageClose] = [
        an_open("a", tenant=tenant, ts_us=now, expires_us=now + 60_000_000),
        a_close("a", tenant=tenant, ts_us=now, input_tokens=995, settle=settle),
        an_open("b", tenant=tenant, ts_us=now, expires_us=now + 60_000_000),
    ]
    event = subscription(*[json.dumps(record.as_dict()) for record in records])
    answer = delivered(function, event).payload
    assert {name: answer[name] for name in ("entered", "repeated", "opened", "floors", "poison")} == {
        "entered": 1,
        "repeated": 0,
        "opened": 1,
        "floors": 1,
        "poison": 0,
    }
    again = delivered(function, event).payload
    assert (again["entered"], again["repeated"]) == (0, 1)
    assert world.run(world.store.admit(Admission("second", [take], 60_000_000))).status is Status.REFUSED
    assert world.run(world.ledger.spent([take])) == [995]


def test_poison_goes_to_the_queue_with_its_reason(world: World, function: LambdaFunction) -> None:
    good = a_close("good", tenant="globex", ts_us=clock_us())
    bad = {**good.as_dict(), "id": "bad", "input_tokens": -5}
    answer = delivered(function, subscription(json.dumps(bad), json.dumps(good.as_dict()), "{garbage"))
    assert not answer.failed
    assert (answer.payload["entered"], answer.payload["poison"]) == (1, 2)
    letters = {letter["record"]: letter["reason"] for letter in world.letters()}
    assert letters["{garbage"].startswith("not a line of JSON")
    assert letters[json.dumps(bad)].startswith("input_tokens: expected a whole number")
    assert delivered(function, {"awslogs": {"data": "%%%"}}).payload["poison"] == 1
    assert [letter["record"] for letter in world.letters()] == ["%%%"]
    # what is longer than a message may be is cut: it must not hold up the queue
    assert delivered(function, subscription("\U0001f600" * 100_000)).payload["poison"] == 1
    (letter,) = world.letters()
    assert letter["cut"]
    assert len(letter["record"]) == 20_000


def test_a_line_of_log_says_what_was_done_in_the_shape_of_a_metric(world: World) -> None:
    with world.function() as function:
        delivered(function, subscription(json.dumps(a_close("metric", ts_us=clock_us()).as_dict())))
        (line,) = function.records("usage entered")
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    names = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert names["UsageEntered"] == "Count"
    assert names["MeteringLag"] == "Milliseconds"
    assert (line["UsageEntered"], directive["Namespace"]) == (1, "Tollgate")


def test_an_outage_fails_the_invocation_so_that_lambda_tries_again(world: World) -> None:
    record = a_close("outage", tenant="initech", ts_us=clock_us())
    event = subscription(json.dumps(record.as_dict()))
    with world.function(AWS_ENDPOINT_URL_DYNAMODB="http://127.0.0.1:9") as function:
        answer = function.invoke(event)
        assert answer.failed
        assert answer.payload["errorType"] == "StoreUnavailable"
    with world.function() as function:
        assert delivered(function, event).payload["entered"] == 1
    assert [row.sums["requests"] for row in world.run(world.ledger.report(tenant="initech"))] == [1]


def test_a_missing_setting_is_named(world: World) -> None:
    with world.function(TOLLGATE_LEDGER_TABLE="") as function:
        answer = function.invoke(subscription())
        assert answer.failed
        assert "TOLLGATE_LEDGER_TABLE" in answer.payload["errorMessage"]
