"""The arithmetic of limits: windows, token buckets, what a refusal says."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain import keys
from tollgate.domain.limits import (
    DAY_US,
    FOREVER_US,
    PERIOD_US,
    Admission,
    Budget,
    BudgetTake,
    Decision,
    Rate,
    RateTake,
    Scope,
    Status,
    Unit,
    Window,
    fits,
    grant,
    moved,
    refusal,
    remaining,
)

NOW = 1_795_262_400_000_000

rates = st.builds(
    lambda unit, amount, period, depth: Rate(
        Scope.USER, unit, amount, PERIOD_US[period], max(1, amount * depth // 4), ""
    ),
    st.sampled_from([Unit.REQUESTS, Unit.TOKENS]),
    st.integers(1, 10**6),
    st.sampled_from(sorted(PERIOD_US)),
    st.integers(1, 12),
)


class TestWindows:
    @given(st.integers(0, 4_102_444_800_000_000))
    def test_a_window_contains_its_moment_and_ends_where_the_next_begins(self, now: int) -> None:
        for window in (Window.DAY, Window.MONTH):
            label, start, end = window.bounds(now)
            assert start <= now < end
            next_label, next_start, _ = window.bounds(end)
            assert next_start == end
            assert next_label > label

    def test_labels_are_utc_dates(self) -> None:
        moment = int(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * 1_000_000
        assert Window.DAY.bounds(moment) == ("2026-12-31", moment + 1_000_000 - DAY_US, moment + 1_000_000)
        assert Window.MONTH.bounds(moment)[0] == "2026-12"
        assert Window.LIFE.bounds(moment) == ("life", 0, FOREVER_US)


class TestRates:
    @given(rates)
    def test_a_full_bucket_admits_its_burst_and_no_more(self, rate: Rate) -> None:
        whole = RateTake("s", "k", rate, rate.burst, rate.burst)
        assert fits(whole, 0, NOW)
        above = RateTake("s", "k", rate, rate.burst + 1, rate.burst + 1)
        assert not fits(above, 0, NOW)

    @given(rates, st.lists(st.integers(0, 5_000_000), max_size=60))
    def test_admitted_requests_obey_the_bound_over_any_time(self, rate: Rate, waits: list[int]) -> None:
        take = RateTake("s", "k", rate, 1, 1)
        now, tat, admitted = NOW, 0, 0
        for wait in waits:
            now += wait
            if fits(take, tat, now):
                tat = max(tat, now) + take.inc_us
                admitted += 1
        assert admitted <= rate.burst + (now - NOW) * rate.amount / rate.period_us + 1e-9

    @given(rates, st.integers(1, 10**6), st.integers(0, 10**6), st.integers(-(10**9), 10**9))
    def test_what_is_granted_lies_between_floor_and_cost_and_fits(
        self, rate: Rate, cost: int, floor: int, offset: int
    ) -> None:
        take = RateTake("s", "k", rate, cost, min(floor, cost))
        value = NOW + offset
        if fits(take, value, NOW):
            got = grant(take, value, NOW)
            assert take.floor_us <= got <= max(take.inc_us, take.floor_us)
            assert max(value, NOW) + got <= NOW + rate.burst_us

    @pytest.mark.parametrize(("amount", "period_us", "burst"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-7, 60, 7)])
    def test_a_rate_of_nothing_is_a_mistake(self, amount: int, period_us: int, burst: int) -> None:
        with pytest.raises(ValueError, match="1 or more"):
            Rate(Scope.USER, Unit.REQUESTS, amount, period_us, burst, "")

    def test_seven_per_minute_admits_seven(self) -> None:
        rate = Rate(Scope.USER, Unit.REQUESTS, 7, 60_000_000, 7, "")
        assert rate.burst_us == 7 * rate.inc_us(1)
        assert remaining(RateTake("s", "k", rate, 1, 1), 0, NOW) == 7

    def test_debt_is_taken_from_now_and_a_give_back_only_lowers(self) -> None:
        assert moved(NOW - 100, 50, NOW) == NOW + 50
        assert moved(NOW - 100, -50, NOW) == NOW - 150
        assert moved(NOW + 100, 50, NOW) == NOW + 150


def _decide(*pairs: tuple[RateTake | BudgetTake, int]) -> tuple[Admission, Decision]:
    admission = Admission("id", [take for take, _ in pairs], 1, "t")
    return admission, Decision(Status.REFUSED, NOW, [value for _, value in pairs])


class TestRefusal:
    rate = Rate(Scope.USER, Unit.REQUESTS, 10, 60_000_000, 10, "user.requests.minute")
    money = Budget(Scope.TENANT, Unit.MICROUSD, 1000, Window.DAY, "tenant.microusd.day")

    def _budget(self, cost: int) -> BudgetTake:
        label, start, end = Window.DAY.bounds(NOW)
        return BudgetTake("s", "b", self.money, cost, cost, label, start, end)

    def test_names_the_limit_with_the_longest_wait(self) -> None:
        take = RateTake("s", "k", self.rate, 1, 1)
        found = refusal(*_decide((take, NOW + 60_000_000), (self._budget(1), 1000)))
        assert found.take.limit is self.money
        assert found.wait_us == DAY_US // 2

    def test_what_can_never_fit_is_said_before_any_wait(self) -> None:
        take = RateTake("s", "k", self.rate, 11, 11)
        found = refusal(*_decide((take, 0), (self._budget(1), 1000)))
        assert (found.never, found.take) == (True, take)

    def test_the_wait_is_exact(self) -> None:
        take = RateTake("s", "k", self.rate, 1, 1)
        value = NOW + 60_000_000
        found = refusal(*_decide((take, value)))
        assert found.wait_us is not None
        assert fits(take, value, NOW + found.wait_us)
        assert not fits(take, value, NOW + found.wait_us - 1)

    def test_a_decision_without_a_refusing_limit_is_a_mistake(self) -> None:
        with pytest.raises(ValueError, match="every take fits"):
            refusal(*_decide((self._budget(1), 0)))


class TestKeys:
    @given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
    def test_different_ids_never_share_a_key(self, tenant: str, user: str, other_tenant: str, other_user: str) -> None:
        same = (tenant, user) == (other_tenant, other_user)
        mine = keys.member_subject(tenant, "u", user)
        theirs = keys.member_subject(other_tenant, "u", other_user)
        assert (mine == theirs) == same
        assert keys.member_subject(tenant, "k", user) != mine

    @pytest.mark.parametrize("hostile", ["{x}", "a:b", "*", "\0", "}{", "ü" * 50, "", " ", "\ud800"])
    def test_no_id_can_write_a_separator_or_a_hash_tag(self, hostile: str) -> None:
        subject = keys.member_subject(hostile, "u", hostile)
        assert subject.count("{") == subject.count("}") == 1
        assert subject.isascii()
        assert ":" not in subject

    def test_addresses(self) -> None:
        assert keys.address("2001:db8:1:2:3:4:5:6") == keys.address("2001:db8:1:2::9")
        assert keys.address("2001:db8:1:2::1") != keys.address("2001:db8:1:3::1")
        assert keys.address("::ffff:10.0.0.1") == "10.0.0.1"
        assert keys.address("not an address") == "unknown"

    def test_the_lowest_addresses_of_ipv6_are_not_one_of_ipv4(self) -> None:
        assert keys.address("::1") == keys.address("::2:3") == "::"
        assert keys.address("::1") != keys.address("0.0.0.0")
        assert keys.network("::1") == "::/48"
