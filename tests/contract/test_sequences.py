"""The same sequence, replayed with the same moments, gives the same decisions on every store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import STORES, Driver, make_driver
from tests.contract.test_limit_store import budget, requests, slot, tokens
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import BudgetTake, Decision, RateTake, SlotTake, Status, Take

PALETTE: dict[str, Any] = {
    "requests": lambda cost, floor: requests(3, subject="{a}u"),
    "tokens": lambda cost, floor: tokens(cost * 10, floor * 10),
    "budget": lambda cost, floor: budget(cost, floor=floor, seed=0),
    "cold": lambda cost, floor: budget(cost, floor=floor, seed=None),
    "slot": lambda cost, floor: slot(2),
}
KINDS = (RateTake, BudgetTake, SlotTake)
"""The order of an admission's takes."""
takes = st.tuples(st.sampled_from(sorted(PALETTE)), st.integers(0, 60), st.integers(0, 60)).map(
    lambda t: (t[0], max(t[1], t[2]), min(t[1], t[2]))
)
steps = st.one_of(
    st.tuples(st.just("admit"), st.integers(0, 6), st.lists(takes, min_size=1, max_size=4, unique_by=lambda t: t[0])),
    st.tuples(st.just("settle"), st.integers(0, 6), st.integers(0, 90)),
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
    replay(kind, runner, request, examples=60, least=0, most=30)


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
    @given(st.lists(steps, min_size=least, max_size=most))
    def run(sequence: list[tuple[str, int, Any]]) -> None:
        driver = make_driver(kind, runner, request)
        made.append(driver)
        if len(made) > 1:
            runner.run(made.pop(0).store.aclose())
        reference: Driver
        reference = Driver(MemoryLimitStore(clock=lambda: reference.now), runner)
        both = (driver, reference)
        admitted: dict[str, list[Take]] = {}
        for step, (what, number, detail) in enumerate(sequence):
            if what == "wait":
                for one in both:
                    one.now += number
            elif what == "floor":
                for one in both:
                    one.run(one.store.raise_floor({budget(1).key: number}))
            elif what == "settle":
                name = f"id{number}"
                taken = admitted.get(name, [])
                used = [None if t.key.endswith("requests.minute") else detail for t in taken]
                assert driver.settle(name, taken, used) == reference.settle(name, taken, used)
            else:
                name = f"id{number}" if f"id{number}" not in admitted else f"id{number}.{step}"
                asked = [PALETTE[k](cost, floor) for k, cost, floor in detail]
                asked = sorted({t.key: t for t in reversed(asked)}.values(), key=lambda t: KINDS.index(type(t)))
                mine = driver.admit(*asked, id=name, expires_us=20_000_000)
                theirs = reference.admit(*asked, id=name, expires_us=20_000_000)
                assert (mine.status, mine.cold, mine.now_us) == (theirs.status, theirs.cold, theirs.now_us)
                assert seen(asked, mine) == seen(asked, theirs)
                if mine.status is Status.ADMITTED:
                    admitted[name] = asked

    try:
        run()
    finally:
        for driver in made:
            runner.run(driver.store.aclose())
