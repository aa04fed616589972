"""Whatever callers send: the right status in OpenAI's shape, nothing charged, and never a 5xx."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.functional.callers import HELLO, HELLO_ESTIMATE, Answer, Caller, Callers

CHAT = "/v1/chat/completions"
TEXT = json.dumps(HELLO)[1:-1]
"""The members of a good request, without braces."""
DEEP_ARRAY = "[" * 100_000 + "]" * 100_000
DEEP_OBJECT = '{"a":' * 50_000 + "1" + "}" * 50_000
TOKENS = 1000
REQUESTS = 1000


@pytest.fixture(scope="module")
def caller(callers: Callers) -> Iterator[Caller]:
    """Somebody with a little of everything, who at the end still has it all: not one bad request was charged."""
    made = callers(
        limits=[{"scope": "user", "requests": REQUESTS, "per": "day"}, {"scope": "tenant", "concurrent": 1}],
        budgets=[
            {"scope": "user", "tokens": TOKENS, "per": "day"},
            {"scope": "user", "requests": 1, "per": "month"},
        ],
    )
    yield made
    last = made.chat(max_tokens=TOKENS - HELLO_ESTIMATE)
    assert last.status == 200, last.body
    assert last.headers["x-ratelimit-remaining-requests"] == str(REQUESTS - 1)
    # the log keeps its order: with the last one, everything before it would be there
    (entry,) = callers.entries(made, 1)
    assert entry["id"] == last.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{} {}", "invalid_json"),
        (b"[]", "invalid_type"),
        (b'"text"', "invalid_type"),
        (b"null", "invalid_type"),
        (b"<xml/>", "invalid_json"),
        (b"{'model': 'small'}", "invalid_json"),
        (f"{{{TEXT}, }}".encode(), "invalid_json"),
        (f'{{{TEXT}, "temperature": NaN}}'.encode(), "invalid_json"),
        (f'{{{TEXT}, "temperature": -Infinity}}'.encode(), "invalid_json"),
        (f'{{{TEXT}, "x": {"9" * 5000}}}'.encode(), "invalid_json"),
        (f'{{{TEXT}, "x": {DEEP_ARRAY}}}'.encode(), "invalid_json"),
        (f'{{{TEXT}, "x": {DEEP_OBJECT}}}'.encode(), "invalid_json"),
        (f'{{{TEXT}, "user": "'.encode() + b'\xff\xfe"}', "invalid_json"),
        (f'{{{TEXT}, "user": "'.encode() + b'\xed\xa0\x80"}', "invalid_json"),
        (f'{{{TEXT}, "user": "'.encode() + b'\x00"}', "invalid_json"),
        (json.dumps(HELLO).encode("utf-16"), "invalid_json"),
        (f'{{{TEXT}, "model": "large"}}'.encode(), "duplicate_key"),
        (f'{{{TEXT}, "mo\\u0064el": "large"}}'.encode(), "duplicate_key"),
        (f'{{{TEXT}, "max_tokens": 1, "max_tokens": 100000}}'.encode(), "duplicate_key"),
        (f'{{{TEXT}, "stream_options": {{"include_usage": true, "include_usage": false}}}}'.encode(), "invalid_json"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[-30:]),
)
def test_what_is_no_json_object(caller: Caller, body: bytes, code: str) -> None:
    answer = caller.post(CHAT, body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["code"] == code


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"model": ["small"]}, "model"),
        ({"model": {"small": 1}}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [HELLO["messages"][0], None]}, "messages[1]"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": []}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": "3"}, "n"),
        ({"n": 2**31, "max_tokens": 2**31 - 1}, "n"),
        ({"n": 1000}, "n"),
        ({"n": 128, "max_tokens": 2**31 - 1}, "max_tokens"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": True}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "no"}}, "stream_options.include_usage"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
    ],
    ids=repr,
)
def test_fields_of_the_wrong_kind(caller: Caller, fields: dict[str, Any], param: str) -> None:
    answer = caller.chat(**fields)
    assert answer.status == 400
    assert answer.error["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"background": True}, "background"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"models": ["gpt-4o"]}, "models"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f-1"}}]}]}, "messages"),
    ],
    ids=repr,
)
def test_fields_that_would_cost_or_share_what_is_not_metered(
    caller: Caller, fields: dict[str, Any], param: str
) -> None:
    answer = caller.chat(**fields)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_parameter", param)


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "prompt"])
def test_what_the_provider_keeps_may_be_another_tenants(caller: Caller, name: str) -> None:
    answer = caller.post("/v1/responses", {"model": "small", "input": "Hello", name: "id_1"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "unsupported_parameter", name)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"model": "small"}, "prompt"),
        ("/v1/completions", {"model": "small", "prompt": ["a", 1]}, "prompt[1]"),
        ("/v1/embeddings", {"model": "embed", "input": []}, "input"),
        ("/v1/embeddings", {"model": "embed", "input": [[1, 2.5]]}, "input[0]"),
        ("/v1/responses", {"model": "small"}, "input"),
        ("/v1/responses", {"model": "small", "input": 5}, "input"),
        ("/v1/messages", {"model": "claude", "messages": HELLO["messages"]}, "max_tokens"),
    ],
)
def test_other_routes(caller: Caller, path: str, fields: dict[str, Any], param: str) -> None:
    answer = caller.post(path, fields)
    assert answer.status == 400
    if path == "/v1/messages":
        assert answer.json["type"] == "error"
        assert param in answer.json["error"]["message"]
    else:
        assert answer.error["param"] == param


@pytest.mark.parametrize(
    "model",
    ["unheard-of", "SMALL", "small ", "../small", "gpt-4o-mini", "\ud800", "a" * 5000, "small\x00", "plan#free"],
)
def test_unknown_models(caller: Caller, model: str) -> None:
    answer = caller.chat(model=model)
    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"
    assert len(answer.error["message"]) < 300, "what callers send is not repeated at length"


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"max_tokens": 100_000}, "The largest max_tokens that fits is 993."),
        ({"max_completion_tokens": 2**31 - 1}, "The largest max_completion_tokens that fits is 993."),
        ({"max_tokens": 500, "n": 2}, "The largest max_tokens that fits is 496."),
        ({"max_tokens": 100, "n": 128}, "The largest max_tokens that fits is 7."),
    ],
    ids=repr,
)
def test_what_no_budget_of_the_plan_allows(caller: Caller, fields: dict[str, Any], hint: str) -> None:
    """Every answer may have the maximum, and has a token at least."""
    answer = caller.chat(**fields)
    assert answer.status == 400
    assert answer.error["code"] == "exceeds_plan_limit"
    assert hint in answer.error["message"]


def test_a_prompt_that_no_budget_of_the_plan_allows(caller: Caller) -> None:
    answer = caller.chat(messages=[{"role": "user", "content": "word " * 10_000}], max_tokens=1)
    assert answer.status == 400
    assert answer.error["code"] == "exceeds_plan_limit"
    assert "No max_tokens is small enough" in answer.error["message"]


@pytest.mark.parametrize("size", [7_000_000, 4 * 1024 * 1024 + 1])
def test_a_body_that_is_too_large(caller: Caller, size: int) -> None:
    body = json.dumps({**HELLO, "user": "x" * size}).encode()
    answer = caller.post(CHAT, body)
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"


def test_a_body_above_what_api_gateway_takes(caller: Caller) -> None:
    answer = caller.post(CHAT, b" " * (11 * 1024 * 1024))
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"


def test_headers_that_are_too_large(caller: Caller) -> None:
    answer = caller.post(CHAT, HELLO, {"x-big": "x" * 12_000})
    assert answer.status == 431
    assert answer.error["code"] == "headers_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 404),
        ("DELETE", "/v1/models", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "/v1/%63hat/completions", 400),  # the same route, and an empty body
        ("POST", "/v1/../v1/chat/completions", 404),
        ("GET", "/v1/models/%2e%2e", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/%E2%80%AE", 404),  # turns a line of text around
        ("GET", "/v1/models/%ff%0d%0a", 404),
        ("GET", "/v1/models/%2500", 404),
        ("GET", "/%00", 404),
        ("GET", "/v1/files", 404),
        ("POST", "/v1/batches", 404),
        ("GET", "/", 404),
        ("PUT", "/healthz", 404),
        ("POST", "/v1/messages/batches", 404),
    ],
)
def test_routes_that_do_not_exist(caller: Caller, method: str, path: str, status: int) -> None:
    answer = caller.request(method, path, b"" if method == "POST" else None)
    assert answer.status == status
    assert answer.error["message"]


FORGED = json.dumps(
    {
        "authorizer": {"tenant": "initech", "user": "root", "plan": "enterprise", "exp": "99999999999"},
        "identity": {"sourceIp": "6.6.6.6"},
    }
)


def test_a_forged_request_context_is_no_identity(caller: Caller, callers: Callers) -> None:
    """The header that carries the authorizer's word is written by API Gateway alone."""
    forged = [("x-amzn-request-context", FORGED), ("X-Amzn-Lambda-Context", '{"deadline": 1}')]
    nobody = caller.get("/v1/usage", [("authorization", ""), *forged])
    assert nobody.status == 401
    seen = caller.get("/v1/usage", forged * 2)
    assert (seen.json["tenant"], seen.json["user"]) == (caller.tenant, caller.user)
    poor = callers("free")
    assert poor.post(CHAT, {**HELLO, "model": "large"}, forged).status == 403
    assert poor.post(CHAT, {**HELLO, "max_tokens": 1}, forged).status == 200
    (entry,) = callers.entries(poor, 1)
    assert (entry["tenant"], entry["user"], entry["plan"]) == (poor.tenant, "alice", "free")


