"""The stand-in keeps API Gateway's rules: routes, authorizer, cache, policy, headers that only it may write."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tollgate.adapters.http import HttpClient
from tollgate.domain.invocation import call_id, died
from tollgate.local import api_gateway, log_pipe
from tollgate.local.api_gateway import ApiGateway, Integration
from tollgate.local.gateway_auth import Answer, Authorizer, AuthorizerFailed, Denied, NotAuthenticated

TEMPLATE = Path(__file__).parents[2] / "template.yaml"
BEARER = (b"authorization", b"Bearer t0ken")
ARN = "arn:aws:execute-api:us-east-1:123456789012:local00000/live/POST/v1/chat/completions"


def policy(resource: str = "arn:aws:execute-api:us-east-1:123456789012:local00000/live/*/*", **context: Any) -> Any:
    statement = {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": resource}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    return {"principalId": "p1", "policyDocument": document, "context": {"tenant": "acme", **context}}


class FakeAuthorizer:
    """An authorizer function that counts its invocations."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = policy() if answer is None else answer
        self.events: list[Mapping[str, Any]] = []

    async def __call__(self, event: Mapping[str, Any]) -> Any:
        self.events.append(event)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Proxy:
    """A server that answers with what `respond` writes, and remembers the requests it got."""

    def __init__(self, respond: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._respond = respond or self._hello
        self._serving: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append((head[0], headers, body))
            await self._respond(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _hello(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-upstream: yes\r\n\r\nhello")
        await writer.drain()


class Client:
    """One ASGI request, and what came of it."""

    def __init__(self, scope: dict[str, Any], body: bytes) -> None:
        self.scope = scope
        self.sent: list[dict[str, Any]] = []
        self._inbox = [{"type": "http.request", "body": body}]

    async def receive(self) -> dict[str, Any]:
        if self._inbox:
            return self._inbox.pop()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])


def scope(method: str = "POST", path: str = "/v1/chat/completions", headers: Any = (BEARER,)) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "headers": list(headers),
        "client": ("127.0.0.9", 5555),
    }


async def call(
    request: dict[str, Any],
    *,
    function: FakeAuthorizer | None = None,
    proxy: Proxy | None = None,
    body: bytes = b"{}",
    timeout_s: float = 60,
    log: list[str] | None = None,
) -> Client:
    client = Client(request, body)
    http = HttpClient()
    serving = asyncio.Event()
    serving.set()
    async with proxy or Proxy() as url:
        report = [].append if log is None else log.append
        integration = Integration(url, serving, "us-east-1", timeout_s=timeout_s, report=report)
        gateway = ApiGateway(function or FakeAuthorizer(), integration, http)
        try:
            await gateway(client.scope, client.receive, client.send)
        finally:
            await http.aclose()
    return client


def test_a_request_goes_through() -> None:
    proxy, function = Proxy(), FakeAuthorizer()
    client = asyncio.run(
        call(scope(headers=[BEARER, (b"x-mine", b"1")]), function=function, proxy=proxy, body=b'{"a":1}')
    )
    assert (client.status, client.body, client.headers[b"x-upstream"]) == (200, b"hello", b"yes")
    line, headers, body = proxy.requests[0]
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert (headers["authorization"], headers["x-mine"], body) == ("Bearer t0ken", "1", b'{"a":1}')
    context = json.loads(headers["x-amzn-request-context"])
    assert context["authorizer"] == {"tenant": "acme", "principalId": "p1"}
    assert context["identity"]["sourceIp"] == "127.0.0.9"
    assert json.loads(headers["x-amzn-lambda-context"])["deadline"] > context["requestTimeEpoch"]
    event = function.events[0]
    assert (event["type"], event["methodArn"]) == ("REQUEST", ARN)
    assert event["headers"]["authorization"] == "Bearer t0ken"
    assert event["requestContext"]["identity"]["sourceIp"] == "127.0.0.9"


