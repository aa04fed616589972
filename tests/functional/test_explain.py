"""`tollgate explain` on a running stack: for a caller, and for a request that has been made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tests.functional.callers import HELLO, Caller, Callers
from tests.functional.stack import DevStack


def test_a_caller_and_their_requests_are_explained(
    stack: DevStack, callers: Callers, new_tenant: Callable[[str], str]
) -> None:
    tenant = new_tenant("tight")
    ann = Caller(stack.url, tenant, "ann", callers.token(tenant, "ann"))
    answers = [ann.post("/v1/chat/completions", {**HELLO, "max_tokens": 1}) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]

    found = json.loads(stack.run("explain", "--tenant", tenant, "--user", "ann", "--json").stdout)
    assert (found["verdict"]["status"], found["verdict"]["rule"]) == (429, "user.requests.minute")
    assert found["versions"]["in_sync"]
    (limit,) = (limit for limit in found["limits"] if limit["refuses"])
    assert (limit["source"], limit["remaining"]) == ("plan tight", 0)
    assert 0 < limit["wait_s"] <= 20
    assert "refused: 429 user.requests.minute" in stack.run("explain", "--tenant", tenant, "--user", "ann").stdout
    assert "verdict     admitted" in stack.run("explain", "--tenant", tenant, "--user", "bob").stdout

    callers.entries(ann, 3)
    id = str(answers[0].headers["x-request-id"])
    entry = json.loads(stack.run("explain", id, "--json").stdout)
    assert (entry["is"], entry["tenant"], entry["user"], entry["outcome"]) == ("entered", tenant, "ann", "ok")
    assert "cost" in stack.run("explain", id).stdout
    missing = stack.run("explain", "req_" + "0" * 32, check=False)
    assert (missing.returncode, missing.stderr.count("\n")) == (3, 1)
    assert "ask for its caller" in missing.stderr


def test_budgets_say_how_long_they_last(stack: DevStack, new_tenant: Callable[[str], str]) -> None:
    """When they are whole again, as rates do; not which window they count."""
    tenant = new_tenant("free")
    stack.run("tenant", "set", tenant, "budgets+={scope: tenant, requests: 9, per: life}")
    lines = stack.run("explain", "--tenant", tenant, "--user", "bob").stdout.splitlines()
    rows = {line.split()[0]: re.split(" {2,}", line) for line in lines if line.strip()}
    assert re.fullmatch(r"\d+ (s|min|h)", rows["user.requests.day"][3])
    assert re.fullmatch(r"\d+ (s|min|h|days)", rows["tenant.microusd.month"][3])
    assert rows["tenant.requests.life"][3] == "never"