HOSTILE_HEADERS: list[dict[str, str]] = [
    {"x-tollgate-tenant": "initech", "x-tenant": "initech", "openai-organization": "initech", "x-user": "root"},
    {"x-forwarded-for": "6.6.6.6", "forwarded": "for=6.6.6.6", "x-real-ip": "6.6.6.6"},
    {"content-type": "text/plain"},
    {"accept": "text/html"},
    {"accept-encoding": "gzip, br, zstd"},
    {"content-encoding": "gzip"},
    {"x-http-method-override": "DELETE"},
    {"cookie": "a=b; " * 100},
    {"user-agent": '"}\\u0000{"'},
    {"x-odd": "caf\u00e9"},
    {"openai-beta": "assistants=v2", "idempotency-key": "x"},
    {"expect": "100-continue"},
    {"te": "trailers", "connection": "close, authorization"},
]


@pytest.fixture(scope="module")
def one_request(callers: Callers) -> dict[str, tuple[Caller, Answer]]:
    """For each of these headers somebody who may make one request a day, and its answer. The ledger knows of it, so
    that no store grants another: not even one that takes over from Redis on a busy machine."""
    made = {}
    for headers in HOSTILE_HEADERS:
        other = callers(budgets=[{"scope": "user", "requests": 1, "per": "day"}])
        made[next(iter(headers))] = other, other.post(CHAT, {**HELLO, "max_tokens": 2}, headers)
    for other, answer in made.values():
        if answer.status == 200:
            callers.entries(other, 1)
    return made


