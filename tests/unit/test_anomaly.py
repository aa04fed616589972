"""Anomalous burn: what alarms, what does not, and how often it is wrong on simulated spending."""

from __future__ import annotations

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.spending import Tenant
from tollgate.domain.anomaly import DAYS, FLOOR, LEAST_DAYS, unusual

STEADY = [10_000_000] * 28


def test_a_steady_tenant() -> None:
    assert unusual(STEADY, 40_000_000)
    assert not unusual(STEADY, 30_000_000)


def test_small_amounts_and_short_histories_are_nothing() -> None:
    assert not unusual([1_000] * 28, FLOOR - 1)
    assert not unusual([0] * 28, 3 * FLOOR)
    assert unusual([0] * 28, 5 * FLOOR)
    assert not unusual(STEADY[: LEAST_DAYS - 1], 10**12)


def test_what_has_been_seen_on_two_days_is_no_anomaly() -> None:
    assert unusual([*STEADY[1:], 100_000_000], 100_000_000)
    assert not unusual([*STEADY[2:], 100_000_000, 100_000_000], 140_000_000)
    assert unusual([*STEADY[2:], 100_000_000, 100_000_000], 160_000_000)


AMOUNTS = st.integers(0, 10**12)


@given(st.lists(AMOUNTS, min_size=LEAST_DAYS, max_size=DAYS), AMOUNTS, AMOUNTS)
def test_more_is_never_less_unusual(peaks: list[int], used: int, more: int) -> None:
    assert unusual(peaks, used) <= unusual(peaks, used + more)


def simulate(seed: int, tenants: int, days: int, burn: float) -> tuple[float, float]:
    """False alarms per tenant and 30 days, and the share that is found of single hours that cost `burn` times the usual
    peak more."""
    chance = random.Random(seed)
    alarms = watched = found = burns = 0
    for _ in range(tenants):
        peaks: list[int] = []
        for hours in Tenant.any(chance).days(chance, days):
            if len(peaks) == DAYS:
                watched += 1
                alarms += any(unusual(peaks, used) for used in hours)
                burns += 1
                usual = max(median(peaks), FLOOR)
                found += unusual(peaks, chance.choice(hours) + round(burn * usual))
            peaks = [*peaks, max(hours)][-DAYS:]
    return alarms / watched * 30, found / burns


def test_it_is_seldom_wrong_and_finds_most() -> None:
    false_alarms, found = simulate(seed=1, tenants=20, days=56, burn=10)
    assert false_alarms < 0.25
    assert found > 0.6


@pytest.mark.long
def test_its_false_alarm_rate() -> None:
    """The figures of ADR 28: a thousand tenants over eight weeks, of which the last four are watched."""
    false_alarms, found = simulate(seed=7, tenants=1000, days=56, burn=10)
    assert false_alarms < 0.1
    assert found > 0.65
