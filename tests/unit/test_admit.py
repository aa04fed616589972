"""Admission, above a store: what it asks of it, and how seldom."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.simulator.virtual_time import run
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import FilePolicySource
from tollgate.domain.identity import Identity
from tollgate.domain.limits import DAY_US, FIRM_US, Admission, BudgetTake, Decision, RateTake, Status, Take
from tollgate.ports import Overloaded, StoreUnavailable
from tollgate.services.admit import Admitter, Grant, Request
from tollgate.services.directory import Directory
from tollgate.wire.body import Body
from tollgate.wire.errors import ApiError
from tollgate.wire.routes import ROUTES

NOON = 1_795_262_400_000_000  # 2026-11-21 12:00:00 UTC, in microseconds
SECOND = 1_000_000
ALICE = Identity("acme", "alice")

POLICY = """
version: 1
upstreams: {here: {api: openai, base_url: "http://127.0.0.1:9/v1"}}
models: {small: {route: [{upstream: here, model: s}], price: {input: 1, output: 2}}}
plans:
  free:
    models: [small]
    limits:
      - {scope: user, requests: 60, per: minute, burst: 10}
      - {scope: user, tokens: 100000, per: minute}
    budgets: [{scope: tenant, tokens: 1000000, per: day}]
tenants: {acme: {plan: free}}
"""


class CountingStore(MemoryLimitStore):
    """The memory store, and how often each admission was asked of it."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.calls = 0

    async def admit(self, admission: Admission) -> Decision:
        self.calls += 1
        return await super().admit(admission)


class Away(MemoryLimitStore):
    """A store that does not answer."""

    async def admit(self, admission: Admission) -> Decision:
        raise StoreUnavailable("nobody answers")


class Spent:
    """A ledger that knows of no use."""

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        return [0] * len(takes)


class World:
    """One container, with a store whose clock tests set; its own is `ahead_us` of that."""

    def __init__(self, folder: Path, text: str = POLICY, *, ahead_us: int = 0, now: int = NOON) -> None:
        (folder / "policy.yaml").write_text(text)
        self.now = now
        self.store = CountingStore(lambda: self.now)

        def clock() -> int:
            return self.now + ahead_us

        directory = Directory(FilePolicySource(folder / "policy.yaml", {}), clock, versioned=lambda: True)
        self.admitter = Admitter(self.store, Spent(), directory, MemoryLimitStore(clock), clock)
        self._ids = iter(range(10**9))
        self.caller = ALICE

    async def ask(self, ip: str = "192.0.2.1", tokens: int = 10) -> Grant | ApiError:
        request = Request(f"r{next(self._ids)}", "openai", "small", tokens, 0, 60 * SECOND)
        try:
            return await self.admitter.admit(self.caller, ip, request, 0)
        except ApiError as error:
            return error


def test_a_caller_who_floods_costs_a_call_for_each_that_is_admitted(tmp_path: Path) -> None:
    async def flood() -> tuple[Counter[bool], int]:
        world = World(tmp_path)
        answers: Counter[bool] = Counter()
        for _ in range(20_000):  # in ten seconds
            world.now += 500
            answers[isinstance(await world.ask(), Grant)] += 1
        return answers, world.store.calls

    answers, calls = asyncio.run(flood())
    assert answers[True] == 10 + 9, "the burst, and one a second"
    assert calls <= answers[True] + 2, "and one is refused at first; the first also finds the budget cold"