def test_forged_context_headers_never_arrive() -> None:
    proxy = Proxy()
    forged = [(b"x-amzn-request-context", b'{"authorizer": {"tenant": "evil"}}'), (b"x-amzn-lambda-context", b"{}")]
    asyncio.run(call(scope(headers=[BEARER, *forged]), proxy=proxy))
    headers = proxy.requests[0][1]
    assert "evil" not in str(headers)
    assert json.loads(headers["x-amzn-request-context"])["authorizer"]["tenant"] == "acme"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 404),
        ("DELETE", "/v1/models", 404),
        ("GET", "/", 404),
        ("POST", "/v1/models", 404),
        ("GET", "/anthropic/v1/messages", 404),
        ("GET", "/v1/nothing", 200),  # the catch-all: the proxy decides
        ("GET", "/v1/models", 200),
        ("GET", "/healthz", 200),
    ],
)
def test_routes(method: str, path: str, status: int) -> None:
    client = asyncio.run(call(scope(method, path)))
    assert client.status == status
    if status == 404:
        assert client.error["code"] == "unknown_url"


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"")], [(b"x-api-key", b"k")]])
def test_without_the_identity_source_no_function_runs(headers: list[tuple[bytes, bytes]]) -> None:
    function, proxy = FakeAuthorizer(), Proxy()
    client = asyncio.run(call(scope(headers=headers), function=function, proxy=proxy))
    assert (client.status, client.error["code"]) == (401, "invalid_api_key")
    assert (function.events, proxy.requests) == ([], [])


def test_each_authorizer_is_asked_about_its_own_header_and_remembers_by_it() -> None:
    async def run() -> None:
        function = FakeAuthorizer()
        http = HttpClient()
        async with Proxy() as url:
            serving = asyncio.Event()
            serving.set()
            gateway = ApiGateway(function, Integration(url, serving, "us-east-1"), http)

            async def status(path: str, *headers: tuple[bytes, bytes]) -> int:
                client = Client(scope("POST", path, list(headers)), b"{}")
                await gateway(client.scope, client.receive, client.send)
                return client.status

            token, key = (b"authorization", b"Bearer same"), (b"x-api-key", b"same")
            keyed = ("/anthropic/v1/messages", "/anthropic/v1/anything")
            assert [await status(path, token) for path in keyed] == [401, 401]
            assert [await status(path, key) for path in ("/v1/messages", "/v1/anything")] == [401, 401]
            assert function.events == []
            for _ in range(2):
                assert [await status(path, key) for path in keyed] == [200, 200]
            assert [event["path"] for event in function.events] == ["/anthropic/v1/messages"]
            # one function, but what it said of one header is not what it said of the other
            assert await status("/v1/messages", (b"authorization", b"same")) == 200
            assert len(function.events) == 2
        await http.aclose()

    asyncio.run(run())


def test_health_needs_no_authorizer() -> None:
    function = FakeAuthorizer()
    assert asyncio.run(call(scope("GET", "/healthz", []), function=function)).status == 200
    assert function.events == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Exception("Unauthorized"), 401),
        (ValueError("anything else"), 503),
        (policy("arn:aws:execute-api:us-east-1:123456789012:local00000/live/GET/*"), 403),
        ({"principalId": "p"}, 503),
        ({**policy(), "context": {"nested": {}}}, 503),
    ],
)
def test_what_the_authorizer_says_is_answered(answer: Any, status: int) -> None:
    proxy = Proxy()
    client = asyncio.run(call(scope(), function=FakeAuthorizer(answer), proxy=proxy))
    assert client.status == status
    assert set(client.error) == {"message", "type", "param", "code"}
    assert proxy.requests == []


