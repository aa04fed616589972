"""An admission whose answer was lost is undone, whatever is found in the place of its marker, and only once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis
from redis.cluster import RedisCluster

from tests.contract.conftest import Driver, make_driver
from tests.contract.test_limit_store import MINUTE, SECOND, budget, requests, slot
from tests.redis_cluster import Cluster
from tollgate.adapters.redis_cluster import hash_tag
from tollgate.domain import keys
from tollgate.domain.limits import Admission, Rate, RateTake, Scope, Settlement, Take, Unit

Client = redis.Redis | RedisCluster

ADDRESS = keys.ip_subject("192.0.2.7")
PATIENCE = 10
"""Seconds after which it is taken for granted that it never ends."""


@pytest.fixture(params=["redis", "cluster"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def driver(kind: str, request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Driver]:
    made = make_driver(kind, runner, request)
    yield made
    made.run(made.store.aclose())


@pytest.fixture
def client(kind: str, request: pytest.FixtureRequest) -> Iterator[Client]:
    made: Client
    if kind == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        made = RedisCluster.from_url(cluster.url)
    else:
        made = redis.Redis.from_url(request.getfixturevalue("redis_url"))
    with made:
        yield made


def takes() -> list[Take]:
    """In two slots of a cluster."""
    by_address = Rate(Scope.IP, Unit.REQUESTS, 10, MINUTE, 10, "ip.requests.minute")
    return [requests(10), RateTake(ADDRESS, f"{ADDRESS}:requests.minute", by_address, 1, 1), budget(10), slot(3)]


def left(driver: Driver) -> list[int]:
    """What the store has counted: of rates in periods of one request."""
    decision = driver.run(driver.store.look(Admission("look", takes(), 0, "acme")))
    rates = [max(0, value - decision.now_us) // (6 * SECOND) for value in decision.values[:2]]
    return [*rates, *decision.values[2:]]


def cancel(driver: Driver, admission: Admission) -> None:
    cancelling = driver.store.cancel(admission)  # type: ignore[attr-defined]  # only stores that lose answers have it
    driver.run(asyncio.wait_for(cancelling, PATIENCE))


def markers(kind: str, admission: Admission) -> list[str]:
    tags = {hash_tag(keys.tenant_subject("acme"))}
    if kind == "cluster":
        tags |= {hash_tag(take.key) for take in admission.takes}
    return [f"{{{tag}}}m:{admission.id}" for tag in sorted(tags)]


def test_what_was_taken_is_given_back_once(driver: Driver) -> None:
    assert driver.admit(*takes(), id="kept").admitted
    lost = driver.admission(*takes(), id="lost")
    assert driver.run(driver.store.admit(lost)).admitted
    assert left(driver) == [2, 2, 20, 2]
    for _ in range(3):
        cancel(driver, lost)
        assert left(driver) == [1, 1, 10, 1]


def test_an_admission_that_arrives_after_it_was_cancelled_takes_nothing(driver: Driver) -> None:
    late = driver.admission(*takes(), id="late")
    cancel(driver, late)
    driver.run(driver.store.admit(late))
    assert left(driver) == [0, 0, 0, 0]


@pytest.mark.parametrize("foreign", [b"", b"foreign", b"0123456789abcdef", b"x" * 25, b"x" * 40, None])
def test_a_foreign_value_in_the_place_of_its_marker_is_overwritten(
    driver: Driver, client: Client, kind: str, foreign: bytes | None
) -> None:
    """None: not even a string."""
    late = driver.admission(*takes(), id="late")
    for marker in markers(kind, late):
        if foreign is None:
            client.rpush(marker, "foreign")
        else:
            client.set(marker, foreign)
    cancel(driver, late)
    driver.run(driver.store.admit(late))
    assert left(driver) == [0, 0, 0, 0]


def test_a_cancelled_admission_is_not_settled(driver: Driver) -> None:
    late = driver.admission(*takes(), id="late")
    cancel(driver, late)
    settlement = Settlement("late", takes(), [None, None, 7, 0], "acme")
    assert not driver.run(driver.store.settle(settlement))
    assert driver.run(driver.store.replay([settlement])) == 0
    assert left(driver) == [0, 0, 0, 0]