@pytest.mark.parametrize("firm_us", [SECOND, pytest.param(FIRM_US, marks=pytest.mark.long)])
def test_a_flood_of_a_blocked_caller_hardly_reaches_the_store(tmp_path: Path, firm_us: int) -> None:
    """100,000 requests in ten seconds from 200 tasks, over a store that takes 5 ms and forgets nothing: one call
    each time that trust ends, however many ask at that moment."""

    class Slow(CountingStore):
        async def admit(self, admission: Admission) -> Decision:
            await asyncio.sleep(0.005)
            decision = await super().admit(admission)
            decision.firm_us = firm_us
            return decision

    async def flood() -> Counter[int]:
        world = World(tmp_path, POLICY.replace("requests: 60, per: minute", "requests: 60, per: day"))
        world.admitter._store = store = Slow(lambda: world.now)
        loop = asyncio.get_running_loop()
        calls: Counter[int] = Counter()

        async def caller(number: int) -> None:
            await asyncio.sleep(number * 0.0001)
            for _ in range(500):
                await asyncio.sleep(0.02)
                world.now = NOON + int(loop.time() * SECOND)
                before = store.calls
                assert isinstance(await world.ask(), ApiError)
                calls[int(loop.time())] += store.calls - before

        assert [isinstance(await world.ask(), Grant) for _ in range(11)] == [True] * 10 + [False]
        await asyncio.gather(*(caller(number) for number in range(200)))
        assert store.calls - 12 <= 10 * SECOND // firm_us + 1
        return calls

    calls = run(flood(), seed=1)
    assert max(calls.values()) <= 3


def test_a_refusal_that_is_read_late_does_not_last_longer(tmp_path: Path) -> None:
    async def ask() -> list[bool]:
        world = World(tmp_path)

        class Late(CountingStore):
            async def admit(self, admission: Admission) -> Decision:
                decision = await super().admit(admission)
                if decision.status is Status.REFUSED:
                    world.now += 5 * SECOND
                return decision

        world.admitter._store = Late(lambda: world.now)
        return [isinstance(await world.ask(), Grant) for _ in range(12)]

    assert asyncio.run(ask()) == [True] * 10 + [False, True]


def test_what_a_container_refused_alone_ends_with_the_outage(tmp_path: Path) -> None:
    async def ask() -> list[bool]:
        world = World(tmp_path, POLICY.replace("free:", "free:\n    when_stores_fail: open", 1))
        store, world.admitter._store = world.store, Away()
        before = [isinstance(await world.ask(), Grant) for _ in range(11)]
        world.admitter._store = store
        return [*before, isinstance(await world.ask(), Grant)]

    assert asyncio.run(ask()) == [True] * 10 + [False, True]


def test_where_a_cold_rate_stands_is_asked_with_all_that_the_call_takes(tmp_path: Path) -> None:
    """Another store may count a subject in several items, and how many follows from all of its limits."""
    recalled: list[tuple[list[str], list[int]]] = []

    class Cold(CountingStore):
        async def admit(self, admission: Admission) -> Decision:
            if any(isinstance(take, RateTake) and take.seed_us is not None for take in admission.takes):
                return await super().admit(admission)
            return Decision(Status.COLD, NOON, cold=(1, 2))

        async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
            recalled.append(([take.limit.id for take in takes], list(cold)))
            return [NOON + 59 * SECOND]

    async def ask() -> Grant | ApiError:
        world = World(tmp_path)
        world.admitter._store = Cold(lambda: world.now)
        return await world.ask()

    assert isinstance(grant := asyncio.run(ask()), Grant)
    assert recalled == [(["user.requests.minute", "user.tokens.minute", "tenant.tokens.day"], [1])]
    assert [getattr(take, "seed_us", 0) for take in grant.admission.takes] == [None, NOON + 59 * SECOND, 0]


def test_tokens_that_may_come_back_are_asked_for_once_a_second(tmp_path: Path) -> None:
    async def flood() -> int:
        world = World(
            tmp_path, POLICY.replace("requests: 60, per: minute, burst: 10", "requests: 1000000, per: second")
        )
        assert isinstance(await world.ask(tokens=100_000), Grant)
        before = world.store.calls
        for _ in range(10_000):
            world.now += 1_000
            assert isinstance(await world.ask(tokens=90_000), ApiError)
        return world.store.calls - before

    assert asyncio.run(flood()) <= 11


