"""Two stacks on one machine share nothing; and one that is told to end finishes what it has begun, and is gone."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from tests.functional.callers import HELLO, Caller, Callers
from tests.functional.stack import DevStack, lab_policy
from tests.processes import alive, descendants
from tests.waiting import wait

ONE_A_DAY = [{"scope": "user", "requests": 1, "per": "day"}]


def listening(pids: set[int]) -> set[int]:
    """The TCP ports on which these processes listen, as the kernel says."""
    sockets: dict[str, int] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            sockets[fields[9]] = int(fields[1].partition(":")[2], 16)
    found = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = entry.readlink().name
            except FileNotFoundError:  # closed in between
                continue
            found.add(sockets.get(target.removeprefix("socket:[").removesuffix("]"), 0))
    return found - {0}


def test_two_stacks_share_nothing_and_one_ends_without_a_trace(
    stack: DevStack, callers: Callers, tmp_path: Path
) -> None:
    """The second one's models are the first one's demo model, by `--upstream`."""
    here = callers("pro", budgets=ONE_A_DAY)
    with DevStack("--policy", lab_policy(tmp_path), "--upstream", stack.model_url) as other:
        assert set(other.pids) == {"redis", "aws", "proxy"}
        assert set(other.pids.values()).isdisjoint(stack.pids.values())
        others = Callers(other)
        others.put(here.tenant, "lab", budgets=ONE_A_DAY)
        there = others.colleague(here.tenant, here.user)
        ours, theirs = (descendants(s.process.pid) | {s.process.pid} for s in (stack, other))
        ports = listening(theirs)
        assert len(ports) == 5, "gateway, proxy, functions, Redis and AWS"
        assert ports.isdisjoint(listening(ours))

        # a token of the one is none for the other
        assert Caller(stack.url, "", "", other.token_of_demo).chat().status == 401
        # the same tenant and user in both: each has its one request, and its own usage
        before = stack.model_counts()["requests"]
        assert [here.chat(max_tokens=1).status for _ in range(2)] == [200, 402]
        assert [there.chat(max_tokens=2).status for _ in range(2)] == [200, 402]
        assert stack.model_counts()["requests"] == before + 2
        assert [entry["output_tokens"] for entry in callers.entries(here, 1)] == [1]
        assert [entry["output_tokens"] for entry in others.entries(there, 1)] == [2]

        # SIGTERM in the middle of a stream: the stream is finished first
        busy = others()
        body = json.dumps({**HELLO, "model": "slow", "max_tokens": 6, "stream": True}).encode()
        with busy.begin("POST", "/v1/chat/completions", body) as response:
            received = response.read1(65536)
            other.process.send_signal(signal.SIGTERM)
            received += response.read()
        assert received.count(b'"content"') == 6
        assert received.endswith(b"data: [DONE]\n\n")
        assert other.process.wait(120) == 0
        wait(lambda: not [pid for pid in theirs if alive(pid)])
        for port in ports:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0, "somebody still listens"
        assert "dead letter" not in other.log()
        with pytest.raises(ConnectionRefusedError):
            there.chat()
    assert Caller(stack.url, "", "", "").get("/healthz", {"authorization": ""}).status == 200
