"""Very many at once on one key: nobody sees an error, and exactly as many are admitted as the bucket gives."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator

import pytest

from tests.faults.rig import MINUTE, Container, Redis, direct, redis_to_hurt, requests, run, say
from tests.redis_cluster import Cluster, redis_cluster
from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore
from tollgate.adapters.redis_limits import EPOCH, RedisLimitStore
from tollgate.domain.limits import RateTake, Status

PROCESSES, CALLERS, EACH = 8, 100, 5


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with redis_to_hurt() as running:
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with redis_cluster() as running:
        yield running


def test_ten_thousand_at_once(redis: Redis) -> None:
    async def scenario() -> None:
        async with direct(redis.url) as container:
            with redis.client() as client:
                client.set(EPOCH, 1)  # long ago, so that rates are believed
            take = requests(1, burst=4_000, period_us=1440 * MINUTE, name="crowd")
            await container.store.ping()
            loop, waited = asyncio.get_running_loop(), []

            async def one() -> Status:
                began = loop.time()
                _, decision = await container.ask(take)
                waited.append(loop.time() - began)
                return decision.status

            found = await asyncio.gather(*(one() for _ in range(10_000)))
            say(f"10,000 at once: p99 {sorted(waited)[9_900] * 1000:.0f} ms, all in {max(waited) * 1000:.0f} ms")
            assert found.count(Status.ADMITTED) == 4_000
            assert found.count(Status.REFUSED) == 6_000

    run(scenario)


def crowd(kind: str, url: str, go: float) -> list[tuple[bool, int, int]]:
    """One process: its callers ask as fast as they can. Whether each was admitted, by which clock, and the TAT."""
    answers: list[tuple[bool, int, int]] = []

    async def scenario() -> None:
        timeout = 10.0  # eight processes share what two cores give
        made = RedisClusterLimitStore if kind == "cluster" else RedisLimitStore
        container = Container(made(url, reply_timeout=timeout))
        await container.store.ping()
        await asyncio.sleep(go - time.time())

        async def caller() -> None:
            for _ in range(EACH):
                _, decision = await container.ask(hot(kind))
                answers.append((decision.admitted, decision.now_us, decision.values[0]))

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        await container.store.aclose()

    run(scenario)
    return answers


def hot(kind: str) -> RateTake:
    """500 at once, and 100 a second; on the cluster none in the time of a test."""
    return requests(1 if kind == "cluster" else 6_000, burst=500, name="hot")


@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_eight_processes_with_a_hundred_callers_each(kind: str, redis: Redis, cluster: Cluster) -> None:
    """Admitted = burst + refill, to the request: the TAT is the first admission's moment plus all that was taken, and
    whoever was refused found less than one request left."""
    if kind == "redis":
        with redis.client() as client:
            client.set(EPOCH, 1)
    else:
        cluster.begin()
    url = redis.url if kind == "redis" else cluster.url
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        jobs = [(kind, url, time.time() + 6)] * PROCESSES
        answers = [answer for each in pool.starmap(crowd, jobs, chunksize=1) for answer in each]
    assert len(answers) == PROCESSES * CALLERS * EACH
    limit = hot(kind).limit
    admitted = [(now, tat) for yes, now, tat in answers if yes]
    refused = [(now, tat) for yes, now, tat in answers if not yes]
    assert refused
    if kind == "cluster":  # the nodes' clocks differ, and an answer is told on the one that is ahead
        assert len(admitted) == limit.burst
        return
    first = min(now for now, _ in admitted)
    assert max(tat for _, tat in admitted) == first + len(admitted) * limit.inc_us(1)
    assert all(tat + limit.inc_us(1) > now + limit.burst_us for now, tat in refused)
    last = max(now for now, _ in refused)
    refilled = (last - first) // limit.inc_us(1)
    say(f"{PROCESSES} processes x {CALLERS} callers on {kind}: {len(admitted)} admitted = 500 + {refilled} refilled")
    assert sum(now <= last for now, _ in admitted) == limit.burst + refilled
