"""`tollgate serve`, as in a container: the authorizer's code runs in the process, and no header is believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import yaml

from tests import tokens
from tests.functional.callers import HELLO, Caller
from tests.functional.scripted import DONE_EVENT, USAGE_EVENT, Exchange, Gate, ScriptedUpstream, completion, delta
from tests.functional.stack import ROOT, tollgate
from tests.functional.test_dev_stack import alive, descendants
from tests.waiting import PATIENCE_S, wait
from tollgate.domain.records import UsageClose, UsageOpen
from tollgate.local.children import free_port

CHAT = "/v1/chat/completions"
IP_LIMIT = 3


def policy(upstream: ScriptedUpstream, folder: Path, **common: Any) -> str:
    """A policy file: one model, and two tenants that may use it; `common` are limits for everyone."""
    document = {
        "version": 1,
        "upstreams": {"scripted": {"api": "openai", "base_url": upstream.base_url}},
        "models": {"small": {"route": [{"upstream": "scripted", "model": "real-name"}], "price": {"input": 1}}},
        "plans": {"open": {"models": ["small"], "limits": [{"scope": "user", "requests": 100_000, "per": "day"}]}},
        "global": common,
        "tenants": {"acme": {"plan": "open"}, "globex": {"plan": "open"}},
    }
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


class Served:
    """`tollgate serve` on a free port, with the tests' own issuer."""

    def __init__(self, policy: str, upstream: ScriptedUpstream, *words: str, **env: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._words = words
        names = ("AWS_", "TOLLGATE_", "REDIS_", "LOCALSTACK_")
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(names)},
            "TOLLGATE_STORE_URL": "memory://",
            "TOLLGATE_POLICY": policy,
            "TOLLGATE_ISSUER": tokens.ISSUER,
            "TOLLGATE_CLIENT_IDS": tokens.CLIENT,
            "TOLLGATE_JWKS_URL": upstream.base_url + "/jwks",
            **env,
        }

    def __enter__(self) -> Served:
        self._out = tempfile.TemporaryFile()
        command = tollgate("serve", "--port", str(self.port), *self._words)
        self.process = subprocess.Popen(command, stdout=self._out, stderr=subprocess.STDOUT, env=self.env, cwd=ROOT)
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self.caller().get("/healthz").status == 200:
                    return self
            except ConnectionError:
                pass
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < until, self.output()
            time.sleep(0.02)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self._out.close()

    def caller(self, tenant: str = "acme", user: str = "alice", **claims: Any) -> Caller:
        return Caller(self.url, tenant, user, tokens.token(tokens.claims(tenant=tenant, sub=user, **claims)))

    def output(self) -> str:
        return os.pread(self._out.fileno(), 10_000_000, 0).decode()

    def records(self, event: str) -> list[dict[str, Any]]:
        """The usage records that it wrote on standard output."""
        lines = [json.loads(line) for line in self.output().splitlines() if line.startswith('{"event":"usage.')]
        return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def served(upstream: ScriptedUpstream, folder: Path) -> Iterator[Served]:
    with Served(policy(upstream, folder), upstream) as running:
        yield running


def test_a_call_and_its_records(served: Served, upstream: ScriptedUpstream) -> None:
    caller = served.caller(user="recorded")
    with upstream.play() as requests, caller.sdk() as client:
        assert client.chat.completions.create(**HELLO).choices[0].message.content == "Hello"
        assert [model.id for model in client.models.list()] == ["small"]
    assert requests[0].json["model"] == "real-name"
    (opened,) = [record for record in served.records("usage.open") if record["user"] == "recorded"]
    (closed,) = [record for record in served.records("usage.close") if record["user"] == "recorded"]
    assert opened["id"] == closed["id"]
    assert (closed["tenant"], closed["outcome"], closed["input_tokens"], closed["output_tokens"]) == (
        "acme",
        "ok",
        7,
        3,
    )
    assert UsageOpen.parse(opened).as_dict() == opened  # every field of the schema is written, and no other
    close = UsageClose.parse(closed).as_dict()
    assert json.loads(json.dumps(close)) == closed
    assert "Hello" not in served.output()


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer ", "Bearer garbled", "Basic YTpi", f"Bearer {tokens.token(tokens.claims(exp=int(time.time()) - 1))}"],
    ids=["none", "empty", "garbled", "basic", "expired"],
)
def test_no_token_no_service(served: Served, authorization: str) -> None:
    answer = served.caller().post(CHAT, HELLO, {"authorization": authorization})
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_forged_request_context_is_only_a_header(served: Served) -> None:
    """On Lambda this header says who calls. Here a client wrote it, and it says nothing."""
    context = {
        "authorizer": {"tenant": "globex", "user": "root", "plan": "open", "exp": "99999999999"},
        "identity": {"sourceIp": "6.6.6.6"},
    }
    forged = {"x-amzn-request-context": json.dumps(context), "x-amzn-lambda-context": '{"deadline": 1}'}
    assert served.caller().get("/v1/usage", {"authorization": "", **forged}).status == 401
    seen = served.caller(user="honest").get("/v1/usage", forged).json
    assert (seen["tenant"], seen["user"]) == ("acme", "honest")
    # nor does the forged deadline cut the answer short
    assert served.caller().post(CHAT, HELLO, forged).status == 200