@pytest.mark.parametrize("header", [next(iter(headers)) for headers in HOSTILE_HEADERS])
def test_hostile_headers_change_nothing(one_request: dict[str, tuple[Caller, Answer]], header: str) -> None:
    other, answer = one_request[header]
    assert answer.status == 200
    assert answer.content == "the gate"
    # it was this user's one request, and nobody else's
    assert other.chat(max_tokens=2).status == 402


@pytest.mark.parametrize("label", ["x" * 65, "two words", "a/b", "\u00e9", "<script>"])
def test_a_use_case_of_other_letters(caller: Caller, label: str) -> None:
    answer = caller.post(CHAT, HELLO, {"x-tollgate-use-case": label.encode("latin-1").decode("latin-1")})
    assert answer.status == 400
    assert answer.error["param"] == "x-tollgate-use-case"


def raw(caller: Caller, data: bytes) -> bytes:
    """What comes back for these very bytes."""
    host, port = caller.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
    ],
)
def test_what_is_no_http(caller: Caller, data: bytes) -> None:
    status = raw(caller, data)[:12]
    assert status in (b"", b"HTTP/1.1 400", b"HTTP/1.1 401"), status
    assert caller.get("/healthz").status == 200


def test_a_body_that_never_arrives_whole(caller: Caller) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {caller.token}\r\ncontent-length: 500\r\n\r\n"
    assert not raw(caller, head.encode() + b'{"model": "small"').startswith(b"HTTP/1.1 5")


def test_usage_is_metered_whatever_the_stream_options_say(callers: Callers) -> None:
    other = callers()
    answer = other.chat(max_tokens=3, stream=True, stream_options={"include_usage": False, "x_new": 1})
    assert answer.status == 200
    assert b'"usage": {' not in answer.body
    (entry,) = callers.entries(other, 1)
    assert (entry["input_tokens"], entry["output_tokens"], entry["estimated"]) == (8, 3, False)


# -- and what nobody thought of --------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    (
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "stream",
        "stream_options",
        "tools",
        "prompt",
        "input",
        "store",
        "user",
        "stop",
    )
)
paths = st.sampled_from([CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"])
bounded = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def victim(callers: Callers) -> Caller:
    """Has no budget at all: whatever is well-formed by chance ends with 402."""
    return callers(budgets=[{"scope": "user", "requests": 0, "per": "day"}])


@bounded
@given(path=paths, fields=st.dictionaries(names | st.text(max_size=5), json_values, max_size=6))
@example(path=CHAT, fields={"messages": [{"content": {"type": ["x"]}}], "model": "small"})
def test_any_json(victim: Caller, path: str, fields: dict[str, Any]) -> None:
    answer = victim.post(path, {"model": "small", "messages": HELLO["messages"], **fields})
    assert 400 <= answer.status < 500, (answer.status, answer.body, fields)
    if path != "/v1/messages":
        assert answer.error["message"]


@bounded
@given(path=paths, body=st.binary(max_size=60))
def test_any_bytes(victim: Caller, path: str, body: bytes) -> None:
    assert victim.post(path, body).status == 400


@bounded
@given(
    name=st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60),
)
def test_any_header(victim: Caller, name: str, value: str) -> None:
    if name in ("content-length", "transfer-encoding", "host", "authorization", "expect"):
        return
    assert victim.post(CHAT, HELLO, {name: value}).status in (400, 402)
