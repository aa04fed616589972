"""What settlements teach is told with admissions, by the same formulas in every store that keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import Driver, make_driver
from tests.contract.test_limit_store import slot, tokens
from tollgate.domain import keys
from tollgate.domain.estimates import Learned, Sample
from tollgate.domain.limits import Admission, Settlement

KEY = keys.estimate_key("acme", "small")
samples = st.builds(Sample, st.integers(0, 300_000), st.integers(0, 80_000), st.integers(0, 5_000))


@pytest.fixture(params=["memory", "redis", "cluster"])
def driver(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Driver]:
    made = make_driver(request.param, runner, request)
    yield made
    made.run(made.store.aclose())


def asked(driver: Driver, id: str = "ask") -> Learned | None:
    return driver.run(driver.store.admit(Admission(id, [tokens(0)], 60_000_000, "acme", ask=KEY))).told


def taught(driver: Driver, id: str, sample: Sample) -> bool:
    takes = [tokens(0), slot(1000)]
    driver.admit(*takes, id=id)
    return driver.run(driver.store.settle(Settlement(id, takes, [0, 0], "acme", sample=sample, learn=KEY)))


def test_nothing_is_known_at_first_and_told_only_when_asked(driver: Driver) -> None:
    assert asked(driver, "first") is None
    assert taught(driver, "a", Sample(400, 100, 50))
    assert asked(driver, "second") == Learned(400, 100, 50, 1)
    assert driver.admit(tokens(0)).told is None


def test_a_settlement_teaches_once(driver: Driver) -> None:
    taught(driver, "a", Sample(400, 100, 50))
    takes = [tokens(0), slot(1000)]
    again = Settlement("a", takes, [0, 0], "acme", sample=Sample(9, 9, 9), learn=KEY)
    assert not driver.run(driver.store.settle(again))
    assert asked(driver) == Learned(400, 100, 50, 1)


def test_every_store_learns_as_the_domain_does(driver: Driver) -> None:
    counter = iter(range(10**9))

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(samples, max_size=12))
    def learn(sequence: list[Sample]) -> None:
        expected = asked(driver, f"a{next(counter)}") or Learned()
        for sample in sequence:
            expected.add(sample)
            taught(driver, f"s{next(counter)}", sample)
        assert asked(driver, f"b{next(counter)}") in (expected, None if expected == Learned() else expected)

    learn()