def test_a_boost_counts_until_its_moment_and_no_longer(tmp_path: Path) -> None:
    """Also for a caller who never pauses, whose terms are at hand."""
    boosts = "[{scope: user, requests: 6000, per: minute, burst: 1000, until: 2026-11-21T12:00:07Z}]"

    async def admitted() -> tuple[int, int]:
        world = World(tmp_path, POLICY.replace("{plan: free}", f"{{plan: free, limits: {boosts}}}"))
        counts = [0, 0]
        for _ in range(1000):
            counts[world.now >= NOON + 7 * SECOND] += isinstance(await world.ask(), Grant)
            world.now += SECOND // 100
        return counts[0], counts[1]

    boosted, after = asyncio.run(admitted())
    assert boosted == 700
    assert after <= 10 + 3, "the plan's burst, and one a second"


BOOST = "[{scope: user, requests: 6000, per: minute, burst: 1000, until: 2026-11-21T12:02:00Z}]"
BOOSTED = POLICY.replace("{plan: free}", f"{{plan: free, limits: {BOOST}}}")


@pytest.mark.parametrize("ahead_s", [0, -300, 300], ids=["right", "slow", "fast"])
def test_a_boost_ends_by_the_stores_clock(tmp_path: Path, ahead_s: int) -> None:
    """Whatever this container's clock says, and from the first call on: containers are many, and often new."""

    async def admitted(now: int, calls: int = 60) -> list[bool]:
        world = World(tmp_path, BOOSTED, ahead_us=ahead_s * SECOND, now=now)
        return [isinstance(await world.ask(), Grant) for _ in range(calls)]

    last = NOON + 120 * SECOND - 1
    assert asyncio.run(admitted(last)) == [True] * 60
    assert asyncio.run(admitted(last + 1)) == [True] * 10 + [False] * 50, "the plan's burst"


@pytest.mark.parametrize("ahead_s", [-300, 300], ids=["slow", "fast"])
def test_a_container_that_has_learned_the_stores_clock_asks_once(tmp_path: Path, ahead_s: int) -> None:
    async def calls() -> list[int]:
        world = World(tmp_path, BOOSTED, ahead_us=ahead_s * SECOND, now=NOON + 120 * SECOND)
        counts = []
        for _ in range(3):
            assert isinstance(await world.ask(), Grant)
            counts.append(world.store.calls)
        return counts

    first, second, third = asyncio.run(calls())
    assert (second - first, third - second) == (1, 1)


