"""Hot global limits in several items: never more than the limit, and seldom less."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.adapters.dynamodb_shards import WRITES_PER_S, pick, shards, share, whole, whole_tat
from tollgate.domain import keys
from tollgate.domain.limits import (
    Admission,
    Concurrency,
    Decision,
    Rate,
    RateTake,
    Scope,
    SlotTake,
    Status,
    Take,
    Unit,
    fits,
    refusal,
)

SECOND = 1_000_000
NOW = 1_795_262_400_000_000
GLOBAL = keys.global_subject()


def rate(
    amount: int, unit: Unit = Unit.REQUESTS, *, cost: int = 1, period_us: int = SECOND, burst: int = 0
) -> RateTake:
    limit = Rate(Scope.GLOBAL, unit, amount, period_us, burst or amount, f"global.{unit}")
    return RateTake(GLOBAL, f"{GLOBAL}:{unit}", limit, cost, cost)


def slots(amount: int) -> SlotTake:
    return SlotTake(GLOBAL, f"{GLOBAL}:slots", Concurrency(Scope.GLOBAL, amount, "global.slots"))


@pytest.mark.parametrize(
    ("takes", "count"),
    [
        ([rate(10)], 1),
        ([rate(400)], 1),
        ([rate(401)], 2),
        ([rate(800)], 2),
        ([rate(801)], 4),
        ([rate(100_000)], 256),
        ([rate(400), rate(10**7, Unit.TOKENS)], 2),  # settled, too
        ([rate(2000), rate(10**6, Unit.TOKENS)], 2),  # 262,144 tokens must fit into one shard
        ([rate(60 * 10**6, Unit.TOKENS, period_us=60 * SECOND)], 32),
        ([rate(10_000, burst=16)], 2),
        ([slots(200)], 1),
        ([slots(2000)], 16),
        ([rate(4000), slots(10**6)], 32),
        ([rate(10_000), slots(80)], 8),
    ],
)
def test_as_many_as_the_policys_rate_needs_and_its_burst_allows(takes: list[Take], count: int) -> None:
    assert shards(takes) == count


def test_only_what_everyone_shares_is_spread() -> None:
    limit = Rate(Scope.TENANT, Unit.REQUESTS, 10**6, SECOND, 10**6, "tenant.requests")
    assert shards([RateTake("t", "t:requests", limit, 1, 1)]) == 1


def test_a_request_has_two_shards_and_all_are_used() -> None:
    pairs = {pick(f"{i}", 5) for i in range(500)}
    assert pairs == {(a, b) for a in range(5) for b in range(5) if a != b}
    assert pick("x", 5) == pick("x", 5)
    assert pick("x", 1) == (0, 0)


@pytest.mark.parametrize(("amount", "burst", "count"), [(1000, 1000, 3), (7, 100, 7), (12_345, 999, 31)])
def test_the_shards_of_a_rate_hold_no_more_than_the_whole_and_lose_less_than_one_each(
    amount: int, burst: int, count: int
) -> None:
    take = rate(amount, burst=burst)
    held = 0
    for shard in range(count):
        part = share(take, shard, count)
        assert isinstance(part, RateTake)
        held += part.limit.burst_us // part.inc_us
    assert burst - count < held <= burst


def test_the_shards_of_slots_are_the_whole() -> None:
    parts = [share(slots(100), shard, 7) for shard in range(7)]
    assert sum(part.limit.amount for part in parts) == 100


def test_a_shards_refusal_is_told_as_the_wholes() -> None:
    take, count = rate(1000), 4
    part = share(take, 0, count)
    assert isinstance(part, RateTake)
    full = NOW + part.limit.burst_us
    shown, _ = whole(take, part, full, 0, count, NOW)
    assert not fits(take, shown, NOW)
    told = refusal(Admission("a", [take], 0), Decision(Status.REFUSED, NOW, [shown]))
    assert told.wait_us == part.inc_us
    assert whole_tat([NOW + 4000, None, NOW - 9, NOW + 4000], count, NOW) == NOW + 2000
    assert whole_tat([None, None], 2, NOW) is None


@pytest.mark.parametrize("burst", [2000, 200])
@pytest.mark.parametrize(("load", "most"), [(0.5, 0.0), (0.8, 0.001), (0.95, 0.005), (1.0, 0.01), (1.5, 0.005)])
def test_false_refusals(load: float, most: float, burst: int) -> None:
    """2,000 requests a second in eight shards, beside an ideal limiter of the whole, for 20 s of arrivals: what is
    refused beyond what the ideal refuses, as a share of what it admits."""
    chance, take, count = random.Random(7), rate(2000, burst=burst), 8
    parts = [share(take, shard, count) for shard in range(count)]
    tats, ideal_tat = [0] * count, 0
    now, ideal, sharded = float(NOW), 0, 0
    while now < NOW + 20 * SECOND:
        now += chance.expovariate(2000 * load) * SECOND
        at = int(now)
        if fits(take, ideal_tat, at):
            ideal_tat, ideal = max(ideal_tat, at) + take.inc_us, ideal + 1
        for shard in pick(f"{now}", count):
            part = parts[shard]
            assert isinstance(part, RateTake)
            if fits(part, tats[shard], at):
                tats[shard], sharded = max(tats[shard], at) + part.inc_us, sharded + 1
                break
    refused = 1 - sharded / ideal
    print(f"load {load}, burst {burst}: {refused:.3%} refused beyond the ideal")
    assert refused <= most


@pytest.mark.parametrize("requests_per_s", [100, 1000, 2000, 12_345, 10**6])
@pytest.mark.parametrize(
    ("also", "settled"),
    [([], False), ([rate(10**12, Unit.TOKENS)], True), ([slots(10**8)], True)],
    ids=["alone", "tokens", "slots"],
)
def test_writes_of_one_item_stay_below_what_it_can_take(requests_per_s: int, also: list[Take], settled: bool) -> None:
    """One for each admission, and another for settling, where anything is settled."""
    writes_per_s = requests_per_s * (1 + settled)
    assert writes_per_s / shards([rate(requests_per_s), *also]) <= WRITES_PER_S < 500


@pytest.mark.parametrize("requests_per_s", [100, 1000, 2000, 12_345])
def test_without_a_rate_of_requests_they_are_taken_to_be_small_or_short(requests_per_s: int) -> None:
    for only in (rate(250 * requests_per_s, Unit.TOKENS, burst=10**9), slots(requests_per_s)):
        assert 2 * requests_per_s / shards([only]) <= WRITES_PER_S


def test_a_raised_limit_seldom_has_more_shards() -> None:
    """At powers of two; and as many again at most as there were, which is half of a burst anew."""
    counts = [shards([rate(amount)]) for amount in range(400, 4000)]
    assert sorted(set(counts)) == [1, 2, 4, 8, 16]
    assert all(after in (before, 2 * before) for before, after in pairwise(counts))


@given(st.integers(1, 10**5), st.integers(1, 10**4), st.integers(1, 10**4))
def test_whatever_binds_there_are_as_many_shards_as_a_power_of_two(amount: int, burst: int, in_flight: int) -> None:
    """Else each small raise would bring new, full ones."""
    count = shards([rate(amount, burst=burst), slots(in_flight)])
    assert count.bit_count() == 1
    assert count == 1 or (burst // count >= 8 and in_flight // count >= 8)
