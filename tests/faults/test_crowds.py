"""Very many at once on one key: nobody sees an error, and exactly as many are admitted as the bucket gives."""

from __future__ import annotations

import asyncio
import multiprocessing
import time

import pytest

from tests.faults.rig import MINUTE, Container, Redis, direct, patient_store, requests, run, say
from tests.redis_cluster import Cluster
from tollgate.domain import keys
from tollgate.domain.limits import Rate, RateTake, Scope, Status, Unit

PROCESSES, CALLERS, EACH = 8, 100, 5


def test_ten_thousand_at_once(either: Redis | Cluster) -> None:
    async def scenario() -> None:
        async with direct(either.url) as container:
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


def crowd(take: RateTake, url: str, go: float) -> list[tuple[bool, int, int]]:
    """One process: its callers ask as fast as they can. Whether each was admitted, by which clock, and the TAT."""
    answers: list[tuple[bool, int, int]] = []

    async def scenario() -> None:
        container = Container(patient_store(url, 10))  # eight processes share what two cores give
        await container.store.ping()
        await asyncio.sleep(go - time.time())

        async def caller() -> None:
            for _ in range(EACH):
                _, decision = await container.ask(take)
                answers.append((decision.admitted, decision.now_us, decision.values[0]))

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        await container.store.aclose()

    run(scenario)
    return answers


def hot(scope: Scope, per_minute: int) -> RateTake:
    """500 at once."""
    limit = Rate(scope, Unit.REQUESTS, per_minute, MINUTE, 500, f"{scope}.requests.minute")
    subject = keys.global_subject() if scope is Scope.GLOBAL else keys.member_subject("acme", "u", "hot")
    return RateTake(subject, f"{subject}:{limit.id}", limit, 1, 1)


def answers_of_all(take: RateTake, url: str) -> list[tuple[bool, int, int]]:
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        jobs = [(take, url, time.time() + 6)] * PROCESSES
        answers = [answer for each in pool.starmap(crowd, jobs, chunksize=1) for answer in each]
    assert len(answers) == PROCESSES * CALLERS * EACH
    return answers


@pytest.mark.parametrize("scope", [Scope.USER, Scope.GLOBAL])
def test_eight_processes_with_a_hundred_callers_each(either: Redis | Cluster, scope: Scope) -> None:
    """Admitted = burst + refill, to the request: the TAT is the first admission's moment plus all that was taken, and
    whoever was refused found less than one request left. On a cluster a user's limits are decided in two slots, and an
    answer is told on the clock that is ahead; everyone's in one, whose clock is the only one."""
    of_two_slots = isinstance(either, Cluster) and scope is Scope.USER
    take = hot(scope, 1 if of_two_slots else 6_000)
    answers, inc = answers_of_all(take, either.url), take.inc_us
    admitted = [(now, tat) for yes, now, tat in answers if yes]
    refused = [(now, tat) for yes, now, tat in answers if not yes]
    assert refused
    assert all(tat + inc > now + take.limit.burst_us for now, tat in refused)
    if of_two_slots:  # nothing is given back in the time of a test
        assert len(admitted) == take.limit.burst
        return
    first = min(now for now, _ in admitted)
    assert max(tat for _, tat in admitted) == first + len(admitted) * inc
    last = max(now for now, _ in refused)
    refilled = (last - first) // inc
    say(f"{PROCESSES} processes x {CALLERS} callers: {len(admitted)} admitted, 500 + {refilled} until the last refusal")
    assert refilled > 0
    assert sum(now <= last for now, _ in admitted) == take.limit.burst + refilled
