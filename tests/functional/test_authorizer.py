"""The authorizer against a user pool of moto's server: its tokens, its keys over HTTP, and API Gateway's events."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.authorizer import handler as authorizer
from tests.functional.cognito import Pool, user_pool
from tests.hostile_tokens import HOSTILE
from tests.tokens import CLIENT, ISSUER, key_set, token
from tollgate.adapters import jwks
from tollgate.adapters.jwks import FetchFailed, Jwks, fetch_document
from tollgate.domain.identity import Identity, KeysUnavailable, granted
from tollgate.local.gateway_auth import Answer

ARN = "arn:aws:execute-api:us-east-1:123456789012:abcdef1234"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with user_pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def login(pool: Pool) -> dict[str, str]:
    return pool.login("ann", "acme")


@pytest.fixture(autouse=True)
def environment(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in pool.env.items():
        monkeypatch.setenv(name, value)
    authorizer.verifier.cache_clear()
    yield
    authorizer.verifier.cache_clear()


def request(authorization: str | list[str] | None, **changes: Any) -> dict[str, Any]:
    """A REQUEST authorizer's event, as a REST API sends it."""
    values = [authorization] if isinstance(authorization, str) else authorization or []
    headers = {"Host": "abcdef1234.execute-api.us-east-1.amazonaws.com", "Accept": "*/*"}
    many = {name: [value] for name, value in headers.items()}
    if values:
        headers["authorization"] = values[-1]
        many["authorization"] = values
    return {
        "type": "REQUEST",
        "methodArn": f"{ARN}/prod/POST/v1/chat/completions",
        "resource": "/{proxy+}",
        "path": "/v1/chat/completions",
        "httpMethod": "POST",
        "headers": headers,
        "multiValueHeaders": many,
        "queryStringParameters": {},
        "pathParameters": {"proxy": "v1/chat/completions"},
        "stageVariables": {},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abcdef1234",
            "stage": "prod",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "identity": {"sourceIp": "192.0.2.7", "userAgent": "OpenAI/Python 3.52.0"},
            "httpMethod": "POST",
        },
        **changes,
    }


