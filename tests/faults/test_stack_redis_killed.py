"""Redis killed with SIGKILL under load, in the whole local stack: no caller sees a 5xx, and no budget starts anew."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.functional.callers import Caller, Callers
from tests.functional.stack import DevStack, lab_policy

DAILY = 12
"""The budget of requests that has to survive."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """A stack that may be broken."""
    with DevStack("--policy", lab_policy(tmp_path_factory.mktemp("policy"))) as running:
        yield running


@dataclass
class Load:
    """What callers got, and which store decided meanwhile."""

    statuses: Counter[int] = field(default_factory=Counter)
    stores: set[str] = field(default_factory=set)
    problems: list[bytes] = field(default_factory=list)


@contextmanager
def load(caller: Caller, threads: int = 3) -> Iterator[Load]:
    """Requests without a pause from several threads, and a look at /healthz after each."""
    seen = Load()
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            answer = caller.chat(max_tokens=1)
            seen.statuses[answer.status] += 1
            if answer.status != 200:
                seen.problems.append(answer.body)
            seen.stores.add(store(caller))

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield seen
    finally:
        over.set()
        for worker in workers:
            worker.join()


def store(caller: Caller) -> str:
    return str(caller.get("/healthz").json["store"])


def wait(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def test_redis_stalls_and_is_killed_under_load(own: DevStack) -> None:
    callers = Callers(own)
    crowd = callers(limits=[{"scope": "tenant", "concurrent": 50}])
    thrifty = callers(
        limits=[{"scope": "tenant", "concurrent": 50}], budgets=[{"scope": "user", "requests": DAILY, "per": "day"}]
    )

    def spend(number: int) -> list[int]:
        return [thrifty.chat(max_tokens=1).status for _ in range(number)]

    assert spend(4) == [200] * 4
    callers.entries(thrifty, 4)
    assert store(crowd) == "redis"

    with load(crowd) as seen:
        wait(lambda: seen.statuses[200] >= 20)
        # killed alone it would be back, empty, before the breaker opens (the next test): so it stalls first
        os.kill(own.pids["redis"], signal.SIGSTOP)
        wait(lambda: "the breaker is open" in own.log())
        assert spend(4) == [200] * 4, "while Redis is away, DynamoDB knows what was spent"
        callers.entries(thrifty, 8)
        os.kill(own.pids["redis"], signal.SIGKILL)
        wait(lambda: "the breaker is closed" in own.log() or ("dynamodb" in seen.stores and store(crowd) == "redis"))
        so_far = seen.statuses[200]
        wait(lambda: seen.statuses[200] >= so_far + 20)

    assert set(seen.statuses) == {200}, seen.problems[:3]
    assert {"redis", "dynamodb"} <= seen.stores
    assert store(crowd) == "redis"
    # Redis came back empty, and yet it knows: not one request more than the budget, before, while and after
    assert spend(6) == [200] * 4 + [402] * 2


def test_a_redis_that_is_killed_again_and_again(own: DevStack) -> None:
    """Three times in a row, with holds in flight: nothing is stuck, and the budget of tokens is exact afterwards."""
    callers = Callers(own)
    caller = callers(
        limits=[{"scope": "tenant", "concurrent": 4}], budgets=[{"scope": "user", "tokens": 100_000, "per": "day"}]
    )
    with load(caller) as seen:
        for _ in range(3):
            so_far = seen.statuses[200]
            wait(lambda so_far=so_far: seen.statuses[200] >= so_far + 10)  # type: ignore[misc]  # a default binds it
            pid = redis_pid(own)
            os.kill(pid, signal.SIGKILL)
            wait(lambda pid=pid: redis_pid(own) not in (0, pid))  # type: ignore[misc]  # a default binds it
    assert not [status for status in seen.statuses if status >= 500], seen.problems[:3]
    wait(lambda: store(caller) == "redis")
    used = 9 * seen.statuses[200]
    callers.entries(caller, seen.statuses[200])

    def told() -> int:
        budgets = caller.get("/v1/usage").json["budgets"]
        return int(next(budget["used"] for budget in budgets if budget["unit"] == "tokens"))

    wait(lambda: told() == used)
    # what is left can be had in one request, and not a token more: no hold of the dead Redis is left
    rest = 100_000 - used - 7
    wait(lambda: caller.chat(max_tokens=rest).status == 200)


def redis_pid(stack: DevStack) -> int:
    """The process that serves Redis now; 0 while there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
        if parent == stack.process.pid and b"redis-server" in command.split(b"\0")[0]:
            return int(entry.name)
    return 0
