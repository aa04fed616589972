"""Faults that are really injected take time; they have a make target of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rig import Redis, redis_to_hurt
from tests.redis_cluster import Cluster, redis_cluster
from tollgate.adapters.redis_limits import EPOCH


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis_to_hurt() as running:
        yield running


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    with redis_cluster() as running:
        yield running


@pytest.fixture
def redis(server: Redis) -> Redis:
    """A server without data, whose epoch is long past."""
    with server.client() as client:
        client.flushall()
        client.set(EPOCH, 1)  # long ago, so that rates are believed
    return server


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """As `redis`, of three masters."""
    running_cluster.begin()
    return running_cluster


@pytest.fixture(params=["redis", "cluster"])
def either(request: pytest.FixtureRequest) -> Redis | Cluster:
    found: Redis | Cluster = request.getfixturevalue(request.param)
    return found