def test_policies_are_remembered_per_token_and_for_every_route() -> None:
    async def run() -> None:
        now = 0.0
        function = FakeAuthorizer()
        authorizer = Authorizer(function, cache_s=60, clock=lambda: now)
        event = {"methodArn": ARN}
        for _ in range(3):
            await authorizer.check("Bearer a", event)
        await authorizer.check("Bearer a", {"methodArn": ARN.replace("POST/v1/chat/completions", "GET/v1/models")})
        assert len(function.events) == 1
        await authorizer.check("Bearer b", event)
        assert len(function.events) == 2
        now = 61.0
        await authorizer.check("Bearer a", event)
        assert len(function.events) == 3

    asyncio.run(run())


def test_refusals_are_remembered_only_if_they_are_policies() -> None:
    async def run() -> None:
        function = FakeAuthorizer(Exception("Unauthorized"))
        authorizer = Authorizer(function)
        for _ in range(2):
            with pytest.raises(NotAuthenticated):
                await authorizer.check("Bearer a", {"methodArn": ARN})
        assert len(function.events) == 2
        function.answer = policy("arn:aws:execute-api:*:*:other/*")
        for _ in range(2):
            with pytest.raises(Denied):
                await authorizer.check("Bearer a", {"methodArn": ARN})
        assert len(function.events) == 3

    asyncio.run(run())


@pytest.mark.parametrize(
    ("resource", "allowed"),
    [
        (ARN, True),
        (ARN.replace("live/POST", "live/*"), True),
        (ARN.replace("completions", "complet?ons"), True),
        (ARN.replace("live/POST", "li?e/POST"), True),
        ("*", True),
        (ARN[:-1], False),
        (ARN + "/more", False),
        (ARN.replace("live", "test"), False),
        (ARN.replace("local00000", "local0000."), False),  # no regular expressions
    ],
)
def test_resources_match_as_in_iam(resource: str, allowed: bool) -> None:
    assert Answer.of(policy(resource)).allows(ARN) is allowed


def test_an_explicit_deny_wins_and_other_actions_do_not_count() -> None:
    answer = policy()
    allow = answer["policyDocument"]["Statement"][0]
    answer["policyDocument"]["Statement"] = [allow, {**allow, "Effect": "Deny", "Resource": [ARN]}]
    assert not Answer.of(answer).allows(ARN)
    answer["policyDocument"]["Statement"] = [{**allow, "Action": "s3:GetObject"}]
    assert not Answer.of(answer).allows(ARN)
    answer["policyDocument"]["Statement"] = [{**allow, "Action": ["s3:*", "execute-api:*"]}]
    assert Answer.of(answer).allows(ARN)


def test_context_values_arrive_as_text() -> None:
    assert Answer.of(policy(n=3, yes=True)).context == {"tenant": "acme", "n": "3", "yes": "true", "principalId": "p1"}
    with pytest.raises(AuthorizerFailed, match="flat"):
        Answer.of(policy(scopes=["a"]))


def test_too_large_a_body_is_413_and_headers_431() -> None:
    proxy = Proxy()
    large = asyncio.run(call(scope(), proxy=proxy, body=b"x" * (api_gateway.MAX_BODY + 1)))
    assert (large.status, large.error["code"]) == (413, "request_too_large")
    declared = scope(headers=[BEARER, (b"content-length", str(api_gateway.MAX_BODY + 1).encode())])
    assert asyncio.run(call(declared, proxy=proxy)).status == 413
    assert asyncio.run(call(scope(headers=[BEARER, (b"x-long", b"y" * 10_240)]), proxy=proxy)).status == 431
    assert proxy.requests == []