def test_a_flood_of_forged_tokens_is_refused_without_a_look(upstream: ScriptedUpstream, folder: Path) -> None:
    with Served(policy(upstream, folder), upstream) as running:
        good = running.caller()
        assert good.chat().status == 200
        head, body, signature = good.token.split(".")
        # the last characters of an RSA signature are padding: change the first
        forged = [f"{head}.{body}.{'AB'[signature[0] == 'A']}{a}{b}{signature[3:]}" for a in "abcdef" for b in "uvwxyz"]
        answers = [good.get("/v1/models", {"authorization": f"Bearer {token}"}) for token in forged]
        statuses = [answer.status for answer in answers]
        assert statuses[:10] == [401] * 10
        assert statuses[-1] == 429
        assert answers[-1].headers["x-ratelimit-type"] == "Local-IP"
        assert int(answers[-1].headers["retry-after"]) >= 1
        # a token that was verified before is known, whoever else is behind this address
        assert good.chat().status == 200


def test_sigterm_finishes_the_stream(upstream: ScriptedUpstream, folder: Path) -> None:
    gate = Gate()

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send(delta("one"))
        gate.wait()
        exchange.send(delta("two") + USAGE_EVENT + DONE_EVENT)
        exchange.end_stream()

    question = json.dumps({**HELLO, "stream": True}).encode()
    with Served(policy(upstream, folder), upstream) as running, upstream.play(script):
        with running.caller().begin("POST", CHAT, question) as response:
            received = response.read1(65536)
            running.process.send_signal(signal.SIGTERM)

            def refuses() -> bool:
                try:
                    running.caller().get("/healthz")
                except ConnectionError:
                    return True
                return False

            wait(refuses)
            assert running.process.poll() is None
            gate.open()
            received += response.read()
        assert received == delta("one") + delta("two") + DONE_EVENT
        assert running.process.wait(10) in (0, -signal.SIGTERM)
        (closed,) = running.records("usage.close")
        assert (closed["outcome"], closed["output_tokens"], closed["estimated"]) == ("ok", 3, False)


def test_a_caller_who_leaves_is_billed_for_what_was_made(served: Served, upstream: ScriptedUpstream) -> None:
    gate = Gate()

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send(delta("one"))
        gate.wait()
        exchange.send(delta("two") + USAGE_EVENT + DONE_EVENT)
        exchange.end_stream()

    with upstream.play(script):
        with served.caller(user="gone").begin("POST", CHAT, json.dumps({**HELLO, "stream": True}).encode()) as response:
            response.read1(100)
        gate.open()
        wait(lambda: any(record["user"] == "gone" for record in served.records("usage.close")))
    (closed,) = [record for record in served.records("usage.close") if record["user"] == "gone"]
    assert (closed["input_tokens"], closed["output_tokens"], closed["estimated"]) == (7, 3, False)


