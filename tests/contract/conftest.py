"""Every limit store, behind one fixture: the contract suite runs against each of them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import redis
import uvloop

from tests.aws_fixture import Recorder, aws_endpoint, dynamodb, make_table
from tests.redis_cluster import Cluster, redis_cluster
from tests.servers import dynamodb_local, redis_server
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore
from tollgate.adapters.redis_limits import EPOCH, RedisLimitStore
from tollgate.domain.limits import Admission, Decision, Settlement, Take
from tollgate.ports import LimitStore

T = TypeVar("T")
NOON = 1_795_262_400_000_000  # 2026-11-21 12:00:00 UTC, in microseconds


class Driver:
    """A store with a clock that tests set, driven synchronously."""

    def __init__(self, store: LimitStore, runner: asyncio.Runner) -> None:
        self.store = store
        self.now = NOON
        self._runner = runner

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def admit(self, *takes: Take, id: str | None = None, expires_us: int = 60_000_000, **versions: int) -> Decision:
        return self.run(self.store.admit(self.admission(*takes, id=id, expires_us=expires_us, **versions)))

    def admission(
        self, *takes: Take, id: str | None = None, expires_us: int = 60_000_000, **versions: int
    ) -> Admission:
        return Admission(id or uuid.uuid4().hex, list(takes), expires_us, "acme", **versions)

    def settle(self, id: str, takes: list[Take], used: list[int | None]) -> bool:
        return self.run(self.store.settle(Settlement(id, takes, used, "acme")))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with redis_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop that the proxy runs on
        yield runner


@pytest.fixture(scope="session")
def dynamodb_client(runner: asyncio.Runner) -> Iterator[AwsClient]:
    with aws_endpoint() as url, dynamodb(url, runner) as client:
        yield client


@pytest.fixture(scope="session")
def dynamodb_local_client(runner: asyncio.Runner) -> Iterator[AwsClient]:
    with dynamodb_local() as url, dynamodb(url, runner) as client:
        yield client


LOCAL = pytest.param("dynamodb_local", marks=pytest.mark.dynamodb_local)
STORES = ["memory", "redis", "cluster", "dynamodb", LOCAL]


Dynamo = tuple[AwsClient, asyncio.Runner]
"""A DynamoDB, and what runs its client's calls."""


@pytest.fixture(scope="session")
def moto(dynamodb_client: AwsClient, runner: asyncio.Runner) -> Dynamo:
    return dynamodb_client, runner


@pytest.fixture(scope="session", params=["dynamodb", LOCAL])
def each_dynamodb(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Dynamo:
    return request.getfixturevalue(f"{request.param}_client"), runner


def make_driver(kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest) -> Driver:
    driver: Driver
    if kind == "memory":
        driver = Driver(MemoryLimitStore(clock=lambda: driver.now), runner)
    elif kind in ("dynamodb", "dynamodb_local"):
        client = request.getfixturevalue(f"{kind}_client")
        table = runner.run(make_table(client))
        driver = Driver(DynamoLimitStore(client, table, clock=lambda: driver.now), runner)
    elif kind == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.begin()
        driver = Driver(RedisClusterLimitStore(cluster.url, clock=lambda: driver.now, reply_timeout=5), runner)
    else:
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as client:
            client.flushall()
            client.set(EPOCH, 1)  # long ago, so that rates are believed; tests of cold rates begin another
        driver = Driver(RedisLimitStore(url, clock=lambda: driver.now, reply_timeout=5), runner)
    return driver


@pytest.fixture(params=STORES)
def driver(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Driver]:
    made = make_driver(request.param, runner, request)
    yield made
    made.run(made.store.aclose())


@pytest.fixture(scope="module")
def dynamo(runner: asyncio.Runner) -> Iterator[Recorder]:
    with aws_endpoint() as url, dynamodb(url, runner) as client:
        yield Recorder(client)