def denied(event: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The log line of a refusal; its exception is the one that API Gateway answers with 401."""
    capsys.readouterr()
    with pytest.raises(Exception, match=r"^Unauthorized$") as caught:
        authorizer.handler(event, None)
    assert type(caught.value) is Exception
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    return json.loads(output)  # type: ignore[no-any-return]  # JSON


def test_a_tenants_token_says_who_calls(pool: Pool, login: dict[str, str]) -> None:
    token = pool.issue(login["AccessToken"], tenant="acme", plan="pro", scope="tollgate/invoke")
    answer = authorizer.handler(request(f"Bearer {token}"), None)
    identity = Identity.from_context(answer["context"])
    assert (identity.tenant, identity.plan, identity.scopes) == ("acme", "pro", granted(["invoke"]))
    assert identity.user
    assert identity.expires_at > 0
    assert all(isinstance(value, str) for value in answer["context"].values())
    assert token not in json.dumps(answer)
    assert identity.user not in answer["principalId"]


def test_a_token_without_a_tenant_is_nobodys(login: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert denied(request(f"Bearer {login['AccessToken']}"), capsys)["reason"] == "tenant is missing"


def test_an_id_token_is_not_an_access_token(
    pool: Pool, login: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert denied(request(f"Bearer {login['IdToken']}"), capsys)["reason"] == "not an access token"


def test_a_denial_is_one_line_with_a_metric_and_no_token(
    pool: Pool, login: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    token = pool.issue(login["AccessToken"], tenant="acme", exp=1)
    line = denied(request(f"Bearer {token}"), capsys)
    assert line["level"] == "WARNING"
    assert line["message"] == "unauthorized"
    assert (line["reason"], line["ip"]) == ("expired", "192.0.2.7")
    assert line["_aws"]["CloudWatchMetrics"] == [
        {"Namespace": "Tollgate", "Dimensions": [["service"]], "Metrics": [{"Name": "Unauthorized", "Unit": "Count"}]}
    ]
    assert line["Unauthorized"] == 1
    assert {"location", "timestamp", "service", "request"} <= set(line)
    assert token.split(".")[1] not in json.dumps(line)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic eDp5", "Bearer x.y.z"])
def test_bad_headers_are_401(authorization: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    denied(request(authorization), capsys)


def test_two_authorization_headers_are_refused(
    pool: Pool, login: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    good = f"Bearer {pool.issue(login['AccessToken'], tenant='acme')}"
    assert denied(request([good, good]), capsys)["reason"] == "2 Authorization headers"
    event = request(None, headers={"AUTHORIZATION": good}, multiValueHeaders=None)
    assert authorizer.handler(event, None)["context"]["tenant"] == "acme"


# -- the policy ----------------------------------------------------------------------------------------------------

ORDINARY = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"), ("POST", "/v1/messages"), ("DELETE", "/v1/whatever"), ("GET", "/nothing/here"),
]  # fmt: skip
MODELS = [("GET", "/v1/models"), ("GET", "/v1/models/small"), ("GET", "/v1/models/org/admin/small")]
USAGE = [("GET", "/v1/usage")]
ADMINISTRATION = [("GET", "/admin/v1/status"), ("GET", "/admin/v1/tenants/acme")]


def routes_of(identity: Identity, seen: tuple[str, str]) -> set[tuple[str, str]]:
    """Of all routes those that API Gateway lets `identity` call, with the policy that was made for the route `seen`."""
    answer = Answer.of(authorizer.allow(identity, f"{ARN}/prod/{seen[0]}{seen[1]}"))
    every = [*ORDINARY, *MODELS, *USAGE, *ADMINISTRATION]
    return {route for route in every if answer.allows(f"{ARN}/prod/{route[0]}{route[1]}")}


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ({"invoke"}, [*ORDINARY, *MODELS, *USAGE]),
        ({"models.read"}, MODELS),
        ({"usage.read"}, USAGE),
        ({"models.read", "usage.read"}, [*MODELS, *USAGE]),
        ({"invoke", "admin"}, [*ORDINARY, *MODELS, *USAGE, *ADMINISTRATION]),
        (set(), []),
    ],
)
def test_a_cached_policy_is_right_on_every_route(scopes: set[str], allowed: list[tuple[str, str]]) -> None:
    identity = Identity("acme", "ann", scopes=granted(scopes), expires_at=1)
    for seen in (ORDINARY[0], MODELS[0], USAGE[0], ADMINISTRATION[0]):
        assert routes_of(identity, seen) == set(allowed)


@pytest.mark.parametrize("scopes", [{"invoke"}, {"models.read"}, {"invoke", "admin"}, set()])
def test_a_policy_is_for_its_own_api_and_stage_only(scopes: set[str]) -> None:
    identity = Identity("acme", "ann", scopes=granted(scopes), expires_at=1)
    answer = Answer.of(authorizer.allow(identity, f"{ARN}/prod/GET/v1/models"))
    for other in (f"{ARN}/dev/GET/v1/models", ARN.replace("abcdef1234", "other") + "/prod/GET/v1/models"):
        assert not answer.allows(other)


@pytest.mark.parametrize(
    ("arn", "stage"),
    [
        ("arn:aws:execute-api:us-east-1:1:api/prod/GET/", "arn:aws:execute-api:us-east-1:1:api/prod"),
        ("arn:aws-cn:execute-api:cn-north-1:1:a/s/GET/x", "arn:aws-cn:execute-api:cn-north-1:1:a/s"),
        ("arn:aws:execute-api:eu-west-1:1:a/s/GET/x:y/execute-api:z", "arn:aws:execute-api:eu-west-1:1:a/s"),
        ("arn:aws:execute-api:eu-west-1:1:a/s/GET/*", "arn:aws:execute-api:eu-west-1:1:a/s"),
    ],
)
def test_the_callers_path_does_not_shape_the_policy(arn: str, stage: str) -> None:
    policy = authorizer.allow(Identity("t", "u", scopes=granted(["invoke"]), expires_at=1), arn)["policyDocument"]
    assert [(s["Effect"], s["Resource"]) for s in policy["Statement"]] == [
        ("Allow", [f"{stage}/*/*"]),
        ("Deny", [f"{stage}/GET/admin/*"]),
    ]


@given(
    st.sampled_from(["*", "arn:aws:*", "prod/*/*", "a/b", "a:b", "ü*", "ＡＤＭＩＮ", "admin", "*/admin/*", "?"]),
    st.sampled_from(["*", "../x", "a:b/c", "日本", "admin", "${aws:username}"]),
)
def test_names_are_inert(tenant: str, user: str) -> None:
    strange = Identity(tenant, user, tenant, user, tenant, granted(["models.read"]), 1)
    plain = Identity("acme", "ann", scopes=granted(["models.read"]), expires_at=1)
    arn = f"{ARN}/prod/GET/v1/models"
    assert authorizer.allow(strange, arn)["policyDocument"] == authorizer.allow(plain, arn)["policyDocument"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", authorizer.allow(strange, arn)["principalId"])


def test_principals_do_not_collide() -> None:
    arn = f"{ARN}/prod/GET/x"
    one = authorizer.allow(Identity("ab", "c"), arn)["principalId"]
    other = authorizer.allow(Identity("a", "bc"), arn)["principalId"]
    assert one != other


def test_an_unreachable_issuer_is_our_fault_not_the_callers(
    pool: Pool, login: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOLLGATE_JWKS_URL", "http://127.0.0.1:1/keys")
    authorizer.verifier.cache_clear()
    with pytest.raises(KeysUnavailable):
        authorizer.handler(request(f"Bearer {pool.issue(login['AccessToken'], tenant='acme')}"), None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["message"] for line in lines] == [
        "signing keys could not be fetched",
        "credentials cannot be verified",
    ]
    denied(request("Bearer x.y.z"), capsys)


def test_no_hostile_token_is_accepted_or_makes_the_function_ask_anybody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []
    with answering(200, key_set()) as url:
        for name in authorizer_variables():
            monkeypatch.delenv(name, raising=False)
        settings = {"TOLLGATE_ISSUER": ISSUER, "TOLLGATE_CLIENT_IDS": CLIENT, "TOLLGATE_JWKS_URL": url}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        authorizer.verifier.cache_clear()
        assert authorizer.handler(request(f"Bearer {token()}"), None)["context"]["tenant"] == "acme"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words: asked.append(words))
    for number, make in enumerate(HOSTILE.values()):
        event = request(f"Bearer {make()}")
        event["requestContext"]["identity"]["sourceIp"] = (
            f"2001:db8:{number:x}::1"  # none hides behind another's bucket
        )
        denied(event, capsys)
    assert not asked


def authorizer_variables() -> list[str]:
    return [name for name in os.environ if name.startswith(("TOLLGATE_", "AWS_ENDPOINT"))]


def test_moto_serves_the_pools_keys(pool: Pool) -> None:
    assert Jwks(f"{pool.endpoint}/{pool.id}/.well-known/jwks.json").find("dummy", "RS256") is not None


# -- fetching keys over HTTP ---------------------------------------------------------------------------------------


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys?v=1"
    finally:
        server.shutdown()
        server.server_close()


def test_a_key_set_is_fetched() -> None:
    with answering(200, key_set()) as url:
        assert fetch_document(url) == key_set()
        assert Jwks(url).ready()


@pytest.mark.parametrize(
    ("status", "body", "headers", "reason"),
    [
        (500, b"", {}, "status 500"),
        (302, b"", {"Location": "https://evil.example/keys"}, "status 302"),
        (301, key_set(), {"Location": "/keys"}, "status 301"),
        (200, b" " * 10_000_000, {}, "more than"),
        (200, b" " * 300_000, {"Transfer-Encoding": "chunked"}, "Incomplete|ValueError|more than"),
        (200, b"half", {"Content-Length": "100"}, "96 bytes short"),
        (200, b"zz\r\n", {"Transfer-Encoding": "chunked"}, "Incomplete"),
    ],
)
def test_a_bad_answer_is_no_key_set(status: int, body: bytes, headers: dict[str, str], reason: str) -> None:
    with answering(status, body, **headers) as url, pytest.raises(FetchFailed, match=reason):
        fetch_document(url)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_an_answer_that_trickles_ends_in_time(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes soon enough; together they would take for ever, and no newer keys would ever be looked for."""
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(head)
                for _ in range(200):
                    connection.sendall(b"x")
                    time.sleep(0.05)

        threading.Thread(target=trickle, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(FetchFailed):
            fetch_document(f"http://127.0.0.1:{listener.getsockname()[1]}/keys")
        assert time.monotonic() - began < 2