def test_an_admission_that_is_repeated_after_midnight_is_held_on_the_new_day(tmp_path: Path) -> None:
    """A connection breaks at midnight: what was sent had been made, and is sent again on another connection. The store
    says that it is another day; what it took on the old one is given back, and the record's day is charged."""
    midnight = (NOON // DAY_US + 1) * DAY_US

    class Reconnecting(CountingStore):
        name = "redis"

        async def admit(self, admission: Admission) -> Decision:
            decision = await super().admit(admission)
            if world.now < midnight and decision.admitted:
                world.now = midnight
                return await super().admit(admission)
            return decision

    def committed() -> list[int]:
        days = sorted(store._budgets.values(), key=lambda day: day.end_us)
        return [day.committed for day in days]

    async def call() -> None:
        grant = await world.ask(tokens=600)
        assert isinstance(grant, Grant)
        assert (grant.admission.id, grant.decision.now_us, committed()) == ("r0", midnight, [0, 600])
        assert list(grant.decision.values) == [midnight + SECOND, midnight + 600 * 600, 600], "taken once"
        await world.admitter.settle(grant.settlement(500, 0, counts=True))
        assert committed() == [0, 500]

    world = World(tmp_path, now=midnight - 1)
    store = world.admitter._store = Reconnecting(lambda: world.now)
    asyncio.run(call())


def test_an_input_that_can_never_fit_is_told_no_maximum(tmp_path: Path) -> None:
    """Embeddings have none: a smaller input fits."""

    async def ask(words: int) -> Grant | ApiError:
        world = World(tmp_path)
        call = ROUTES["/v1/embeddings"].read(Body(json.dumps({"model": "small", "input": "word " * words}).encode()))
        wanted = Request(
            "r", "openai", "small", call.prompt_estimate(), call.max_output, 60 * SECOND, 1, call.max_output_field
        )
        try:
            return await world.admitter.admit(ALICE, "192.0.2.1", wanted, 0)
        except ApiError as error:
            return error

    error = asyncio.run(ask(100_000))
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (400, "exceeds_plan_limit")
    assert error.message == (
        "This request may use 125000 tokens; the limit of this user is 100000 tokens per minute, "
        "so it can never be admitted."
    )
    assert isinstance(asyncio.run(ask(50_000)), Grant)


def test_many_callers_at_once_are_told_by_one_refusal(tmp_path: Path) -> None:
    """Those who asked before the first answer came go to the store; nobody after."""

    async def rush() -> int:
        world = World(tmp_path)
        await asyncio.gather(*(world.ask() for _ in range(1_000)))
        before = world.store.calls
        await asyncio.gather(*(world.ask() for _ in range(1_000)))
        return world.store.calls - before

    assert asyncio.run(rush()) == 0


def test_maxima_that_can_never_fit_need_no_store(tmp_path: Path) -> None:
    async def ask() -> tuple[ApiError, int]:
        world = World(tmp_path)
        error = await world.ask(tokens=100_001)
        assert isinstance(error, ApiError)
        return error, world.store.calls

    error, calls = asyncio.run(ask())
    assert (error.status, error.code, calls) == (400, "exceeds_plan_limit", 0)


def test_an_entitlement_is_made_once_and_again_when_the_record_changes(tmp_path: Path) -> None:
    async def ask() -> None:
        world = World(tmp_path)
        first = await world.ask()
        second = await world.ask()
        assert isinstance(first, Grant)
        assert isinstance(second, Grant)
        assert first.entitlement is second.entitlement
        elsewhere = await world.ask(ip="192.0.2.2")
        assert isinstance(elsewhere, Grant)
        assert elsewhere.entitlement is not first.entitlement

    asyncio.run(ask())


def test_an_overloaded_store_turns_away_whatever_the_plan_says_about_stores_that_fail(tmp_path: Path) -> None:
    class Throttled(CountingStore):
        async def admit(self, admission: Admission) -> Decision:
            raise Overloaded("too many writes of one item")

    async def ask() -> Grant | ApiError:
        world = World(tmp_path, POLICY.replace("  free:\n", "  free:\n    when_stores_fail: open\n"))
        world.admitter._store = Throttled(lambda: world.now)
        return await world.ask()

    error = asyncio.run(ask())
    assert isinstance(error, ApiError)
    assert (error.status, error.code, error.headers["retry-after"]) == (503, "overloaded", "1")


def test_a_tenant_without_a_record_does_not_get_a_new_entitlement_with_every_request(tmp_path: Path) -> None:
    """The plan comes from the token; only the missing record is looked for again, every few seconds."""

    async def ask() -> None:
        world = World(tmp_path, POLICY.replace("tenants: {acme: {plan: free}}", ""))
        world.caller = Identity("acme", "alice", plan="free")
        made = []
        for _ in range(3):
            world.now += 4 * SECOND
            grant = await world.ask()
            assert isinstance(grant, Grant)
            made.append(grant.entitlement)
        assert made[1] is made[0], "nothing is old yet"
        assert made[2] is not made[1], "the record was looked for again"
        world.now += SECOND
        grant = await world.ask()
        assert isinstance(grant, Grant)
        assert grant.entitlement is made[2], "and the policy, whose versions the store compares, need not be"

    asyncio.run(ask())


def test_a_budget_of_nothing_is_looked_at_again(tmp_path: Path) -> None:
    """What can never fit is refused without the store, which would have told that the record is old."""

    async def ask() -> None:
        closed = POLICY.replace("tokens: 1000000, per: day", "tokens: 5, per: day")
        world = World(tmp_path, closed)
        assert isinstance(await world.ask(), ApiError)
        (tmp_path / "policy.yaml").write_text(POLICY)
        assert isinstance(await world.ask(), ApiError)
        world.now += 6 * SECOND
        assert isinstance(await world.ask(), Grant)

    asyncio.run(ask())


def test_what_credit_does_not_cover_now_may_be_topped_up(tmp_path: Path) -> None:
    """So it is a 402, not a 400 that says never."""

    async def ask() -> ApiError:
        world = World(tmp_path, POLICY.replace("tokens: 1000000, per: day", "usd: 0.000001, per: life"))
        error = await world.ask()
        assert isinstance(error, ApiError)
        return error

    error = asyncio.run(ask())
    assert (error.status, error.code) == (402, "insufficient_quota")
    assert "has to be topped up. GET /v1/usage" in error.message


def test_a_budget_that_calls_in_flight_hold_is_not_said_to_be_gone_until_its_window_ends(tmp_path: Path) -> None:
    async def play() -> None:
        world = World(tmp_path, POLICY.replace("tokens: 1000000, per: day", "tokens: 1000, per: day"))
        first = await world.ask(tokens=910)
        assert isinstance(first, Grant)
        refused = await world.ask(tokens=210)
        assert isinstance(refused, ApiError)
        assert refused.status == 402
        assert "It resets at 2026-11-22T00:00:00Z; calls in flight may free some of it sooner." in refused.message
        assert "retry-after" not in refused.headers
        await world.store.settle(first.settlement(30, 1, counts=True))
        world.now += 2 * SECOND
        assert isinstance(await world.ask(tokens=210), Grant)

    asyncio.run(play())


def test_what_nobody_settles_is_held_until_the_call_must_have_ended(tmp_path: Path) -> None:
    """By the total timeout of its routes (300 s each where the policy says nothing), or by the process's deadline."""

    async def held(longest_us: int) -> int:
        two = POLICY.replace("{upstream: here, model: s}", "{upstream: here, model: s}, {upstream: here, model: t}")
        world = World(tmp_path, two)
        request = Request("r", "openai", "small", 1, 1, longest_us)
        return (await world.admitter.admit(ALICE, "192.0.2.1", request, 0)).admission.expires_us

    assert asyncio.run(held(900 * SECOND)) == (2 * 300 + 30) * SECOND
    assert asyncio.run(held(60 * SECOND)) == (60 + 30) * SECOND


def test_what_was_undone_refuses_nobody_afterwards(tmp_path: Path) -> None:
    """A boost of another limit ends between the container's moment and the store's: what was taken is given back, and
    the bucket, which had refused before, is full again for whoever comes next."""
    boost = '[{scope: user, tokens: 200000, per: minute, until: "2026-11-21T12:00:06Z"}]'
    text = POLICY.replace("requests: 60, per: minute, burst: 10", "requests: 12, per: minute, burst: 1")
    text = text.replace("tenants: {acme: {plan: free}}", f"tenants: {{acme: {{plan: free, limits: {boost}}}}}")

    async def ask() -> list[bool]:
        world = World(tmp_path, text)
        world.admitter._local.name = "local"
        answers = [await world.ask(), await world.ask()]
        world.now = NOON + 6 * SECOND - 100
        decide, late = world.store.admit, [200]

        async def admit(admission: Admission) -> Decision:
            world.now += late.pop() if late else 0
            return await decide(admission)

        world.store.admit = admit  # type: ignore[method-assign]
        answers += [await world.ask(), await world.ask()]
        return [isinstance(answer, Grant) for answer in answers]

    assert asyncio.run(ask()) == [True, False, True, False]
