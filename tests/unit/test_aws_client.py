"""The signed AWS client: against moto's server where a service's semantics count, against exact bytes elsewhere."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.aws_fixture import ENVIRON, aws_endpoint, make_table
from tests.raw_http import Handler, Peer, client, serve
from tollgate.adapters import aws
from tollgate.adapters.aws import (
    AwsClient,
    AwsError,
    CredentialSource,
    NoCredentials,
    from_dynamo,
    to_dynamo,
)
from tollgate.adapters.aws_environment import endpoint
from tollgate.adapters.http import ClosedEarly, TimedOut, Timeouts
from tollgate.adapters.server_clock import ServerClock
from tollgate.adapters.sigv4 import Credentials


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with aws_endpoint() as found:
        yield found


def with_service(service: str, url: str, use: Callable[[AwsClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with client() as http:
            await use(AwsClient.for_service(service, http, ENVIRON | {"AWS_ENDPOINT_URL": url}))

    asyncio.run(run())


# -- DynamoDB ----------------------------------------------------------------------------------------------------------


def test_an_item_of_every_type_comes_back(url: str) -> None:
    item = {
        "pk": "a", "text": "ü", "whole": -7, "money": Decimal("1.25"), "yes": True, "nothing": None, "raw": b"\0\xff",
        "list": [1, "two", {"three": 3}], "map": {"a": {"b": []}}, "labels": {"x", "y"},
    }  # fmt: skip

    async def use(dynamodb: AwsClient) -> None:
        table = await make_table(dynamodb)
        await dynamodb.call("PutItem", {"TableName": table, "Item": to_dynamo(item)["M"]})
        found = await dynamodb.call("GetItem", {"TableName": table, "Key": {"pk": {"S": "a"}}, "ConsistentRead": True})
        assert from_dynamo({"M": found["Item"]}) == item
        missing = await dynamodb.call("GetItem", {"TableName": table, "Key": {"pk": {"S": "b"}}})
        assert "Item" not in missing

    with_service("dynamodb", url, use)


def test_a_failed_condition_shows_the_item(url: str) -> None:
    async def use(dynamodb: AwsClient) -> None:
        table = await make_table(dynamodb)
        await dynamodb.call("PutItem", {"TableName": table, "Item": to_dynamo({"pk": "a", "tat": 50})["M"]})
        with pytest.raises(AwsError) as caught:
            await dynamodb.call(
                "UpdateItem",
                {
                    "TableName": table,
                    "Key": {"pk": {"S": "a"}},
                    "UpdateExpression": "SET tat = :new",
                    "ConditionExpression": "tat < :now",
                    "ExpressionAttributeValues": {":new": {"N": "60"}, ":now": {"N": "40"}},
                    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                },
                retry=True,
            )
        error = caught.value
        assert (error.code, error.status, error.retryable) == ("ConditionalCheckFailedException", 400, False)
        assert from_dynamo({"M": error.body["Item"]}) == {"pk": "a", "tat": 50}

    with_service("dynamodb", url, use)


def test_a_cancelled_transaction_says_why(url: str) -> None:
    async def use(dynamodb: AwsClient) -> None:
        table = await make_table(dynamodb)
        once = {"TableName": table, "Item": {"pk": {"S": "id"}}, "ConditionExpression": "attribute_not_exists(pk)"}
        other = {"TableName": table, "Item": {"pk": {"S": "other"}}}
        await dynamodb.call("TransactWriteItems", {"TransactItems": [{"Put": once}]})
        with pytest.raises(AwsError) as caught:
            await dynamodb.call("TransactWriteItems", {"TransactItems": [{"Put": other}, {"Put": once}]})
        assert caught.value.code == "TransactionCanceledException"
        assert [r["Code"] for r in caught.value.body["CancellationReasons"]] == ["None", "ConditionalCheckFailed"]

    with_service("dynamodb", url, use)


def test_a_missing_table_is_named(url: str) -> None:
    async def use(dynamodb: AwsClient) -> None:
        with pytest.raises(AwsError) as caught:
            await dynamodb.call("GetItem", {"TableName": "missing", "Key": {"pk": {"S": "a"}}})
        assert caught.value.code == "ResourceNotFoundException"
        assert caught.value.message

    with_service("dynamodb", url, use)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.text()
    | st.integers(-(10**37), 10**37)
    | st.binary()
    | st.sets(st.text(), min_size=1)
    | st.decimals(allow_nan=False, allow_infinity=False, places=4).filter(lambda d: d != d.to_integral()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_values_survive_the_way_to_dynamodb_and_back(value: Any) -> None:
    sent = orjson.loads(orjson.dumps(to_dynamo(value)))
    back = from_dynamo(sent)
    assert back == value
    assert type(back) is type(value)


def test_other_peoples_sets_can_be_read() -> None:
    assert from_dynamo({"NS": ["1", "2.5"]}) == {1, Decimal("2.5")}
    assert from_dynamo({"BS": ["AA=="]}) == {b"\0"}


@pytest.mark.parametrize("value", [set(), {1}, object(), math.nan, math.inf, [object()]])
def test_what_dynamodb_cannot_hold_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        to_dynamo(value)


# -- Failures ----------------------------------------------------------------------------------------------------------


def answer(status: int, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d X" % status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


THROTTLED = answer(400, b'{"__type":"com.amazonaws.dynamodb.v20120810#ThrottlingException","message":"slow down"}')
BROKEN = answer(500, b'{"__type":"InternalServerError"}')
REFUSED = answer(400, b'{"__type":"com.amazon.coral.validate#ValidationException","Message":"no"}')
FINE = answer(200, b'{"fine":true}')


def against(responses: list[bytes | None], use: Callable[[AwsClient], Awaitable[None]]) -> int:
    """Answers each request with the next of `responses` (None: closes instead); how many requests came."""
    requests = 0

    async def handle(peer: Peer) -> None:
        nonlocal requests
        while True:
            await peer.request()
            requests += 1
            response = responses[requests - 1]
            if response is None:
                return
            await peer.send(response)

    run_against(handle, use)
    return requests


def run_against(
    handle: Handler, use: Callable[[AwsClient], Awaitable[None]], timeouts: Timeouts = aws.TIMEOUTS
) -> None:
    async def run() -> None:
        async with serve(handle) as (_, url), client() as http:
            await use(AwsClient.for_service("dynamodb", http, ENVIRON | {"AWS_ENDPOINT_URL": url}, timeouts))

    asyncio.run(run())


def test_throttling_and_failures_of_the_service_are_tried_again_where_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "BACKOFF", 0.001)

    async def patient(dynamodb: AwsClient) -> None:
        assert await dynamodb.call("GetItem", {}, retry=True) == {"fine": True}

    assert against([THROTTLED, BROKEN, None, FINE], patient) == 4

    async def hasty(dynamodb: AwsClient) -> None:
        with pytest.raises(AwsError) as caught:
            await dynamodb.call("PutItem", {})
        assert caught.value.retryable
        with pytest.raises(ClosedEarly):
            await dynamodb.call("PutItem", {})

    assert against([THROTTLED, None], hasty) == 2

    async def in_vain(dynamodb: AwsClient) -> None:
        with pytest.raises(AwsError) as caught:
            await dynamodb.call("GetItem", {}, retry=True)
        assert caught.value.code == "InternalServerError"

    assert against([BROKEN] * 9, in_vain) == aws.TRIES


def test_a_refusal_is_final() -> None:
    async def use(dynamodb: AwsClient) -> None:
        with pytest.raises(AwsError) as caught:
            await dynamodb.call("GetItem", {}, retry=True)
        assert (caught.value.code, caught.value.message) == ("ValidationException", "no")
        assert str(caught.value) == "ValidationException: no"

    assert against([REFUSED], use) == 1


def test_a_timeout_is_not_waited_for_again() -> None:
    requests = 0

    async def silent(peer: Peer) -> None:
        nonlocal requests
        await peer.request()
        requests += 1
        await peer.reader.read()

    async def use(dynamodb: AwsClient) -> None:
        with pytest.raises(TimedOut):
            await dynamodb.call("GetItem", {}, retry=True)

    run_against(silent, use, Timeouts(first_byte=0.05))
    assert requests == 1


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (answer(403, b"<html>a proxy says no</html>"), 403),
        (answer(503, b"busy"), 503),
        (answer(200, b"[1]"), 502),
        (answer(200, b"not json"), 502),
    ],
)
def test_an_answer_without_json_is_an_error_with_its_status(response: bytes, status: int) -> None:
    async def use(dynamodb: AwsClient) -> None:
        with pytest.raises(AwsError) as caught:
            await dynamodb.call("GetItem", {})
        assert (caught.value.code, caught.value.status) == ("BadAnswer", status)

    assert against([response], use) == 1


# -- The service's clock -----------------------------------------------------------------------------------------------


def test_the_offset_follows_the_date_header() -> None:
    ahead = answer(200, b"{}", b"date: " + formatdate(time.time() + 3600, usegmt=True).encode())

    async def use(dynamodb: AwsClient) -> None:
        assert dynamodb.clock_offset_us == 0
        await dynamodb.call("GetItem", {})
        assert abs(dynamodb.clock_offset_us - 3_600_000_000) < 2_000_000

    against([ahead], use)


def date_of(epoch_us: int) -> bytes:
    return formatdate(epoch_us // 1_000_000, usegmt=True).encode()


START_US = 1_795_000_000_000_000
answers = st.lists(
    st.tuples(
        st.integers(0, 5_000_000), st.integers(0, 3_000_000), st.integers(0, 3_000_000)
    ),  # pause, there, and back (µs)
    min_size=1,
    max_size=30,
)


@given(st.integers(-(10**10), 10**10), answers)
def test_slow_answers_do_not_mislead(offset_us: int, waits: list[tuple[int, int, int]]) -> None:
    clock, local, best = ServerClock(), START_US, 10**12
    for pause, there, back in waits:
        sent = local + pause
        served, local = sent + there, sent + there + back
        clock.observe(date_of(served + offset_us), sent, local, local - START_US)
        best = min(best, there + back)
        assert abs(clock.offset_us - offset_us) <= 1_000_000 + best
        assert abs(clock.offset_us) <= abs(offset_us)  # never more correction than is called for


@given(answers)
def test_a_synchronised_clock_is_left_alone(waits: list[tuple[int, int, int]]) -> None:
    clock, local = ServerClock(), START_US
    for pause, there, back in waits:
        sent = local + pause
        local = sent + there + back
        clock.observe(date_of(sent + there), sent, local, local - START_US)
        assert clock.offset_us == 0


def test_a_clock_that_was_set_is_believed_again() -> None:
    clock = ServerClock()
    clock.observe(date_of(START_US), START_US, START_US + 1000, 1000)
    clock.observe(date_of(START_US + 60_000_000), START_US, START_US + 1000, 1000)
    assert abs(clock.offset_us - 60_000_000) <= 1_001_000
    clock.observe(date_of(START_US), START_US, START_US + 1000, 1000)
    assert clock.offset_us == 0


@given(st.integers(-(10**10), 10**10))
def test_what_was_learned_is_known_until_the_clock_is_set(by_us: int) -> None:
    clock = ServerClock()
    assert not clock.known(START_US, 0)
    clock.observe(date_of(START_US), START_US, START_US, 0)
    assert clock.known(START_US + 3600_000_000, 3600_000_000)
    later = START_US + 5_000_000 + by_us
    assert clock.known(later, 5_000_000) == (abs(by_us) < 250_000)
    clock.observe(date_of(START_US + 5_000_000), later, later, 5_000_000)
    assert clock.known(later, 5_000_000)
    assert abs(clock.offset_us + by_us) <= 1_000_000


@pytest.mark.parametrize("date", [b"", b"yesterday", b"Sat, 21 Foo 2026 07:02:44 GMT", b"Sat, 21 Nov 2026 07:02:44 +01",
                                  b"Sat, 99 Nov 2026 07:02:44 GMT", b"\xff"])  # fmt: skip
def test_a_strange_date_says_nothing(date: bytes) -> None:
    clock = ServerClock()
    clock.observe(date, START_US, START_US, 0)
    assert clock.offset_us == 0


# -- Where, and as whom ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "environ", "expected"),
    [
        ("dynamodb", {}, "https://dynamodb.eu-west-1.amazonaws.com"),
        ("dynamodb", {"AWS_ENDPOINT_URL": "http://h:1/"}, "http://h:1"),
        ("dynamodb", {"AWS_ENDPOINT_URL": "http://h:1", "AWS_ENDPOINT_URL_DYNAMODB": "http://d:2"}, "http://d:2"),
        ("secretsmanager", {"AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://s:3"}, "http://s:3"),
        ("sqs", {"LOCALSTACK_HOST": "localstack"}, "http://localstack:4566"),
        ("sqs", {"LOCALSTACK_HOST": "localstack", "EDGE_PORT": "4999"}, "http://localstack:4999"),
        ("sqs", {"LOCALSTACK_HOST": "localstack:4510", "USE_SSL": "true"}, "https://localstack:4510"),
    ],
)
def test_endpoints(service: str, environ: dict[str, str], expected: str) -> None:
    assert endpoint(service, "eu-west-1", environ) == expected


def test_endpoints_in_china() -> None:
    assert endpoint("dynamodb", "cn-north-1", {}) == "https://dynamodb.cn-north-1.amazonaws.com.cn"


def test_the_environments_credentials_come_first() -> None:
    environ = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_SESSION_TOKEN": "ST"}
    assert asyncio.run(CredentialSource(environ).get()) == Credentials("AK", "SK", "ST")


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No credentials anywhere, but for what a test writes into the returned file."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path / "credentials"


def test_a_profiles_credentials_are_found_and_asked_for_once(
    bare_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_environment.write_text("[default]\naws_access_key_id = AKP\naws_secret_access_key = SKP\n")
    source = CredentialSource({})
    asked = 0
    resolver = source._resolver

    def counted() -> Credentials:
        nonlocal asked
        asked += 1
        return resolver()

    monkeypatch.setattr(source, "_resolver", counted)

    async def run() -> None:
        found = await asyncio.gather(*(source.get() for _ in range(5)))
        assert set(found) == {Credentials("AKP", "SKP")}
        assert asked == 1
        source._check_at = 0.0
        await asyncio.gather(*(source.get() for _ in range(5)))
        assert asked == 2

    asyncio.run(run())


@pytest.mark.usefixtures("bare_environment")
def test_no_credentials_is_one_clear_error() -> None:
    with pytest.raises(NoCredentials, match="AWS_PROFILE"):
        asyncio.run(CredentialSource({}).get())


def test_importing_the_client_loads_no_sdk() -> None:
    code = "import sys, tollgate.adapters.aws; print([m for m in ('boto3', 'botocore', 'aiohttp') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