def test_chunks_are_passed_on_as_they_come() -> None:
    async def run() -> None:
        go = asyncio.Event()

        async def two(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
            await writer.drain()
            await asyncio.wait_for(go.wait(), 60)
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
            await writer.drain()

        client = Client(scope(), b"{}")

        async def send(message: Any) -> None:
            client.sent.append(message)
            if message.get("body") == b"one":
                go.set()  # only now is there a second chunk

        client.send = send  # type: ignore[method-assign]  # a spy
        http = HttpClient()
        serving = asyncio.Event()
        serving.set()
        async with Proxy(two) as url:
            gateway = ApiGateway(FakeAuthorizer(), Integration(url, serving, "us-east-1"), http)
            await asyncio.wait_for(gateway(client.scope, client.receive, client.send), 60)
            await http.aclose()
        assert [m.get("body") for m in client.sent[1:]] == [b"one", b"two", b""]

    asyncio.run(run())


def test_an_answer_that_breaks_off_is_not_ended_cleanly() -> None:
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()

    proxy, log = Proxy(cut), list[str]()
    with pytest.raises(api_gateway.Broken):
        asyncio.run(call(scope(), proxy=proxy, log=log))
    assert [died(line) for line in log] == [_call(proxy)]


def test_a_proxy_that_does_not_answer_in_time_is_504() -> None:
    async def stall(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    proxy, log = Proxy(stall), list[str]()
    client = asyncio.run(call(scope(), proxy=proxy, timeout_s=0.1, log=log))
    assert (client.status, client.error["code"]) == (504, "upstream_timeout")
    assert [died(line) for line in log] == [_call(proxy)]
    assert log[0].endswith("\tStatus: timeout")


def test_a_proxy_that_dies_during_a_request_is_502() -> None:
    async def die(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    proxy, log = Proxy(die), list[str]()
    assert asyncio.run(call(scope(), proxy=proxy, log=log)).status == 502
    assert [died(line) for line in log] == [_call(proxy)]


def test_an_invocation_that_ends_well_is_not_reported() -> None:
    log: list[str] = []
    assert asyncio.run(call(scope(), log=log)).status == 200
    assert log == []


def _call(proxy: Proxy) -> str | None:
    """What the proxy called its only request."""
    ((_, headers, _),) = proxy.requests
    return call_id(json.loads(headers["x-amzn-lambda-context"])["request_id"])


def test_a_request_waits_while_the_proxy_is_restarted() -> None:
    async def run() -> None:
        client, http, serving = Client(scope(), b"{}"), HttpClient(), asyncio.Event()
        async with Proxy() as url:
            gateway = ApiGateway(FakeAuthorizer(), Integration(url, serving, "us-east-1"), http)
            asyncio.get_running_loop().call_later(0.05, serving.set)
            await gateway(client.scope, client.receive, client.send)
            await http.aclose()
        assert client.status == 200

    asyncio.run(run())


# The stand-in and the template say the same


class _Loader(yaml.SafeLoader):
    """CloudFormation's YAML: its functions are left as they are written."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: f"!{tag}")


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    return dict(yaml.load(TEMPLATE.read_text(), _Loader)["Resources"])


def test_answers_are_the_templates(resources: dict[str, Any]) -> None:
    responses = resources["GatewayApi"]["Properties"]["GatewayResponses"]
    for name in (
        "UNAUTHORIZED",
        "ACCESS_DENIED",
        "MISSING_AUTHENTICATION_TOKEN",
        "REQUEST_TOO_LARGE",
        "AUTHORIZER_FAILURE",
        "INTEGRATION_FAILURE",
        "INTEGRATION_TIMEOUT",
    ):
        ours, theirs = getattr(api_gateway, name), responses[name]
        assert ours.status == theirs["StatusCode"], name
        assert ours.payload() == json.loads(theirs["ResponseTemplates"]["application/json"]), name
        told = {header: value.strip("'") for header, value in theirs["ResponseParameters"]["Headers"].items()}
        assert told.pop("x-request-id") == "context.requestId"
        assert ours.headers == told, name


def test_the_subscription_filter_is_the_templates(resources: dict[str, Any]) -> None:
    events = resources["MeteringFunction"]["Properties"]["Events"]
    assert events["UsageRecords"]["Properties"]["FilterPattern"] == log_pipe.USAGE_PATTERN
    assert events["DeadInvocations"]["Properties"]["FilterPattern"] == log_pipe.REPORT_PATTERN
