"""The same sequence, replayed with the same moments, gives the same decisions on every store."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import NOON, STORES, Driver, make_driver
from tests.contract.test_limit_store import budget, requests, slot, tokens
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import DAY_US, BudgetTake, Decision, RateTake, SlotTake, Take
from tollgate.services.reconcile import BudgetStore

MIDNIGHT = NOON + DAY_US // 2
STARTS = (NOON, MIDNIGHT - 40_000_000, MIDNIGHT - 1, MIDNIGHT)
"""Near a window's end a sequence lives in two: what is held in one is settled in the next."""
PALETTE: dict[str, Any] = {
    "requests": lambda cost, floor, now: requests(3, subject="{a}u"),
    "tokens": lambda cost, floor, now: tokens(cost * 10, floor * 10),
    "budget": lambda cost, floor, now: budget(cost, floor=floor, seed=0, at=now),
    "cold": lambda cost, floor, now: budget(cost, floor=floor, seed=None, at=now),
    # of a caller whose clock is behind, or ahead
    "late": lambda cost, floor, now: budget(cost, floor=floor, seed=0, at=now - 45_000_000),
    "early": lambda cost, floor, now: budget(cost, floor=floor, seed=None, at=now + 45_000_000),
    "slot": lambda cost, floor, now: slot(2),
}
KINDS = (RateTake, BudgetTake, SlotTake)
"""The order of an admission's takes."""
takes = st.tuples(st.sampled_from(sorted(PALETTE)), st.integers(0, 60), st.integers(0, 60)).map(
    lambda t: (t[0], max(t[1], t[2]), min(t[1], t[2]))
)
ids = st.integers(0, 3)
steps = st.one_of(
    st.tuples(st.just("admit"), ids, st.lists(takes, min_size=1, max_size=4, unique_by=lambda t: t[0])),
    st.tuples(st.just("settle"), ids, st.integers(0, 90)),
    st.tuples(st.just("again"), ids, st.none()),
    st.tuples(st.just("wait"), st.integers(0, 30_000_000), st.none()),
    st.tuples(st.just("floor"), st.integers(0, 120), st.none()),
)


def seen(takes: list[Take], decision: Decision) -> list[tuple[int, int]]:
    """What was seen and granted, but all buckets alike that are full: it is no matter since when (a cluster that gives
    back leaves a full bucket full from now on)."""
    now = decision.now_us
    return [
        (max(value, now) if isinstance(take, RateTake) else value, granted)
        for take, value, granted in zip(takes, decision.values, decision.granted, strict=False)
    ]


OTHERS = [kind for kind in STORES if kind != "memory"]


@pytest.mark.parametrize("kind", OTHERS)
def test_same_sequence_same_decisions(kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest) -> None:
    replay(kind, runner, request, examples=60, least=12, most=30)


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "dynamodb"])  # moto: slow, and no wiser
def test_a_thousand_long_sequences(kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest) -> None:
    replay(kind, runner, request, examples=1000, least=50, most=50)


def replay(
    kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest, *, examples: int, least: int, most: int
) -> None:
    """Generate sequences and give each to a store and to the reference; they must answer alike, step by step."""
    made: list[Driver] = []

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.sampled_from(STARTS), st.lists(steps, min_size=least, max_size=most))
    def run(start: int, sequence: list[tuple[str, int, Any]]) -> None:
        driver = make_driver(kind, runner, request)
        made.append(driver)
        if len(made) > 1:
            runner.run(made.pop(0).store.aclose())
        reference: Driver
        reference = Driver(MemoryLimitStore(clock=lambda: reference.now), runner)
        both = (driver, reference)
        driver.now = reference.now = start
        admitted: dict[str, list[Take]] = {}
        held: dict[str, int] = {}
        """Since which day. (Who asks again on another is told so; a cluster then gives back what other groups took.)"""

        def same(asked: list[Take], name: str) -> Decision:
            mine, theirs = (one.admit(*asked, id=name, expires_us=20_000_000) for one in both)
            assert (mine.status, mine.cold, mine.now_us) == (theirs.status, theirs.cold, theirs.now_us)
            assert seen(asked, mine) == seen(asked, theirs)
            return mine

        for step, (what, number, detail) in enumerate(sequence):
            if what == "wait":
                for one in both:
                    one.now += number
            elif what == "floor":
                for one in both:
                    one.run(one.store.raise_floor({budget(1, at=start).key: number}))
            elif what == "settle":
                name = f"id{number}"
                taken = admitted.get(name, [])
                used = [None if t.key.endswith("requests.minute") else detail for t in taken]
                assert driver.settle(name, taken, used) == reference.settle(name, taken, used)
                held.pop(name, None)
            elif what == "again":  # as after a lost answer
                name = f"id{number}"
                if held.get(name) == driver.now // DAY_US:
                    same(admitted[name], name)
            else:
                name = f"id{number}" if f"id{number}" not in admitted else f"id{number}.{step}"
                asked = [PALETTE[k](cost, floor, driver.now) for k, cost, floor in detail]
                each = {take.limit.id: take for take in reversed(asked)}
                asked = sorted(each.values(), key=lambda t: KINDS.index(type(t)))
                if same(asked, name).admitted:
                    admitted[name] = asked
                    held[name] = driver.now // DAY_US
        windows = [budget(1, at=at).key for at in (start, driver.now)]
        spent = [one.run(cast(BudgetStore, one.store).known_spent(windows)) for one in both]
        known = [{key: amount for key, amount in each.items() if amount} for each in spent]
        assert known[0] == known[1]

    try:
        run()
    finally:
        for driver in made:
            runner.run(driver.store.aclose())
