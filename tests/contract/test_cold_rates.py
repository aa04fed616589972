"""A rate that a new epoch finds in Redis, or misses there, is believed once another store's TAT was merged into it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from tests.contract.conftest import Driver, make_driver
from tests.contract.test_limit_store import MINUTE, SECOND, USER, budget, requests, tokens
from tests.redis_cluster import Cluster
from tollgate.adapters.redis_cluster import hash_tag, slot_of
from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore
from tollgate.adapters.redis_limits import EPOCH, SERVERS, RedisLimitStore
from tollgate.adapters.redis_scripts import Script
from tollgate.domain.limits import RateTake, Status
from tollgate.ports import LimitStore


@pytest.fixture(params=["redis", "cluster"])
def driver(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Driver]:
    made = make_driver(request.param, runner, request)
    yield made
    made.run(made.store.aclose())


def reopen(driver: Driver, outage_us: int = MINUTE) -> None:
    """Begin a new epoch, as after an outage."""
    driver.run(driver.store.reopen(outage_us))  # type: ignore[attr-defined]  # only stores that can be lost have it


def seeded(take: RateTake, tat_us: int) -> RateTake:
    return replace(take, seed_us=tat_us)


def test_a_missing_rate_takes_nothing_until_it_is_loaded(driver: Driver) -> None:
    reopen(driver)
    decision = driver.admit(requests(10), tokens(100), id="a")
    assert (decision.status, decision.cold) == (Status.COLD, (0, 1))
    spent = seeded(tokens(600), driver.now + MINUTE // 2)  # half of the thousand a minute is gone elsewhere
    assert driver.admit(seeded(requests(10), 0), spent).status is Status.REFUSED
    assert driver.admit(requests(10), tokens(500)).admitted
    assert not driver.admit(requests(10), tokens(1)).admitted


def test_what_was_there_before_the_outage_is_not_believed_either(driver: Driver) -> None:
    assert driver.admit(tokens(300)).admitted
    reopen(driver)
    assert driver.admit(tokens(1)).status is Status.COLD
    decision = driver.admit(seeded(tokens(100), driver.now + MINUTE // 2))
    assert decision.admitted
    assert decision.values[0] == driver.now + MINUTE // 2 + MINUTE // 10, "the later TAT counts"


def test_the_later_of_both_tats_counts(driver: Driver) -> None:
    assert driver.admit(tokens(900)).admitted
    reopen(driver)
    assert driver.admit(seeded(tokens(101), 0)).status is Status.REFUSED
    assert driver.admit(tokens(100)).admitted, "and is asked for once, though the first asker was refused"


def test_after_its_burst_a_rate_would_be_full_anyway(driver: Driver) -> None:
    reopen(driver)
    driver.now += MINUTE - 1
    assert driver.admit(tokens(1)).status is Status.COLD
    driver.now += 1
    assert driver.admit(tokens(1000)).admitted


def test_a_loaded_rate_settles_as_any_other(driver: Driver) -> None:
    reopen(driver)
    take = seeded(tokens(1000), 0)
    assert driver.admit(take, id="a").admitted
    assert driver.settle("a", [take], [400])
    assert driver.admit(tokens(600)).admitted, "still loaded: given back, and not cold"
    assert not driver.admit(tokens(1)).admitted
    driver.now += 10 * MINUTE
    assert driver.admit(tokens(1000), id="b").admitted
    driver.settle("b", [tokens(1000)], [2000])
    driver.now += MINUTE
    assert not driver.admit(tokens(1)).admitted


def test_a_repeated_admission_is_not_cold(driver: Driver) -> None:
    first = driver.admit(tokens(100), id="a", expires_us=5 * MINUTE)
    reopen(driver)
    again = driver.admit(tokens(100), id="a", expires_us=5 * MINUTE)
    assert (again.status, again.values, again.granted) == (Status.ADMITTED, first.values, first.granted)


def test_another_epoch_asks_again(driver: Driver) -> None:
    reopen(driver)
    assert driver.admit(seeded(tokens(1), 0)).admitted
    driver.now += SECOND
    reopen(driver, 0)
    assert driver.admit(tokens(1)).status is Status.COLD


def test_budgets_and_rates_are_asked_for_together(driver: Driver) -> None:
    reopen(driver)
    decision = driver.admit(tokens(1), budget(1, seed=None))
    assert (decision.status, decision.cold) == (Status.COLD, (0, 1))
    assert driver.admit(seeded(tokens(1), 0), budget(1, seed=0)).admitted


def test_an_emptied_store_begins_an_epoch_by_itself(driver: Driver, request: pytest.FixtureRequest) -> None:
    empty(request)
    driver.admit(seeded(tokens(1), 0))  # on a cluster, whoever finds it empty may still be admitted
    assert driver.admit(requests(10)).status is Status.COLD


@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_a_server_that_is_not_known_begins_an_epoch_once(
    kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest
) -> None:
    """On a cluster it is one of three, and the others keep who is known."""
    drivers = [make_driver(kind, runner, request)]
    if kind == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        stranger, keeper = (cluster.nodes[cluster.owner(slot_of(hash_tag(key)))] for key in (USER, SERVERS))
        assert stranger is not keeper
    else:
        stranger = keeper = redis.Redis.from_url(request.getfixturevalue("redis_url"))
    keeper.hset(SERVERS, "another", 1)
    keeper.hdel(SERVERS, stranger.eval(Script("reopen").source.decode(), 0))
    assert drivers[0].admit(requests(10)).status is Status.COLD
    epoch = keeper.get(EPOCH)
    drivers.append(newcomer(kind, drivers[0], runner, request))
    assert drivers[1].admit(requests(10)).status is Status.COLD
    assert drivers[1].admit(seeded(requests(10), 0)).admitted
    assert drivers[0].admit(requests(10)).admitted
    assert keeper.get(EPOCH) == epoch
    for driver in drivers:
        driver.run(driver.store.aclose())


def newcomer(kind: str, old: Driver, runner: asyncio.Runner, request: pytest.FixtureRequest) -> Driver:
    """A later container on the same data."""
    store: LimitStore
    if kind == "cluster":
        store = RedisClusterLimitStore(request.getfixturevalue("cluster").url, clock=lambda: old.now, reply_timeout=5)
    else:
        store = RedisLimitStore(request.getfixturevalue("redis_url"), clock=lambda: old.now, reply_timeout=5)
    return Driver(store, runner)


def empty(request: pytest.FixtureRequest) -> None:
    if "cluster" in request.node.name:
        request.getfixturevalue("cluster").flush()
    else:
        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            client.flushall()
