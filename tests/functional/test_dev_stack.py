"""`tollgate dev`: comes up whole, serves, meters, survives its parts' deaths, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from tests.functional.callers import Callers
from tests.functional.stack import ROOT, DevStack, tollgate
from tests.processes import alive, descendants
from tests.servers import redis_server, wait_for_port
from tests.waiting import wait
from tollgate.local.children import free_port

QUESTION: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "Hello, world"}]}


def ask(stack: DevStack, token: str, **more: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    """One chat completion; status, body and headers."""
    request = urllib.request.Request(
        f"{stack.url}/v1/chat/completions",
        json.dumps({**QUESTION, **more}).encode(),
        {"authorization": f"Bearer {token}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


def test_it_says_what_it_is(stack: DevStack) -> None:
    assert stack.ready["ready"] is True
    assert stack.ready["url"] == stack.url
    assert stack.ready["redis_url"].startswith("redis://127.0.0.1:")
    assert set(stack.pids) == {"redis", "aws", "model", "proxy"}
    assert all(alive(pid) for pid in stack.pids.values())
    assert stack.ready["token"].count(".") == 2


def test_the_sdk_is_served(stack: DevStack) -> None:
    client = OpenAI(api_key=stack.ready["token"], base_url=stack.base_url)
    answer = client.chat.completions.create(model="small", messages=[{"role": "user", "content": "Hello, world"}])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    chunks = list(client.chat.completions.create(**QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    assert [model.id for model in client.models.list()] == ["small", "large", "embed"]
    client.close()


def test_a_new_tenant_works_at_once_and_a_suspended_one_does_not(
    stack: DevStack, new_tenant: Callable[[str], str]
) -> None:
    tenant = new_tenant("pro")
    token = stack.token(tenant, "alice")
    assert ask(stack, token)[0] == 200
    stack.run("tenant", "suspend", tenant)
    wait(lambda: ask(stack, token)[0] == 403)
    stack.run("tenant", "resume", tenant)
    wait(lambda: ask(stack, token)[0] == 200)


def test_usage_is_what_the_model_counted(stack: DevStack, callers: Callers) -> None:
    """Every request is in the ledger once, with the tokens that the upstream counted."""
    caller = callers("enterprise")
    tokens = [callers.token(caller.tenant, user) for user in ("alice", "bob")]
    before = stack.model_counts()

    def one(i: int) -> int:
        return ask(stack, tokens[i % 2], max_tokens=1 + i % 7)[0]

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(one, range(40))) == {200}
    after = stack.model_counts()
    callers.entries(caller, 40)
    rows = stack.usage(caller.tenant)
    assert {(row["user"], row["requests"]) for row in rows} == {("alice", 20), ("bob", 20)}
    for name, books in (("requests", "requests"), ("input_tokens", "input_tokens"), ("output_tokens", "output_tokens")):
        assert sum(row[name] for row in rows) == after[books] - before[books]
    assert all(row["total_tokens"] == row["input_tokens"] + row["output_tokens"] for row in rows)


def test_the_first_chunk_comes_long_before_the_last(stack: DevStack, callers: Callers) -> None:
    """The model `slow` makes a token every 0.3 s."""
    token = callers("lab").token
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    body = json.dumps({**QUESTION, "model": "slow", "stream": True, "max_tokens": 4})
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 200
    first = last = 0.0
    while response.read1(65536):
        last = time.monotonic()
        first = first or last
    connection.close()
    assert last - first >= 0.6


def test_a_port_that_is_taken_is_one_clear_line(stack: DevStack) -> None:
    command = tollgate("dev", "--port", str(stack.port))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == f"tollgate: port {stack.port} is taken: choose another with --port"


def test_redis_and_aws_may_run_already() -> None:
    """`REDIS_URL` and `AWS_ENDPOINT_URL` are used as they are, and what a former stack made there is found again."""
    port = free_port()
    command = [sys.executable, "-m", "tollgate.local.aws", "--port", str(port)]
    with redis_server() as redis_url, subprocess.Popen(command) as aws:
        try:
            wait_for_port(port, aws)
            given = {"REDIS_URL": redis_url, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
            with DevStack(env=given) as first:
                assert set(first.pids) == {"model", "proxy"}
                assert {name: first.ready[name.lower()] for name in given} == given
                assert ask(first, Callers(first).token(first.new_tenant("mine", "pro"), "alice"))[0] == 200
                assert first.stop(signal.SIGINT) == 0
            with DevStack(env=given) as second:
                alice = Callers(second).colleague("mine", "alice")
                assert [entry["user"] for entry in Callers(second).entries(alice, 1)] == ["alice"]
                assert ask(second, alice.token)[0] == 200
        finally:
            aws.kill()


@pytest.fixture
def own() -> Iterator[DevStack]:
    """A stack that may be broken."""
    with DevStack() as running:
        yield running


def test_parts_that_die_come_back(own: DevStack) -> None:
    token = Callers(own).token("initech", "alice")
    assert ask(own, token)[0] == 200
    port = int(re.findall(r":(\d+)", own.ready["redis_url"])[0])
    os.kill(own.pids["redis"], signal.SIGKILL)
    statuses = [ask(own, token)[0] for _ in range(10)]
    assert set(statuses) == {200}, "no caller sees that Redis is away"

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait(listens)
    os.kill(own.pids["model"], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        broken = threads.submit(ask, own, Callers(own).token("initech", "carol"), max_tokens=20)
        time.sleep(1)
        os.kill(own.pids["proxy"], signal.SIGKILL)
        assert broken.result()[0] == 502, "the model had its request"
    os.kill(own.pids["model"], signal.SIGCONT)
    # requests wait for the new one as they would for a cold start
    wait(lambda: ask(own, token)[0] == 200)
    os.kill(own.pids["model"], signal.SIGKILL)
    wait(lambda: ask(own, token)[0] == 200)
    for name in ("redis", "proxy", "model"):
        assert f"{name} was ended by SIGKILL" in own.log()
        wait(lambda name=name: f"{name} is back" in own.log())  # type: ignore[misc]  # a default binds it
    # long before its hold expires: the report of its invocation says that nobody will close the call
    wait(lambda: json.loads(own.run("usage", "--user", "carol", "--json").stdout)["rows"] != [])


def test_sigterm_loses_no_usage_and_leaves_no_process(own: DevStack) -> None:
    token = Callers(own).token("initech", "bob")
    inside = descendants(own.process.pid)
    assert len(inside) >= 4
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, own, token, max_tokens=3) for _ in range(8)]
        assert {future.result()[0] for future in asked} == {200}
        slow = threads.submit(ask, own, token, max_tokens=20)
        time.sleep(0.05)
        own.process.send_signal(signal.SIGTERM)
        assert slow.result()[0] == 200, "a request in flight is finished"
    assert own.process.wait(120) == 0
    assert not [pid for pid in inside if alive(pid)]
    assert "dead letters" not in own.log()


def test_no_process_is_left_by_sigkill() -> None:
    """Which gives no chance to tidy up."""
    with DevStack() as running:
        inside = descendants(running.process.pid)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        wait(lambda: not [pid for pid in inside if alive(pid)])
