"""What fault tests share: servers to hurt, a standby, containers that share a store, and load at a given rate."""

from __future__ import annotations

import asyncio
import copy
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis as redis_py

from tests.aws_fixture import ENVIRON, PATIENT, make_table
from tests.servers import start_redis, wait_for_port
from tollgate.adapters.aws import TIMEOUTS, AwsClient
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.http import HttpClient, Timeouts
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore
from tollgate.adapters.redis_connection import RedisAddress
from tollgate.adapters.redis_limits import RedisLimitStore
from tollgate.adapters.redis_store import redis_limit_store
from tollgate.domain import keys
from tollgate.domain.limits import (
    Admission,
    Budget,
    BudgetTake,
    Decision,
    FailureMode,
    Rate,
    RateTake,
    Scope,
    Settlement,
    Status,
    Take,
    Unit,
    Window,
)
from tollgate.local.children import free_port
from tollgate.ports import LimitStore

SECOND = 1_000_000
MINUTE = 60 * SECOND
STANDBY_RPS = 40
"""What the standby serves here: moto takes some 5 ms for a call."""
TENANT = keys.tenant_subject("acme")


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def say(text: str) -> None:
    """A figure of this run: shown by `make faults`, never asserted."""
    print(f"figure: {text}")


# -- servers ---------------------------------------------------------------------------------------------------------


