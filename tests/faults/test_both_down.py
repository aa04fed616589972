"""Neither Redis nor DynamoDB answers, in the whole stack: each plan does what it says, and no call is forgotten."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.functional.callers import Callers
from tests.functional.stack import DevStack, lab_policy

SHARE = 3
"""Requests that one container admits alone, for an `open` plan."""


def two_postures(folder: Path) -> str:
    """The lab's policy with three plans more: `willing` and `careful` differ in what they do when no store answers;
    `paying` is willing, too, but has a budget of money."""
    path = Path(lab_policy(folder))
    policy = yaml.safe_load(path.read_text())
    plan = {"models": ["small"], "limits": [{"scope": "tenant", "requests": SHARE, "per": "hour"}]}
    money = [{"scope": "tenant", "usd": 100, "per": "month"}]
    policy["plans"] |= {
        "willing": plan | {"when_stores_fail": "open"},
        "careful": plan | {"when_stores_fail": "closed"},
        "paying": plan | {"when_stores_fail": "open", "budgets": money},
    }
    path.write_text(yaml.safe_dump(policy, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """A stack that may be broken."""
    with DevStack("--policy", two_postures(tmp_path_factory.mktemp("policy"))) as running:
        yield running


def test_no_store_answers(own: DevStack) -> None:
    callers = Callers(own)
    willing, careful, paying, bold, shy = (
        callers(plan) for plan in ("willing", "careful", "paying", "careful", "willing")
    )
    own.run("tenant", "set", bold.tenant, "when_stores_fail=open")
    callers.put(shy.tenant, "willing", when_stores_fail="closed")
    for caller in (willing, careful, paying, bold, shy):
        assert caller.chat(max_tokens=1).status == 200
        callers.entries(caller, 1)
    sent = own.model_counts()["requests"]
    stopped = [own.pids["redis"], own.pids["aws"]]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        for caller in (careful, paying, shy):
            answer = caller.chat(max_tokens=1)
            assert (answer.status, answer.error["code"]) == (503, "limits_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert bold.chat(max_tokens=1).status == 200, "the tenant's own word, instead of its plan's"
        answers = [willing.chat(max_tokens=1) for _ in range(SHARE + 2)]
        assert [answer.status for answer in answers] == [200] * SHARE + [429] * 2
        assert answers[-1].headers["x-ratelimit-type"] == "Local-Tenant"
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert own.model_counts()["requests"] - sent == SHARE + 1
    assert len(callers.entries(willing, 1 + SHARE)) == 1 + SHARE, "what was called upstream was recorded"
    assert len(callers.entries(bold, 2)) == 2
    assert len(callers.entries(shy, 1)) == len(callers.entries(careful, 1)) == len(callers.entries(paying, 1)) == 1
