"""What settlements teach is told with admissions, by the same formulas in every store that keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import Driver, make_driver
from tests.contract.test_limit_store import MINUTE, slot, tokens
from tollgate.domain import keys
from tollgate.domain.estimates import Learned, Sample
from tollgate.domain.limits import Admission, Rate, RateTake, Scope, Settlement, Take, Unit

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


@pytest.mark.parametrize("scope", [Scope.IP, Scope.GLOBAL, None])
def test_who_has_no_limits_of_their_own_teaches_too(driver: Driver, scope: Scope | None) -> None:
    """None: no limits at all."""
    takes: list[Take] = []
    if scope is not None:
        subject = keys.ip_subject("192.0.2.7") if scope is Scope.IP else keys.global_subject()
        limit = Rate(scope, Unit.REQUESTS, 10, MINUTE, 10, f"{scope}.requests.minute")
        takes.append(RateTake(subject, f"{subject}:requests.minute", limit, 1, 1))
    used: list[int | None] = [None] * len(takes)
    for id, ask in (("a", KEY), ("b", "")):
        assert driver.run(driver.store.admit(Admission(id, takes, MINUTE, "acme", 3, ask=ask))).admitted
        sample = Settlement(id, takes, used, "acme", sample=Sample(400, 100, 50), learn=KEY)
        for taught in (True, False):
            assert driver.run(driver.store.settle(sample)) == taught
    told = driver.run(driver.store.admit(Admission("c", takes, MINUTE, "acme", 3, ask=KEY))).told
    assert told is not None
    assert told.answers == 2


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
