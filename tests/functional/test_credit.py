"""Prepaid credit in a running stack: drawn down by usage, felt within 10 s, and none of it lost with Redis."""

from __future__ import annotations

import json
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from tests.functional.callers import Caller, Callers
from tests.functional.stack import ROOT, DevStack, tollgate
from tollgate.domain import keys

WITHIN_S = 60.0
CALL: dict[str, Any] = {"model": "large", "max_tokens": 20}
COST = 220
"""Micro-dollars of one `CALL`, at most."""


def until(caller: Caller, status: int) -> int:
    """Call until the answer has that status, for as long as a change may take; how many were served."""
    end, served = time.monotonic() + WITHIN_S, 0
    while (answer := caller.chat(**CALL)).status != status:
        assert answer.status in (200, 402), answer.body
        assert time.monotonic() < end, f"no {status} within {WITHIN_S:g} s"
        served += answer.status == 200
        time.sleep(0.1)
    return served + (status == 200)


def account(stack: DevStack, tenant: str) -> dict[str, int]:
    (found,) = json.loads(stack.run("credit", "show", tenant, "--json").stdout)["accounts"]
    return dict(found)


def test_credit_is_drawn_down_topped_up_and_survives_a_flushed_store(stack: DevStack, callers: Callers) -> None:
    caller = callers()
    tenant = caller.tenant
    assert caller.chat(**CALL).status == 200
    callers.entries(caller, 1)  # used before there was credit
    stack.run("credit", "add", tenant, "0.001", "--id", "first")
    served = until(caller, 402)
    message = caller.chat(**CALL).error["message"]
    assert "$0.001 in all" in message
    assert "it has to be topped up. GET /v1/usage shows your budgets." in message
    callers.entries(caller, 1 + served)
    with redis.Redis.from_url(callers.environ["TOLLGATE_STORE_URL"]) as store:
        for key in store.scan_iter(f"{keys.tenant_subject(tenant)}*"):
            store.delete(key)
    assert caller.chat(**CALL).status == 402, "the ledger knows what is used, the record what was paid"
    before = account(stack, tenant)
    assert before["limit_microusd"] == 1000
    assert before["left_microusd"] < COST
    stack.run("credit", "add", tenant, "0.001", "--id", "second")
    stack.run("credit", "add", tenant, "0.001", "--id", "second")
    assert account(stack, tenant)["limit_microusd"] == 2000
    served += until(caller, 200)
    callers.entries(caller, 1 + served)
    now = account(stack, tenant)
    assert now["left_microusd"] == 2000 - now["used_microusd"]
    assert now["used_microusd"] > before["used_microusd"]


@pytest.mark.long
def test_while_it_is_used_it_is_topped_up(stack: DevStack, callers: Callers) -> None:
    """Four at once spend while two people add: what was paid is never exceeded, and nothing of it is lost."""
    caller = callers("pro")
    stack.run("credit", "add", caller.tenant, "0.0005")
    until(caller, 402)

    def spend(_: int) -> int:
        return sum(caller.chat(**CALL).status == 200 for _ in range(15))

    def add(i: int) -> int:
        for j in range(2):
            stack.run("credit", "add", caller.tenant, "0.0005", "--id", f"{i}.{j}")
        return 0

    with ThreadPoolExecutor(6) as threads:
        work = [*(threads.submit(add, i) for i in range(2)), *(threads.submit(spend, i) for i in range(4))]
        assert all(done.result() >= 0 for done in work)
    until(caller, 402)
    number = len(json.loads(stack.run("credit", "list", caller.tenant, "--json").stdout)["entries"])
    assert number == 5
    end = time.monotonic() + WITHIN_S
    while (found := account(stack, caller.tenant))["left_microusd"] >= COST and time.monotonic() < end:
        time.sleep(0.3)  # metering; and the last credit may not have been felt yet
        caller.chat(**CALL)
    assert found["limit_microusd"] == 2500
    assert 2500 - COST < found["used_microusd"] <= 2500, stack.log()[-3000:]


@pytest.mark.long
def test_commands_killed_at_any_moment_and_repeated_add_what_they_say(stack: DevStack, callers: Callers) -> None:
    """Forty payments, each command killed (-9) at any moment, then repeated with its id until it ends."""
    tenant = callers().tenant
    chance, killed = random.Random(4), 0
    env = {**stack.env, "TOLLGATE_URL": stack.url}
    began = time.monotonic()
    stack.run("credit", "list", tenant)
    whole_s = time.monotonic() - began  # what a command takes here
    for i in range(40):
        words = tollgate("credit", "add", tenant, "0.01", "--id", f"payment-{i}")
        command = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd=ROOT)
        try:
            command.wait(chance.uniform(0.2, 1.2) * whole_s)
        except subprocess.TimeoutExpired:
            command.kill()
            command.wait()
            killed += 1
        stack.run("credit", "add", tenant, "0.01", "--id", f"payment-{i}")
    assert killed > 5
    assert account(stack, tenant)["limit_microusd"] == 400_000
    assert len(json.loads(stack.run("credit", "list", tenant, "--json").stdout)["entries"]) == 40
