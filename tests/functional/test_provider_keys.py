"""A provider's key is rotated under load: no call fails, and no key is seen anywhere but at the provider."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.functional.scripted import USAGE, Exchange, ScriptedUpstream
from tests.functional.stack import ROOT, DevStack, lab_policy, tollgate
from tests.waiting import wait
from tollgate.local.demo_policy import KEY_VARIABLE, SECRET

FIRST, SECOND, THIRD = (f"sk-{n}-c0ffee" * 3 for n in range(3))


class Provider:
    """A model that knows who may call; what it refuses it has not worked on."""

    def __init__(self) -> None:
        self.valid = {FIRST}
        self.refused = 0

    def __call__(self, exchange: Exchange) -> None:
        if exchange.received.headers.get("authorization", "").removeprefix("Bearer ") in self.valid:
            exchange.whole(body=json.dumps({"choices": [], "usage": USAGE}).encode())
        else:
            self.refused += 1
            exchange.whole(401, b'{"error": {"message": "Incorrect API key"}}')


@pytest.fixture(scope="module")
def provider() -> Provider:
    return Provider()


@pytest.fixture(scope="module")
def stack(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    policy = lab_policy(tmp_path_factory.mktemp("policy"))
    with ScriptedUpstream(_script=provider).serve() as upstream:
        words = ("--policy", policy, "--upstream", upstream.base_url, "--verbose")
        with DevStack(*words, env={KEY_VARIABLE: FIRST}) as running:
            running.new_tenant("loaded", "lab")
            yield running


class Load:
    """Calls one after another on some connections, until it is stopped."""

    def __init__(self, stack: DevStack, connections: int = 4) -> None:
        self.statuses: list[int] = []
        self.said = b""
        self._stopping = threading.Event()
        self._address = ("127.0.0.1", stack.port)
        self._token = stack.token("loaded", "load")
        self._threads = [threading.Thread(target=self._run) for _ in range(connections)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def more(self, calls: int = 20) -> None:
        """Returns after so many more calls."""
        wanted, until = len(self.statuses) + calls, time.monotonic() + 30
        while len(self.statuses) < wanted:
            assert time.monotonic() < until
            time.sleep(0.01)

    def _run(self) -> None:
        body = json.dumps({"model": "small", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]})
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        while not self._stopping.is_set():
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            self.said += answer.read() + str(answer.headers).encode()
            self.statuses.append(answer.status)
        connection.close()


def secret(stack: DevStack, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """A `tollgate secret` command, with its input."""
    env = {**stack.env, "TOLLGATE_URL": stack.url}
    return subprocess.run(
        tollgate("secret", *words), input=given, capture_output=True, text=True, env=env, cwd=ROOT, timeout=60
    )


def command(stack: DevStack, *words: str, given: str = "") -> Any:
    """One that succeeds, and what it tells."""
    done = secret(stack, *words, "--json", given=given)
    assert done.returncode == 0, done.stderr
    assert "c0ffee" not in done.stdout + done.stderr
    return json.loads(done.stdout)


def test_keys_are_rotated_under_load_without_an_error_and_seen_nowhere(stack: DevStack, provider: Provider) -> None:
    with Load(stack) as load:
        load.more()
        # as it should be done: both keys are good for a while
        provider.valid = {FIRST, SECOND}
        command(stack, "rotate", SECRET, given=SECOND + "\n")
        load.more()
        assert provider.refused == 0
        provider.valid = {SECOND}
        load.more()
        assert 0 < provider.refused <= 4 * 2  # those that were under way
        # the other way round: the provider is slow to learn the new key, then the old one goes
        command(stack, "rotate", SECRET, given=json.dumps({"api_key": THIRD}))
        load.more()
        provider.valid = {SECOND, THIRD}
        load.more()
        provider.valid = {THIRD}
        load.more()
        row = {row["name"]: row for row in command(stack, "list")["secrets"]}[SECRET]
        assert (row["exists"], row["previous"]) == (True, True)
        assert "openai" in row["upstreams"]
    assert set(load.statuses) == {200}
    assert b"c0ffee" not in load.said
    wait(lambda: "usage entered" in stack.log())  # what the functions log is there to be searched
    assert "c0ffee" not in stack.log()
    # in the end no key is good: callers get 502, and no word of why
    refused, provider.valid = provider.refused, {"none"}
    with Load(stack, 1) as load:
        load.more(10)
    assert set(load.statuses) == {502}
    assert b"c0ffee" not in load.said
    assert provider.refused - refused <= len(load.statuses) + 1  # a second try only where there is another key
    environs = [Path(f"/proc/{pid}/environ").read_bytes() for pid in [stack.process.pid, *stack.pids.values()]]
    assert not [name for name in (SECOND, THIRD) if any(name.encode() in environ for environ in environs)]


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        (("set", "tollgate/new"), "", "no key"),
        (("set", "tollgate/new"), "two\nlines", "no key"),
        (("set", "tollgate/new"), '{"key": 1}', "no key"),
        (("rotate", "tollgate/none"), "sk-c0ffee", "there is no secret"),
        (("rotate", "tollgate/none", "--undo"), "", "there is no secret"),
    ],
)
def test_what_is_refused_says_why(stack: DevStack, words: tuple[str, ...], given: str, said: str) -> None:
    done = secret(stack, *words, given=given)
    assert done.returncode != 0
    assert said in done.stderr
    assert "c0ffee" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_rotation_can_be_undone(stack: DevStack) -> None:
    command(stack, "set", "tollgate/undone", given="sk-a")
    command(stack, "rotate", "tollgate/undone", given="sk-b")
    command(stack, "rotate", "tollgate/undone", "--undo")
    # so the one before is what it holds now
    again = secret(stack, "rotate", "tollgate/undone", given="sk-a")
    assert again.returncode != 0
    assert "very key already" in again.stderr
    command(stack, "rotate", "tollgate/undone", given="sk-b")
    names = {row["name"]: row["upstreams"] for row in command(stack, "list")["secrets"]}
    assert names["tollgate/undone"] == []
