"""The proxy behind the real Lambda Web Adapter (`make lwa-check` builds it): streaming, context, deadline."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.functional.web_adapter import CONTENT_TYPE, AdaptedFunction, adapter_is_built, api_event
from tollgate.domain.identity import Identity, granted

pytestmark = pytest.mark.lwa

CHUNKS = 5
PAUSE_S = 0.2
ACME = Identity("acme", "ana", "pro", scopes=granted(["invoke"]), expires_at=int(time.time()) + 3600).to_context()
POLICY = """
version: 1
upstreams:
  slow: {api: openai, base_url: "http://127.0.0.1:%d/v1"}
models:
  slow:   {route: [{upstream: slow, model: slow}], price: {input: 1, output: 2}}
  stalls: {route: [{upstream: slow, model: stalls}], price: {input: 1, output: 2}}
plans:
  pro: {models: [slow, stalls], limits: [{scope: user, requests: 1000, per: minute}]}
tenants:
  acme: {plan: pro}
  other: {plan: pro}
"""


class SlowModel(BaseHTTPRequestHandler):
    """Streams five events, one each 0.2 s; the model `stalls` stops after the first."""

    protocol_version = "HTTP/1.1"
    made: list[float]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(CHUNKS):
            self._event(
                {
                    "id": "c",
                    "object": "chat.completion.chunk",
                    "choices": [{"index": 0, "delta": {"content": f"w{i} "}}],
                }
            )
            if body["model"] == "stalls":
                time.sleep(20)
                return
            time.sleep(PAUSE_S)
        usage = {"prompt_tokens": 7, "completion_tokens": CHUNKS, "total_tokens": 7 + CHUNKS}
        self._event({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self._send(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, payload: object) -> None:
        self._send(b"data: " + json.dumps(payload).encode() + b"\n\n")
        self.made.append(time.monotonic())

    def _send(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def made() -> list[float]:
    """When the model made each event (monotonic)."""
    return []


@pytest.fixture(scope="module")
def function(made: list[float], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdaptedFunction]:
    assert adapter_is_built(), "run `make lwa-check`, which builds the adapter first"
    model = ThreadingHTTPServer(("127.0.0.1", 0), type("Model", (SlowModel,), {"made": made}))
    model.daemon_threads = True
    threading.Thread(target=model.serve_forever, daemon=True).start()
    policy: Path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    policy.write_text(POLICY % model.server_port)
    with AdaptedFunction({"TOLLGATE_STORE_URL": "memory://", "TOLLGATE_POLICY": str(policy)}) as running:
        yield running
    model.shutdown()
    model.server_close()


def chat(model: str = "slow", *, context: dict[str, str] = ACME, **headers: str) -> dict[str, object]:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    return api_event("POST", "/v1/chat/completions", body=json.dumps(body).encode(), headers=headers, context=context)


def test_chunks_arrive_as_they_are_made(function: AdaptedFunction, made: list[float]) -> None:
    made.clear()
    invocation = function.invoke(chat())
    arrived = [(when, data) for when, data in invocation.chunks() if b'"content"' in data]
    assert invocation.headers["lambda-runtime-function-response-mode"] == "streaming"
    assert invocation.headers["content-type"] == CONTENT_TYPE
    assert invocation.status == 200
    assert invocation.answer_headers["content-type"].startswith("text/event-stream")
    assert len(arrived) == CHUNKS
    for (when, _), was_made in zip(arrived, made, strict=False):
        assert when - was_made < PAUSE_S / 2
    assert arrived[0][0] < made[-1]


def test_the_usage_record_is_there_when_the_last_byte_is(function: AdaptedFunction) -> None:
    before = len(function.records())
    function.invoke(chat()).body()
    time.sleep(0.05)  # of the pipe's reader, not of the proxy
    opened, closed = function.records()[before:]
    assert (opened["event"], closed["event"]) == ("usage.open", "usage.close")
    assert (closed["tenant"], closed["user"], closed["outcome"]) == ("acme", "ana", "ok")
    assert (closed["input_tokens"], closed["output_tokens"]) == (7, CHUNKS)


def test_a_forged_context_is_overwritten(function: AdaptedFunction) -> None:
    forged = json.dumps({"authorizer": {**ACME, "tenant": "other"}, "identity": {"sourceIp": "203.0.113.9"}})
    before = len(function.records())
    invocation = function.invoke(chat(**{"x-amzn-request-context": forged, "X-Amzn-Request-Context": forged}))
    invocation.body()
    assert invocation.status == 200
    time.sleep(0.05)
    assert {record["tenant"] for record in function.records()[before:]} == {"acme"}


def test_an_expired_identity_is_refused_although_the_authorizer_cached_it(function: AdaptedFunction) -> None:
    expired = Identity("acme", "ana", "pro", scopes=granted(["invoke"]), expires_at=int(time.time()) - 1).to_context()
    invocation = function.invoke(chat(context=expired))
    assert json.loads(invocation.body())["error"]["code"] == "invalid_api_key"
    assert invocation.status == 401


def test_a_request_without_a_context_is_nobody(function: AdaptedFunction) -> None:
    invocation = function.invoke(chat(context={}))
    invocation.body()
    assert invocation.status == 401


def test_five_seconds_before_the_deadline_the_stream_ends_with_an_error_and_a_record(function: AdaptedFunction) -> None:
    before, started = len(function.records()), time.monotonic()
    invocation = function.invoke(chat("stalls"), timeout_s=7)
    body = invocation.body()
    assert 1.5 < time.monotonic() - started < 7
    assert body.startswith(b'data: {"id"')
    last = json.loads(body.strip().rpartition(b"data: ")[2])
    assert last["error"]["code"] == "upstream_timeout"
    time.sleep(0.05)
    closed = function.records()[before:][-1]
    assert (closed["event"], closed["outcome"], closed["estimated"]) == ("usage.close", "timed_out", True)
    assert closed["output_tokens"] > 0


def test_unknown_routes_and_methods_are_answered_by_the_proxy(function: AdaptedFunction) -> None:
    unknown = function.invoke(api_event("POST", "/v1/files", context=ACME))
    assert json.loads(unknown.body())["error"]["code"] == "unknown_url"
    assert unknown.status == 404
    wrong = function.invoke(api_event("DELETE", "/v1/chat/completions", context=ACME))
    wrong.body()
    assert wrong.status == 405


def test_models_and_health(function: AdaptedFunction) -> None:
    models = function.invoke(api_event("GET", "/v1/models", context=ACME))
    assert {model["id"] for model in json.loads(models.body())["data"]} == {"slow", "stalls"}
    health = function.invoke(api_event("GET", "/healthz", context={}))
    health.body()
    assert health.status == 200
