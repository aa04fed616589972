"""`tollgate ledger replay`, from each of its sources, against AWS APIs in moto."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result

from tests.aws_fixture import ENVIRON, aws_endpoint
from tests.functional.test_metering_handler import subscription
from tests.records import a_close, an_open
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.adapters.http import HttpClient
from tollgate.cli import tollgate
from tollgate.local import provision
from tollgate.wiring import clock_us

MINUTE = 60_000_000


class Terminal:
    """A terminal whose environment names a deployed stack."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.sqs: Any = boto3.client("sqs")
        self.logs: Any = boto3.client("logs")
        self.now = clock_us()
        self._tenants = 0

    def tenant(self) -> str:
        self._tenants += 1
        return f"tenant{self._tenants}"

    def run(self, *words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(tollgate, ["ledger", "replay", *words], env=self.environ, input=stdin)

    def told(self, *words: str, stdin: str | None = None) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.run(*words, "--json", stdin=stdin).stdout)
        return told

    def line(self, id: str, **changed: Any) -> str:
        return json.dumps(a_close(id, **({"ts_us": self.now - MINUTE} | changed)).as_dict())

    def requests(self, tenant: str) -> int:
        async def read() -> int:
            http = HttpClient()
            try:
                client = AwsClient.for_service("dynamodb", http, self.environ)
                rows = await DynamoLedger(client, self.environ["TOLLGATE_LEDGER_TABLE"]).report(tenant=tenant)
            finally:
                await http.aclose()
            return sum(row.sums["requests"] for row in rows)

        return asyncio.run(read())

    def letter(self, body: Any) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.sqs.send_message(QueueUrl=self.environ["TOLLGATE_DEAD_LETTER_QUEUE_URL"], MessageBody=text)

    def drain(self) -> None:
        url = self.environ["TOLLGATE_DEAD_LETTER_QUEUE_URL"]
        while messages := self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                self.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])

    def waiting(self) -> int:
        wanted = ["ApproximateNumberOfMessages"]
        url = self.environ["TOLLGATE_DEAD_LETTER_QUEUE_URL"]
        return int(self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=wanted)["Attributes"][wanted[0]])


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    with aws_endpoint() as url, pytest.MonkeyPatch.context() as patch:
        environ = ENVIRON | {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": ENVIRON["AWS_REGION"]}
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.setattr("tollgate.cli.ledger_sources.WAIT_S", 0)
        provision._client.cache_clear()
        resources = provision.provision(environ)
        found = Terminal(environ | resources.environ())
        found.drain()  # moto's state is its process's, and so that of other modules
        yield found
        provision._client.cache_clear()


class TestFiles:
    def test_a_file_is_entered_once(self, terminal: Terminal, tmp_path: Path) -> None:
        tenant = terminal.tenant()
        lines = [terminal.line(f"{tenant}-{i}", tenant=tenant) for i in range(3)]
        opened = an_open(f"{tenant}-open", tenant=tenant, ts_us=terminal.now, expires_us=terminal.now + MINUTE)
        noise = ["START RequestId: 1", '{"level": "INFO", "message": "x"}', json.dumps(opened.as_dict())]
        plain, packed = tmp_path / "a.log", tmp_path / "b.log.gz"
        plain.write_text("\n".join([f"2026-11-21T10:00:00+00:00 {lines[0]}", *noise, lines[1]]))
        packed.write_bytes(gzip.compress("\n".join([lines[1], lines[2]]).encode()))
        dry = terminal.told("--file", str(plain), "--file", str(packed), "--dry-run")
        assert (dry["entered"], dry["repeated"], dry["passed_over"], dry["dry_run"]) == (3, 1, 2, True)
        assert terminal.requests(tenant) == 0
        told = terminal.told("--file", str(plain), "--file", str(packed))
        assert (told["read"], told["entered"], told["repeated"], told["opened"]) == (5, 3, 1, 1)
        again = terminal.told("--file", str(plain), "--file", str(packed))
        assert (again["entered"], again["repeated"]) == (0, 4)
        assert terminal.requests(tenant) == 3

    def test_what_cannot_be_entered_is_told_without_its_content(self, terminal: Terminal, tmp_path: Path) -> None:
        tenant = terminal.tenant()
        good = terminal.line(f"{tenant}-a", tenant=tenant, input_tokens=5)
        bad = [
            terminal.line(f"{tenant}-b", outcome="secret"),
            terminal.line(f"{tenant}-c", ts_us=1),
            good.replace('"input_tokens": 5', '"input_tokens": 6'),
            '{"event": "usage.close", "v": 2}',
        ]
        result = terminal.run("--file", "-", "--json", stdin="\n".join([good, *bad]))
        assert result.exit_code == 1
        told = json.loads(result.stdout)
        assert (told["entered"], told["poison"]) == (1, 4)
        assert "secret" not in result.output
        assert told["reasons"]["id: it has been entered with another bill"] == 1
        shown = terminal.run("--file", "-", stdin=bad[0]).stdout
        assert "1 cannot be entered: outcome" in shown
        dry = terminal.told("--file", "-", "--dry-run", stdin="\n".join([good, bad[2]]))
        assert (dry["repeated"], dry["poison"]) == (1, 1)


class TestQueue:
    def test_what_can_be_entered_leaves_the_queue(self, terminal: Terminal) -> None:
        tenant = terminal.tenant()
        lines = [terminal.line(f"{tenant}-{i}", tenant=tenant) for i in range(4)]
        terminal.letter({"reason": "v: this version reads schema 1, found 2", "record": lines[0]})
        terminal.letter({"version": "1.0", "requestContext": {}, "requestPayload": subscription(lines[1], lines[2])})
        terminal.letter({"error": "it was down", "event": subscription(lines[3])})
        terminal.letter({"reason": "not a line of JSON", "record": "{garbage"})
        terminal.letter({"reason": "too long", "record": lines[0][:50], "cut": True})
        terminal.letter("no letter")
        terminal.letter({"hello": "world"})
        dry = terminal.told("--from-queue", "--dry-run")
        assert (dry["entered"], dry["poison"], terminal.waiting()) == (4, 4, 7)
        told = terminal.told("--from-queue")
        assert (told["entered"], told["poison"]) == (4, 4)
        assert terminal.waiting() == 4
        assert terminal.requests(tenant) == 4
        reasons = set(told["reasons"])
        assert "the line was longer than a message may be, and is cut" in reasons
        assert sum(told["reasons"].values()) == 4
        again = terminal.run("--from-queue")
        assert again.exit_code == 1
        assert "0 entered" in again.stdout
        assert "4 could not be entered" in str(again.exception)
        terminal.drain()


class TestLogGroup:
    def test_a_time_range_of_the_log_group(self, terminal: Terminal) -> None:
        tenant, stream = terminal.tenant(), {"logGroupName": provision.PROXY_LOG_GROUP, "logStreamName": "a"}
        terminal.logs.create_log_stream(**stream)
        minutes = [50, 30, 10]
        events = [
            {
                "timestamp": terminal.now // 1000 - minute * 60_000,
                "message": terminal.line(f"{tenant}-{minute}", tenant=tenant),
            }
            for minute in minutes
        ]
        terminal.logs.put_log_events(**stream, logEvents=events)
        assert terminal.told("--since", "40m")["entered"] == 2
        told = terminal.told("--since", "2h")
        assert (told["entered"], told["repeated"]) == (1, 2)
        assert terminal.requests(tenant) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "choose one"),
        (("--from-queue", "--since", "2h"), "choose one"),
        (("--until", "2h", "--from-queue"), "go with --since"),
        (("--since", "yesterday"), "expected a UTC day or time"),
    ],
)
def test_wrong_usage_is_told(terminal: Terminal, words: tuple[str, ...], message: str) -> None:
    result = terminal.run(*words)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
