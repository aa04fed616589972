"""Each function runs once over all that it does, against recorded AWS APIs; its role allows those calls.

AWS checks permissions only when it is too late for a test; an emulator does not check them at all. So the calls are
read from the wire (`X-Amz-Target` and the body) and held against the role's statements in the translated template.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from functions.alerts import handler as alerts
from functions.authorizer import handler as authorizer
from functions.inspect import handler as inspect
from functions.metering import handler as metering
from functions.publisher import handler as publisher
from functions.reconciler import handler as reconciler
from functions.token_trigger import handler as token_trigger
from tests.aws_fixture import ENVIRON, aws_endpoint
from tests.functional.cloudformation import references, resources, statements
from tests.functional.test_metering_handler import subscription
from tests.records import a_close, an_open
from tollgate import bootstrap
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.http import HttpClient
from tollgate.adapters.keys_table import KeysTable, Owner
from tollgate.adapters.peppers import Peppers
from tollgate.adapters.policy_file import parse
from tollgate.adapters.policy_tables import PolicyTables
from tollgate.bootstrap import lambda_application
from tollgate.domain.alerts import Alert
from tollgate.domain.identity import ADMIN, INVOKE, Identity, granted
from tollgate.domain.policy import TenantSpec
from tollgate.local import provision
from tollgate.services.application import Application
from tollgate.wiring import clock_us

Call = tuple[str, str]
"""An IAM action and the template's name of what it is on."""

POLICY = """
version: 1
upstreams:
  local: {api: openai, base_url: "http://127.0.0.1:%d/v1", secret: tollgate/local}
models:
  small: {route: [{upstream: local, model: m}], price: {input: 1, output: 1}}
plans:
  pro:
    models: [small]
    limits:
      - {scope: user, requests: 3, per: minute}
      - {scope: user, tokens: 10000, per: minute}
      - {scope: tenant, concurrent: 5}
    budgets:
      - {scope: user, tokens: 100000, per: day}
      - {scope: tenant, usd: 5, per: month}
"""
MADE_OF = {"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem"}
"""A transaction needs the permissions of its parts."""


SPARE = {
    # where `BatchGetItem` is allowed: `ping`, and what a cancelled transaction did not say
    ("dynamodb:GetItem", "LimitsTable"),
    ("dynamodb:DeleteItem", "LimitsTable"),  # a marker whose write was not answered
    ("dynamodb:GetItem", "LedgerTable"),
}
"""Allowed, but not called by what these tests do."""
BY_AWS = {"Streams", "ListStreams", "LostEdits"}
"""Statements for what Lambda does in a function's name: reading streams, keeping what failed."""