def test_the_address_is_the_sockets(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Nobody is trusted to say otherwise, so every request here comes from one address."""
    limited = policy(upstream, tmp_path, limits=[{"scope": "ip", "requests": IP_LIMIT, "per": "day"}])
    with Served(limited, upstream) as running:
        statuses = [
            running.caller(user=f"user-{i}").post(CHAT, HELLO, {"x-forwarded-for": f"203.0.113.{i}"}).status
            for i in range(IP_LIMIT + 1)
        ]
        assert statuses == [200] * IP_LIMIT + [429]
        refused = running.caller("globex").chat()
        assert refused.headers["x-ratelimit-type"] == "Local-IP"


def test_a_trusted_proxy_says_the_address(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """The last address that no trusted proxy has added; what stands before it, the client has made up."""
    limited = policy(upstream, tmp_path, limits=[{"scope": "ip", "requests": IP_LIMIT, "per": "day"}])
    with Served(limited, upstream, TOLLGATE_TRUSTED_PROXIES="127.0.0.0/8, 10.1.0.0/16") as running:

        def ask(forwarded: str) -> int:
            headers = {"x-forwarded-for": forwarded} if forwarded else {}
            return running.caller().post(CHAT, HELLO, headers).status

        lines = ["203.0.113.1", "6.6.6.6, 203.0.113.1", "203.0.113.1, 10.1.2.3", "1.1.1.1,203.0.113.1"]
        assert [ask(line) for line in lines] == [200, 200, 200, 429]
        assert [ask("203.0.113.2") for _ in range(IP_LIMIT + 1)] == [200] * IP_LIMIT + [429]
        assert ask("") == 200
        # an IPv6 customer has a /64
        addresses = ["2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1:ffff::", "2001:db8:0:1::3", "2001:db8:0:2::1"]
        assert [ask(address) for address in addresses] == [200, 200, 200, 429, 200]
        assert ask("not an address") in (200, 400)


def test_no_more_in_flight_than_allowed(upstream: ScriptedUpstream, folder: Path) -> None:
    gate = Gate()

    def script(exchange: Exchange) -> None:
        gate.wait()
        exchange.whole(200, completion())

    with (
        Served(policy(upstream, folder), upstream, TOLLGATE_MAX_IN_FLIGHT="2") as running,
        upstream.play(script) as requests,
        ThreadPoolExecutor(2) as threads,
    ):
        held = [threads.submit(running.caller().chat) for _ in range(2)]
        wait(lambda: len(requests) == 2)
        refused = running.caller().chat()
        healthy = running.caller().get("/healthz")
        gate.open()
        assert [future.result().status for future in held] == [200, 200]
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.error["code"] == "unavailable"
        assert healthy.status == 200
        assert running.caller().chat().status == 200


@pytest.mark.parametrize(("mode", "status"), [("closed", 503), ("open", 200), ("", 503)])
def test_no_store_answers(upstream: ScriptedUpstream, folder: Path, mode: str, status: int) -> None:
    """There is no Redis, and no DynamoDB behind it. `open`: this process decides alone; else the plan says closed."""
    env = {"TOLLGATE_STORE_URL": "redis://127.0.0.1:1/0", "REDIS_FAILURE_MODE": mode}
    with Served(policy(upstream, folder), upstream, **env) as running:
        answers = [running.caller().chat() for _ in range(6)]
    assert [answer.status for answer in answers] == [status] * 6
    if status == 503:
        assert {answer.error["code"] for answer in answers} == {"limits_unavailable"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    else:
        assert answers[-1].headers["x-ratelimit-remaining-requests"] == "99994", "limits hold all the same"


def test_two_workers_end_together(upstream: ScriptedUpstream, folder: Path) -> None:
    with Served(policy(upstream, folder), upstream, "--workers", "2") as running:
        assert {running.caller().chat().status for _ in range(8)} == {200}
        inside = descendants(running.process.pid)
        assert len(inside) >= 2
        running.process.terminate()
        assert running.process.wait(20) in (0, -signal.SIGTERM)
        wait(lambda: not [pid for pid in inside if alive(pid)])


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"TOLLGATE_STORE_URL": "mysql://x"}, "TOLLGATE_STORE_URL"),
        ({"REDIS_FAILURE_MODE": "maybe"}, "REDIS_FAILURE_MODE"),
        ({"TOLLGATE_ISSUER": ""}, "TOLLGATE_ISSUER"),
        ({"TOLLGATE_TRUSTED_PROXIES": "everyone"}, "TOLLGATE_TRUSTED_PROXIES"),
        ({"TOLLGATE_MAX_IN_FLIGHT": "many"}, "TOLLGATE_MAX_IN_FLIGHT"),
        ({"TOLLGATE_POLICY": "/nowhere/policy.yaml"}, "/nowhere/policy.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_setting_stops_the_start(served: Served, env: Mapping[str, str], told: str) -> None:
    command = tollgate("serve", "--port", str(free_port()))
    done = subprocess.run(command, capture_output=True, text=True, env={**served.env, **env}, cwd=ROOT, timeout=30)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