class Redis:
    """A real server that a test can hurt."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="tollgate-redis-")  # a replica writes a snapshot
        self._options = ("--dir", self.folder, *options)
        self.process: subprocess.Popen[bytes] = start_redis(self.port, *self._options)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis_py.Redis:
        return redis_py.Redis(port=self.port, socket_timeout=10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = start_redis(self.port, *self._options)

    def stall(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def redis_to_hurt(*options: str) -> Iterator[Redis]:
    server = Redis(*options)
    try:
        yield server
    finally:
        server.wake()
        server.kill()
        shutil.rmtree(server.folder)


@contextmanager
def dynamodb_server() -> Iterator[str]:
    """The URL of the DynamoDB that stands by, in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tollgate.local.aws", "--port", str(port)])
    try:
        wait_for_port(port, process, 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def dynamodb_table(url: str, timeouts: Timeouts = TIMEOUTS) -> AsyncIterator[tuple[AwsClient, str]]:
    """A new table, and a client as the gateway has it. (Tables are made before anything is measured, with patience.)"""
    http, environ = HttpClient(), ENVIRON | {"AWS_ENDPOINT_URL": url}
    try:
        table = await make_table(AwsClient.for_service("dynamodb", http, environ, PATIENT))
        yield AwsClient.for_service("dynamodb", http, environ, timeouts), table
    finally:
        await http.aclose()


# -- limits ----------------------------------------------------------------------------------------------------------


def requests(amount: int, *, burst: int | None = None, period_us: int = MINUTE, name: str = "u") -> RateTake:
    """One request of `amount` per period."""
    limit = Rate(Scope.USER, Unit.REQUESTS, amount, period_us, burst or amount, f"user.requests.{period_us}")
    subject = keys.member_subject("acme", "u", name)
    return RateTake(subject, f"{subject}:{limit.id}", limit, 1, 1)


def scarcely(name: str = "u") -> RateTake:
    """A bucket of 100,000 requests that gets one back per minute: within one, it counts what was taken."""
    return requests(1, burst=100_000, name=name)


def charged(take: RateTake, tat: int, now_us: int) -> int:
    """How many requests were taken from `scarcely`."""
    return math.ceil(max(0, tat - now_us) / take.limit.inc_us(1))


def budget(cost: int, amount: int, name: str = "tokens") -> BudgetTake:
    """Tokens of today's budget."""
    limit = Budget(Scope.TENANT, Unit.TOKENS, amount, Window.DAY, f"tenant.{name}.day")
    label, start, end = Window.DAY.bounds(time.time_ns() // 1000)
    return BudgetTake(TENANT, f"{TENANT}:b:{limit.id}:{label}", limit, cost, cost, label, start, end)


def outage_bound(
    limit: Rate, *, t: float, overlap: float = 0.0, outages: int = 0, losses: int = 0, share: float = 1.0
) -> int:
    """What docs/architecture.md says that a rate admits at most in `t` seconds. `share`: how full a bucket is that the
    fallback does not know."""
    per_second = limit.amount * SECOND / limit.period_us
    return math.floor(limit.burst * (1 + outages * share + losses) + per_second * (t + overlap)) + 1


# -- containers ------------------------------------------------------------------------------------------------------


class Books:
    """A ledger that knows at once what was used."""

    def __init__(self) -> None:
        self.spent_of: dict[str, int] = {}

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        return [self.spent_of.get(take.key, 0) for take in takes]


class Container:
    """A process's way to its store: it loads what is COLD, and settles, as services/admit.py does."""

    def __init__(self, store: LimitStore, books: Books | None = None) -> None:
        self.store = store
        self.books = books or Books()

    async def ask(self, *takes: Take, id: str | None = None) -> tuple[Admission, Decision]:
        """Raises `StoreUnavailable` as the store does."""
        taken = [copy.copy(take) for take in takes]
        admission = Admission(id or uuid.uuid4().hex, taken, MINUTE, "acme")
        for _ in range(5):
            decision = await self.store.admit(admission)
            if decision.status is not Status.COLD:
                return admission, decision
            cold = [taken[i] for i in decision.cold]
            rates = [i for i in decision.cold if isinstance(taken[i], RateTake)]
            budgets = [take for take in cold if isinstance(take, BudgetTake)]
            if rates:
                for i, tat in zip(rates, await self.store.recall(taken, rates), strict=True):
                    rate = taken[i]
                    assert isinstance(rate, RateTake)
                    rate.seed_us = tat or 0
            for each, spent in zip(budgets, await self.books.spent(budgets), strict=True):
                each.seed = spent
        raise AssertionError("it stays cold")

    async def use(self, *takes: Take, used: Sequence[int | None]) -> Decision:
        """Ask; where that is admitted, settle, and enter it into the books."""
        admission, decision = await self.ask(*takes)
        if decision.admitted:
            for take, amount in zip(takes, used, strict=True):
                if isinstance(take, BudgetTake):
                    self.books.spent_of[take.key] = self.books.spent_of.get(take.key, 0) + (amount or 0)
            await self.store.settle(Settlement(admission.id, admission.takes, [*used], "acme", decision.store))
        return decision

    @property
    def failover(self) -> FailoverLimitStore:
        assert isinstance(self.store, FailoverLimitStore)
        return self.store


def patient_store(redis_url: str, reply_timeout: float) -> RedisLimitStore | RedisClusterLimitStore:
    """Waits for so many seconds, because the machine is busy."""
    made = RedisClusterLimitStore if RedisAddress.parse(redis_url).cluster else RedisLimitStore
    return made(redis_url, reply_timeout=reply_timeout)


@asynccontextmanager
async def direct(redis_url: str, *, reply_timeout: float = 5.0) -> AsyncIterator[Container]:
    """A container that knows Redis only."""
    container = Container(patient_store(redis_url, reply_timeout))
    try:
        yield container
    finally:
        await container.store.aclose()


@asynccontextmanager
async def containers(
    redis_url: str,
    fallback: Callable[[], LimitStore] | None,
    count: int = 1,
    mode: FailureMode = "fallback",
    reply_timeout: float | None = None,
) -> AsyncIterator[list[Container]]:
    """Processes, as far as their stores are concerned, which share a Redis, a fallback and the books. `reply_timeout`:
    for tests in which a Redis that is slow, because the machine is busy, must not be taken for one that is away."""
    books = Books()
    made: list[Container] = []
    for _ in range(count):
        second = fallback() if fallback else None
        if isinstance(second, MemoryLimitStore):
            second.name = "second"  # settlements find their way by name
        primary = patient_store(redis_url, reply_timeout) if reply_timeout else redis_limit_store(redis_url, {})
        begins = second.outage_begins if isinstance(second, DynamoLimitStore) else lambda: None
        store = FailoverLimitStore(primary, second, MemoryLimitStore(), lambda: mode, outage_begins=begins)
        made.append(Container(store, books))
    try:
        yield made
    finally:
        for container in made:
            await container.store.aclose()


# -- load ------------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What callers got."""

    seconds: list[tuple[float, float]] = field(default_factory=list)
    """When each began, and how long it took; in the loop's time."""
    admitted: int = 0
    refused: int = 0
    failures: list[BaseException] = field(default_factory=list)
    stores: dict[str, int] = field(default_factory=dict)

    def p99_ms(self, since: float = -math.inf, until: float = math.inf) -> float:
        found = sorted(taken for began, taken in self.seconds if since <= began < until)
        return found[int(len(found) * 0.99)] * 1000 if found else math.nan

    def slower_than(self, seconds: float) -> int:
        return sum(taken > seconds for _, taken in self.seconds)


@asynccontextmanager
async def load(rps: float, one: Callable[[int], Awaitable[Decision]]) -> AsyncIterator[Load]:
    """Requests at a steady rate, however long they take, until the block ends; then all that are under way end."""
    seen, over, loop = Load(), asyncio.Event(), asyncio.get_running_loop()

    async def request(number: int) -> None:
        began = loop.time()
        try:
            decision = await one(number)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller would see a 5xx
            seen.failures.append(error)
            return
        seen.seconds.append((began, loop.time() - began))
        seen.stores[decision.store] = seen.stores.get(decision.store, 0) + 1
        seen.admitted += decision.admitted
        seen.refused += not decision.admitted

    async def generate() -> None:
        async with asyncio.TaskGroup() as group:
            began, number = loop.time(), 0
            while not over.is_set():
                group.create_task(request(number))
                number += 1
                await asyncio.sleep(began + number / rps - loop.time())

    generating = asyncio.create_task(generate())
    try:
        yield seen
    finally:
        over.set()
        await generating


async def until(condition: Callable[[], bool], seconds: float = 20) -> float:
    """Wait for something to happen; how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        if loop.time() - began > seconds:
            raise TimeoutError
        await asyncio.sleep(0.005)
    return loop.time() - began