class Aws:
    """moto behind a recorder; with the tables, the queue, a policy and a tenant."""

    def __init__(self, backend: str) -> None:
        self.records: list[dict[str, Any]] = []
        """Usage records that the proxy wrote."""
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._backend = backend
        parts = urlsplit(backend)
        calls = self.calls

        class Recorder(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if target := self.headers.get("X-Amz-Target"):
                    calls.append((target, json.loads(body)))
                upstream = http.client.HTTPConnection(parts.netloc, timeout=10)
                upstream.request("POST", self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                upstream.close()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def edit(self, name: str, key: dict[str, Any], attribute: str, value: dict[str, Any]) -> dict[str, Any]:
        """Edit an item as an operator does, unrecorded; the stream's event of it."""
        console = boto3.client("dynamodb", endpoint_url=self._backend)
        before = console.get_item(TableName=name, Key=key)["Item"]
        console.put_item(TableName=name, Item=before | {attribute: value})
        images = {"Keys": key, "OldImage": before, "NewImage": before | {attribute: value}}
        images["ApproximateCreationDateTime"] = time.time()
        return {"Records": [{"eventID": os.urandom(8).hex(), "eventName": "MODIFY", "dynamodb": images}]}

    def api_key(self, tenant: str) -> str:
        """A new key of the tenant, made by an operator: unrecorded."""

        async def make() -> str:
            environ = ENVIRON | {"AWS_ENDPOINT_URL": self._backend}
            http_client = HttpClient()
            clients = [AwsClient.for_service(name, http_client, environ) for name in ("dynamodb", "secretsmanager")]
            table = KeysTable(clients[0], "tollgate-keys", Peppers(clients[1], provision.KEY_PEPPER), time.time)
            made = await table.create(Owner(tenant), "operator")
            await http_client.aclose()
            return made.key

        return asyncio.run(make())

    @contextmanager
    def unrecorded(self) -> Iterator[Any]:
        """A client for what others do meanwhile; neither its calls nor anybody's inside count."""
        start = len(self.calls)
        yield boto3.client("dynamodb", endpoint_url=self._backend)
        del self.calls[start:]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def recorded(self) -> Iterator[set[Call]]:
        """The calls that are made inside."""
        start = len(self.calls)
        found: set[Call] = set()
        yield found
        for target, body in self.calls[start:]:
            found.update(permissions(target, body))


def permissions(target: str, body: dict[str, Any]) -> Iterator[Call]:
    """What a call needs."""
    service, _, operation = target.partition(".")
    if service == "secretsmanager":
        pepper = body["SecretId"] == provision.KEY_PEPPER
        assert pepper or body["SecretId"].startswith("tollgate/")
        yield f"secretsmanager:{operation}", "KeyPepper" if pepper else "${SecretPrefix}/*"
    elif service == "AmazonSQS":
        assert body["QueueUrl"].endswith(provision.DEAD_LETTERS)
        yield f"sqs:{operation}", "MeteringDeadLetters"
    elif service == "AWSCognitoIdentityProviderService":
        yield f"cognito-idp:{operation}", "UserPool"
    elif service == "AWSEvents":
        for entry in body["Entries"]:
            yield f"events:{operation}", f"event-bus/{entry['EventBusName']}"
    elif operation == "TransactWriteItems":
        for action in body["TransactItems"]:
            ((kind, inner),) = action.items()
            yield f"dynamodb:{MADE_OF[kind]}", table(inner["TableName"])
    elif "RequestItems" in body:
        for name in body["RequestItems"]:
            yield f"dynamodb:{operation}", table(name)
    else:
        yield f"dynamodb:{operation}", table(body["TableName"])


def table(name: str) -> str:
    return name.removeprefix("tollgate-").title() + "Table"


def allowed(function: str) -> set[Call]:
    """What a function's role allows it on AWS APIs that it calls itself."""
    found: set[Call] = set()
    for statement in statements(resources("AWS::IAM::Role")[function.replace("Function", "Role")]):
        if statement.get("Sid") in BY_AWS:
            continue
        actions, on = statement["Action"], statement["Resource"]
        for action in [actions] if isinstance(actions, str) else actions:
            for resource in on if isinstance(on, list) else [on]:
                match resource:
                    case {"Fn::GetAtt": [str(name), "Arn"]}:
                        found.add((action, name))
                    case {"Fn::Sub": str(arn)}:
                        found.add((action, arn.rpartition(":secret:")[2].rpartition("${AWS::AccountId}:")[2]))
                    case {"Ref": str(name)}:
                        found.add((action, name))
    return {(action, on) for action, on in found if not action.startswith(("logs:", "bedrock:", "elasticache:"))}


@pytest.fixture(scope="module")
def model() -> Iterator[int]:
    """A model that answers at once; its port."""

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            answer = json.dumps({"id": "x", "object": "chat.completion", "choices": [], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def aws(model: int) -> Iterator[Aws]:
    with aws_endpoint() as backend, pytest.MonkeyPatch.context() as patch:
        recorder = Aws(backend)
        environ = ENVIRON | {"AWS_ENDPOINT_URL": recorder.url, "AWS_DEFAULT_REGION": ENVIRON["AWS_REGION"]}
        for name, value in environ.items():
            patch.setenv(name, value)
        environ |= provision.provision(environ).environ()
        environ |= {"TOLLGATE_STORE_URL": f"dynamodb://{environ['TOLLGATE_LIMITS_TABLE']}"}
        for name, value in (environ | {"AWS_LAMBDA_FUNCTION_NAME": "test"}).items():
            patch.setenv(name, value)
        patch.setattr(bootstrap, "StdoutUsageLog", lambda: UsageList(recorder.records))
        provision.put_secret("tollgate/local", "key")
        asyncio.run(furnish(environ, model))
        make_administrator(environ["TOLLGATE_USER_POOL_ID"], "acme/ana")
        yield recorder
        recorder.close()


class UsageList:
    """A usage log that is kept."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._records = records

    def write(self, record: Mapping[str, Any]) -> None:
        self._records.append(dict(record))


async def furnish(environ: dict[str, str], port: int) -> None:
    http_client = HttpClient()
    tables = PolicyTables(
        AwsClient.for_service("dynamodb", http_client, environ),
        environ["TOLLGATE_POLICY_TABLE"],
        environ["TOLLGATE_TENANTS_TABLE"],
    )
    await tables.apply(parse(POLICY % port, {}, "policy.yaml"), "test")
    await tables.tenants.create("acme", TenantSpec(plan="pro"), "test")
    await http_client.aclose()


def make_administrator(pool: str, user: str) -> None:
    cognito = boto3.client("cognito-idp")
    cognito.admin_create_user(UserPoolId=pool, Username=user, MessageAction="SUPPRESS")
    cognito.admin_add_user_to_group(UserPoolId=pool, Username=user, GroupName=provision.ADMINISTRATORS)


def request(method: str, path: str) -> tuple[dict[str, Any], bytes]:
    """An ASGI scope and body, as the web adapter's request becomes them; of an administrator."""
    who = Identity(
        "acme", "ana", "pro", scopes=granted([INVOKE, ADMIN]), expires_at=int(time.time()) + 600, pool_user="acme/ana"
    )
    context = {"authorizer": who.to_context(), "identity": {"sourceIp": "192.0.2.1"}}
    headers = [(b"content-type", b"application/json"), (b"x-amzn-request-context", json.dumps(context).encode())]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1),
    }  # fmt: skip
    return scope, b'{"model": "small", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}'


async def serve(*requests: tuple[str, str]) -> list[int]:
    """The statuses of these requests to a cold proxy, which is then stopped."""
    application = lambda_application()
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    life = asyncio.create_task(application({"type": "lifespan"}, events.get, sent.put))
    await events.put({"type": "lifespan.startup"})
    assert (await sent.get())["type"] == "lifespan.startup.complete"
    statuses = [await ask(application, *each) for each in requests]
    await events.put({"type": "lifespan.shutdown"})
    await life
    return statuses


async def ask(application: Application, method: str, path: str) -> int:
    scope, body = request(method, path)
    answer: list[Any] = []
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    await received.put({"type": "http.request", "body": body, "more_body": False})

    async def send(message: Any) -> None:
        answer.append(message)

    await application(scope, received.get, send)
    return int(answer[0]["status"])


def run_proxy(aws: Aws) -> None:
    chat, status = ("POST", "/v1/chat/completions"), ("GET", "/admin/v1/status")
    assert asyncio.run(serve(chat, chat, chat, chat, status)) == [200, 200, 200, 429, 200]


def run_metering(aws: Aws) -> None:
    now = clock_us()
    # what the proxy wrote; one call used more than was settled, so that a floor is pushed
    lines = [json.dumps(record) for record in aws.records]
    close = next(it for it in reversed(aws.records) if it["event"] == "usage.close")
    more = close | {
        "id": "more",
        "output_tokens": 50_000,
        "cost_microusd": 50_000,
    }
    late = an_open("late", ts_us=now - 3600_000_000, expires_us=now - 3000_000_000).as_dict()
    metering.handler(subscription(*lines, json.dumps(more), json.dumps(late), "poison"), None)
    metering.handler(subscription(*lines), None)
    metering.handler({"source": "aws.events", "detail-type": "Scheduled Event"}, None)
    metering.close()


def run_alerts(aws: Aws) -> None:
    """What metering has raised, and an hour that cost as much as the dearest of the days before."""
    asyncio.run(raise_one())
    assert alerts.handler({"task": alerts.LOOK_BACK}, None)["sent"] > 0


async def raise_one() -> None:
    """As metering does; and use in the hour to look back upon."""
    async with bootstrap.alerts() as (outbox, _, ledger, _):
        hour_ago = clock_us() - 3600_000_000
        facts = {"used": 1}
        await outbox.put([Alert("other", "usage.anomaly", "acme", hour_ago, "an alert", facts)])
        # acme's budget of 5 dollars a month, and enough of it that the look back raises, too
        await ledger.enter([a_close("hour", ts_us=hour_ago, cost_microusd=9_000_000)])


def run_reconciler(aws: Aws) -> None:
    """A budget that lost what the ledger knows, and a call that nobody closed."""
    now = clock_us()
    dead = an_open("dead", ts_us=now - 3600_000_000, expires_us=now - 3000_000_000)

    async def remember() -> None:
        async with bootstrap.reconciler() as (ledger, *_):
            await ledger.opened([dead])

    with aws.unrecorded() as console:
        metering.handler(subscription(*[json.dumps(record) for record in aws.records]), None)
        metering.close()
        asyncio.run(remember())
        for item in console.scan(TableName="tollgate-limits")["Items"]:
            lost = {name: {"N": "0"} for name in item if name.endswith(":spent")}
            console.put_item(TableName="tollgate-limits", Item=item | lost)
    report = reconciler.handler({"source": "aws.events", "detail-type": "Scheduled Event"}, None)
    assert (report["resolved"], report["failures"], report["unbalanced"]) == (1, [], [])
    assert report["behind"] > 0
    assert reconciler.handler({"source": "aws.events"}, None)["behind"] == 0


def run_inspect(aws: Aws) -> None:
    found = inspect.handler({"tenant": "acme", "user": "somebody new", "ip": "192.0.2.1"}, None)
    assert found["limits"]
    assert found["models"] == [{"model": "small", "allowed": True, "why": ""}]
    assert "error" in inspect.handler({"tenant": "acme"}, None)


def run_publisher(aws: Aws) -> None:
    """What operators do in the console: take a plan's limits away, and a tenant's."""
    publisher.handler(aws.edit("tollgate-policy", {"id": {"S": "plan#pro"}}, "limits", {"L": []}), None)
    publisher.handler(aws.edit("tollgate-tenants", {"tenant": {"S": "acme"}}, "limits", {"L": []}), None)


def run_token_trigger(aws: Aws) -> None:
    token_trigger._dynamodb.cache_clear()
    event = {
        "version": "3",
        "triggerSource": "TokenGeneration_Authentication",
        "callerContext": {"clientId": "c"},
        "request": {"userAttributes": {"custom:tenant": "acme"}},
    }
    assert token_trigger.handler(event, None)["response"]
    token_trigger._dynamodb.cache_clear()


def run_authorizer(aws: Aws) -> None:
    key = aws.api_key("acme")
    authorizer.verifier.cache_clear()
    event = {
        "methodArn": "arn:aws:execute-api:us-east-1:123456789012:api/live/POST/anthropic/v1/messages",
        "headers": {"x-api-key": key},
        "requestContext": {"identity": {"sourceIp": "192.0.2.1"}},
    }
    assert authorizer.handler(event, None)["context"]["tenant"] == "acme"
    authorizer.verifier()._verifiers[0]._records.close()
    authorizer.verifier.cache_clear()


STEPS: Mapping[str, Callable[[Aws], None]] = {
    "ProxyFunction": run_proxy,
    "MeteringFunction": run_metering,
    "AlertsFunction": run_alerts,
    "ReconcilerFunction": run_reconciler,
    "InspectFunction": run_inspect,
    "PublisherFunction": run_publisher,
    "TokenTriggerFunction": run_token_trigger,
    "AuthorizerFunction": run_authorizer,
}
"""In the order in which things happen: each works on what those before it have left."""


def test_each_role_allows_what_its_function_calls_and_little_else(aws: Aws) -> None:
    for function, run in STEPS.items():
        with aws.recorded() as made:
            run(aws)
        assert made <= allowed(function), function
        assert allowed(function) - made <= SPARE, function


def test_the_audit_log_is_only_ever_added_to_and_each_function_adds_its_own_kind() -> None:
    kinds: dict[str, str] = {}
    for role, properties in resources("AWS::IAM::Role").items():
        for statement in statements(properties):
            if "AuditTable" not in references(statement):
                continue
            assert statement["Action"] == "dynamodb:PutItem"
            kinds[role] = statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
    assert kinds == {"PublisherRole": ["change#*"], "MeteringRole": ["refusal#*"]}
