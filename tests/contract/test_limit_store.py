"""What every limit store promises: the same decisions for the same moments."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.conftest import NOON, Driver
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_limits import RedisLimitStore
from tollgate.domain import keys
from tollgate.domain.limits import (
    DAY_US,
    FIRM_US,
    FOREVER_US,
    Budget,
    BudgetTake,
    Concurrency,
    Rate,
    RateTake,
    Scope,
    SlotTake,
    Status,
    Unit,
    Window,
    hold_expiry_us,
    refusal,
)

SECOND = 1_000_000
MINUTE = 60 * SECOND
MIDNIGHT = (NOON // DAY_US + 1) * DAY_US
USER = keys.member_subject("acme", "u", "alice")
TENANT = keys.tenant_subject("acme")


def requests(amount: int = 10, *, burst: int | None = None, period_us: int = MINUTE, subject: str = USER) -> RateTake:
    limit = Rate(Scope.USER, Unit.REQUESTS, amount, period_us, burst or amount, "user.requests.minute")
    return RateTake(subject, f"{subject}:requests.minute", limit, 1, 1)


def tokens(cost: int, floor: int | None = None, *, amount: int = 1000, subject: str = USER) -> RateTake:
    limit = Rate(Scope.USER, Unit.TOKENS, amount, MINUTE, amount, "user.tokens.minute")
    return RateTake(subject, f"{subject}:tokens.minute", limit, cost, cost if floor is None else floor)


def budget(
    cost: int, *, floor: int | None = None, amount: int = 100, seed: int | None = 0, at: int = NOON
) -> BudgetTake:
    limit = Budget(Scope.TENANT, Unit.TOKENS, amount, Window.DAY, "tenant.tokens.day")
    label, start, end = Window.DAY.bounds(at)
    least = cost if floor is None else floor
    return BudgetTake(TENANT, f"{TENANT}:b:tokens.day:{label}", limit, cost, least, label, start, end, seed)


def slot(amount: int = 2) -> SlotTake:
    return SlotTake(TENANT, f"{TENANT}:slots", Concurrency(Scope.TENANT, amount, "tenant.slots"))


class TestRates:
    def test_admits_exactly_the_burst_then_one_per_period(self, driver: Driver) -> None:
        for amount in (1, 7, 10):
            take = requests(amount, subject=f"{USER}{amount}")
            assert [driver.admit(take).status for _ in range(amount + 1)] == [Status.ADMITTED] * amount + [
                Status.REFUSED
            ]
            wait = refusal(driver.admission(take), driver.admit(take)).wait_us
            assert wait == -(-MINUTE // amount)
            driver.now += wait - 1
            assert not driver.admit(take).admitted
            driver.now += 1
            assert driver.admit(take).admitted
            assert not driver.admit(take).admitted

    def test_a_refused_request_leaves_every_bucket_untouched(self, driver: Driver) -> None:
        roomy, tight = tokens(600), requests(1)
        assert driver.admit(roomy, tight).admitted
        for _ in range(5):
            assert driver.admit(tokens(100), tight).status is Status.REFUSED
        assert driver.admit(tokens(400)).admitted
        assert not driver.admit(tokens(1)).admitted

    def test_a_refusal_is_firm_for_long_only_where_one_step_decides(self, driver: Driver) -> None:
        """Elsewhere a request that is being refused by another limit may have taken for a moment."""
        assert driver.admit(requests(1)).admitted
        one_step = isinstance(driver.store, MemoryLimitStore | RedisLimitStore)
        assert driver.admit(requests(1)).firm_us == (FIRM_US if one_step else SECOND)

    def test_a_guess_shrinks_to_what_is_left_but_not_below_its_floor(self, driver: Driver) -> None:
        assert driver.admit(tokens(900)).admitted
        decision = driver.admit(tokens(500, floor=50))
        assert decision.admitted
        assert decision.granted[0] == tokens(100).inc_us
        assert not driver.admit(tokens(500, floor=1)).admitted

    def test_settling_gives_back_what_was_not_used(self, driver: Driver) -> None:
        take = tokens(1000)
        driver.admit(take, id="a")
        assert not driver.admit(tokens(1)).admitted
        assert driver.settle("a", [take], [300])
        assert driver.admit(tokens(700)).admitted
        assert not driver.admit(tokens(1)).admitted

    def test_use_beyond_the_hold_becomes_debt(self, driver: Driver) -> None:
        take = tokens(100)
        driver.admit(take, id="a")
        driver.settle("a", [take], [2000])
        driver.now += MINUTE
        assert not driver.admit(tokens(1)).admitted
        driver.now += MINUTE
        assert driver.admit(tokens(900)).admitted

    def test_debt_counts_from_now_on_even_if_the_bucket_had_refilled(self, driver: Driver) -> None:
        take = tokens(10)
        driver.admit(take, id="a", expires_us=10 * MINUTE)
        driver.now += 5 * MINUTE
        driver.settle("a", [take], [1010])
        assert not driver.admit(tokens(1)).admitted

    def test_a_debt_beyond_all_numbers_still_is_a_debt(self, driver: Driver) -> None:
        take = tokens(10)
        driver.admit(take, id="a")
        driver.settle("a", [take], [FOREVER_US])
        driver.now += MINUTE
        assert driver.admit(tokens(1)).status is Status.REFUSED
        assert driver.admit(tokens(1)).status is Status.REFUSED

    def test_requests_are_never_given_back(self, driver: Driver) -> None:
        take = requests(1)
        driver.admit(take, id="a")
        assert driver.settle("a", [take], [None])
        assert not driver.admit(take).admitted


class TestIdempotency:
    def test_a_repeated_admission_takes_once(self, driver: Driver) -> None:
        takes = [tokens(100), budget(10), slot(5)]
        first = driver.admit(*takes, id="a")
        for _ in range(3):
            again = driver.admit(*takes, id="a")
            assert (again.status, again.values, again.granted) == (first.status, first.values, first.granted)
        assert driver.admit(tokens(900)).admitted

    def test_a_repeated_admission_is_granted_nothing_more(self, driver: Driver) -> None:
        """Asked for more limits than before, by a policy that has changed meanwhile, say."""
        takes = [tokens(100), budget(10)]
        assert driver.admit(*takes, id="a").admitted
        more = [tokens(100), budget(10), slot()]
        again = driver.admit(*more, id="a")
        assert (again.status, list(again.granted)) == (Status.ADMITTED, [tokens(100).inc_us, 10, 0])
        assert driver.settle("a", list(more), [50, 5, 0])
        assert list(driver.admit(tokens(0), budget(0)).values) == [driver.now + tokens(50).inc_us, 5]

    def test_a_repeated_settlement_moves_once(self, driver: Driver) -> None:
        takes = [tokens(1000), budget(100)]
        driver.admit(*takes, id="a")
        assert driver.settle("a", takes, [500, 40])
        assert not driver.settle("a", takes, [500, 40])
        assert not driver.settle("a", takes, [0, 0])
        assert driver.admit(tokens(500), budget(60)).admitted
        assert not driver.admit(budget(1)).admitted

    def test_an_unknown_settlement_moves_nothing(self, driver: Driver) -> None:
        takes = [tokens(1), budget(1)]
        assert not driver.settle("never-admitted", takes, [999, 99])
        assert driver.admit(tokens(1000), budget(100)).admitted


class TestBudgets:
    def test_a_budget_nobody_loaded_is_cold_and_takes_nothing(self, driver: Driver) -> None:
        decision = driver.admit(tokens(1000), budget(10, seed=None))
        assert (decision.status, decision.cold) == (Status.COLD, (1,))
        assert driver.admit(tokens(1000), budget(10, seed=95)).status is Status.REFUSED
        assert driver.admit(tokens(1000), budget(5, seed=None)).admitted

    def test_a_seed_never_lowers_what_is_spent(self, driver: Driver) -> None:
        take = budget(50, seed=20)
        driver.admit(take, id="a")
        driver.settle("a", [take], [50])
        assert driver.admit(budget(30, seed=0)).admitted
        assert not driver.admit(budget(1, seed=0)).admitted

    def test_committed_is_spent_plus_held(self, driver: Driver) -> None:
        take = budget(60)
        driver.admit(take, id="a")
        assert not driver.admit(budget(41)).admitted
        driver.settle("a", [take], [10])
        decision = driver.admit(budget(90))
        assert decision.admitted
        assert decision.values[0] == 100

    def test_overspend_is_seen_by_the_next_admission(self, driver: Driver) -> None:
        take = budget(60)
        driver.admit(take, id="a")
        driver.settle("a", [take], [150])
        decision = driver.admit(budget(1))
        assert decision.status is Status.REFUSED
        assert decision.values[0] == 150

    def test_an_expired_hold_is_released_and_settles_to_nothing(self, driver: Driver) -> None:
        take = budget(100)
        driver.admit(take, id="a", expires_us=SECOND)
        ends = hold_expiry_us(driver.now, SECOND)
        driver.now = ends - 1
        assert not driver.admit(budget(1)).admitted
        driver.now = ends
        assert driver.admit(budget(100), id="b").admitted
        assert not driver.settle("a", [take], [100])
        assert driver.settle("b", [take], [40])
        assert driver.admit(budget(60)).admitted

    def test_the_wrong_window_is_told_and_takes_nothing(self, driver: Driver) -> None:
        yesterday = budget(10, at=NOON - 86_400 * SECOND)
        assert driver.admit(yesterday).status is Status.WINDOW
        assert driver.admit(budget(100)).admitted

    def test_a_call_that_ends_after_midnight_is_settled_on_its_own_day(self, driver: Driver) -> None:
        driver.now = MIDNIGHT - SECOND
        old = budget(60, at=driver.now)
        assert driver.admit(old, id="a").admitted
        driver.now = MIDNIGHT + SECOND
        new = budget(50, at=driver.now)
        assert driver.admit(new, id="b").admitted
        assert driver.settle("a", [old], [40])
        assert driver.admit(budget(0, at=driver.now)).values[0] == 50
        assert driver.settle("b", [new], [10])
        assert driver.admit(budget(0, at=driver.now)).values[0] == 10
        driver.now = MIDNIGHT - 1
        assert driver.admit(budget(0, at=driver.now)).values[0] == 40

    def test_an_admission_is_not_told_again_on_another_day(self, driver: Driver) -> None:
        """Its answer may have been lost. Given back, it is asked for again by the same id, and held on the new day."""
        driver.now = MIDNIGHT - SECOND
        old = [requests(1), budget(60, at=driver.now)]
        assert driver.admit(*old, id="a").admitted
        driver.now = MIDNIGHT + SECOND
        assert driver.admit(*old, id="a").status is Status.WINDOW
        assert driver.settle("a", list(old), [0, 0])
        new = [requests(1), budget(60, at=driver.now)]
        decision = driver.admit(*new, id="a")
        assert (decision.status, decision.granted[1], decision.values[1]) == (Status.ADMITTED, 60, 60)
        assert driver.settle("a", list(new), [None, 30])
        assert driver.admit(budget(0, at=driver.now)).values[0] == 30
        driver.now = MIDNIGHT - 1
        assert driver.admit(budget(0, at=driver.now)).values[0] == 0

    def test_a_crowd_gets_exactly_what_there_is(self, driver: Driver) -> None:
        """A hundred calls at once, with maxima that their answers honour, of a budget for ten: nothing is overspent."""
        take = budget(100, amount=1000)
        crowd = [driver.admission(take, id=f"{number}") for number in range(100)]

        async def together() -> list[bool]:
            return [decision.admitted for decision in await asyncio.gather(*map(driver.store.admit, crowd))]

        admitted = [each for each, yes in zip(crowd, driver.run(together()), strict=True) if yes]
        assert len(admitted) == 10
        for each in admitted:
            assert driver.settle(each.id, [take], [100])
            assert not driver.settle(each.id, [take], [100])
        decision = driver.admit(budget(1, amount=1000))
        assert (decision.status, decision.values[0]) == (Status.REFUSED, 1000)

    def test_the_wrong_window_is_told_to_who_asks_again_too(self, driver: Driver) -> None:
        taken = budget(10)
        driver.now = taken.end_us - SECOND
        assert driver.admit(taken, id="a").admitted
        driver.now += 2 * SECOND
        assert driver.admit(taken, id="a").status is Status.WINDOW
        assert driver.admit(budget(100, at=driver.now)).admitted

    def test_a_guess_shrinks_in_a_budget(self, driver: Driver) -> None:
        driver.admit(budget(80))
        decision = driver.admit(budget(50, floor=5))
        assert decision.admitted
        assert decision.granted[0] == 20

    def test_use_beyond_all_numbers_is_not_forgotten(self, driver: Driver) -> None:
        take = budget(10)
        driver.admit(take, id="a")
        driver.settle("a", [take], [FOREVER_US])
        assert driver.admit(budget(1)).status is Status.REFUSED
        driver.run(driver.store.raise_floor({take.key: 2 * FOREVER_US}))
        assert driver.admit(budget(1)).status is Status.REFUSED

    def test_a_floor_raises_what_is_spent_but_loads_nothing(self, driver: Driver) -> None:
        take = budget(10)
        driver.admit(take, id="a")
        driver.run(driver.store.raise_floor({take.key: 70, "{unknown}:b:tokens.day:2026-11-21": 5}))
        assert not driver.admit(budget(21)).admitted
        driver.run(driver.store.raise_floor({take.key: 1}))
        assert not driver.admit(budget(21)).admitted
        assert driver.admit(budget(20)).admitted

    def test_credit_for_life_has_no_end(self, driver: Driver) -> None:
        limit = Budget(Scope.TENANT, Unit.MICROUSD, 10, Window.LIFE, "tenant.microusd.life")
        take = BudgetTake(TENANT, f"{TENANT}:b:life", limit, 10, 10, "life", 0, FOREVER_US, seed=0)
        admission = driver.admission(take)
        assert driver.admit(take).admitted
        refused = refusal(admission, driver.admit(take))
        assert (refused.wait_us, refused.never) == (None, False)


class TestSlots:
    def test_slots_are_freed_by_settling_or_by_their_holders_death(self, driver: Driver) -> None:
        assert driver.admit(slot(), id="a").admitted
        assert driver.admit(slot(), id="b", expires_us=SECOND).admitted
        assert driver.admit(slot()).status is Status.REFUSED
        assert driver.settle("a", [slot()], [0])
        assert driver.admit(slot(), id="c").admitted
        assert not driver.admit(slot()).admitted
        driver.now = hold_expiry_us(driver.now, SECOND)
        assert driver.admit(slot()).admitted
        assert not driver.admit(slot()).admitted


class TestAllOrNothing:
    def test_a_refusal_anywhere_takes_nothing_anywhere(self, driver: Driver) -> None:
        driver.admit(slot(1), id="holder")
        for _ in range(3):
            assert not driver.admit(requests(1), tokens(1000), budget(100), slot(1)).admitted
        driver.settle("holder", [slot(1)], [0])
        assert driver.admit(requests(1), tokens(1000), budget(100), slot(1)).admitted


class TestVersions:
    def test_an_old_version_takes_nothing(self, driver: Driver) -> None:
        driver.run(driver.store.publish(policy=5, tenants={"acme": 3}))
        decision = driver.admit(requests(1), policy_version=4, tenant_version=3)
        assert (decision.status, decision.policy_version, decision.tenant_version) == (Status.STALE, 5, 3)
        assert driver.admit(requests(1), policy_version=5, tenant_version=2).status is Status.STALE
        assert driver.admit(requests(1), policy_version=5, tenant_version=3).admitted

    def test_a_version_never_falls(self, driver: Driver) -> None:
        driver.run(driver.store.publish(policy=5))
        driver.run(driver.store.publish(policy=4))
        assert driver.admit(requests(), policy_version=4).status is Status.STALE

    def test_unversioned_admissions_are_not_compared(self, driver: Driver) -> None:
        driver.run(driver.store.publish(policy=5, tenants={"acme": 3}))
        assert driver.admit(requests()).admitted


class TestBadInput:
    """A store never gives quota away, whatever it is asked to take, in empty buckets and in full ones."""

    @pytest.mark.parametrize("full", [False, True])
    @pytest.mark.parametrize(("cost", "floor"), [(-500, -500), (-1, -1), (10, -10), (5, 10)])
    def test_a_cost_below_nothing_or_below_its_floor_is_an_error(
        self, driver: Driver, full: bool, cost: int, floor: int
    ) -> None:
        assert driver.admit(tokens(1000 if full else 0), budget(100 if full else 0)).admitted
        for wrong in (tokens(cost, floor), budget(cost, floor=floor)):
            with pytest.raises(ValueError, match="costs 0 or more"):
                driver.admit(wrong)
        assert driver.admit(tokens(1000), budget(100)).admitted is not full
        assert not driver.admit(tokens(1)).admitted
        assert not driver.admit(budget(1)).admitted

    def test_use_below_nothing_is_an_error_and_the_hold_stays(self, driver: Driver) -> None:
        taken = [tokens(500), budget(50)]
        assert driver.admit(*taken, id="a").admitted
        for used in ([-400, 50], [500, -40], [2**53, 1], [1, 2**60]):
            with pytest.raises(ValueError, match="what a request used"):
                driver.settle("a", taken, [*used])
        assert not driver.admit(tokens(501)).admitted
        assert not driver.admit(budget(51)).admitted
        assert driver.settle("a", taken, [500, 50])

    def test_what_is_known_below_nothing_is_an_error(self, driver: Driver) -> None:
        with pytest.raises(ValueError, match="known of a limit"):
            driver.admit(budget(1, seed=-50))
        assert driver.admit(budget(1, seed=None)).status is Status.COLD

    def test_limits_of_nothing_refuse(self, driver: Driver) -> None:
        assert driver.admit(budget(1, amount=0)).status is Status.REFUSED
        assert driver.admit(slot(0)).status is Status.REFUSED

    def test_what_is_no_limit_or_in_no_stores_order_is_an_error(self, driver: Driver) -> None:
        class Quota(Concurrency):
            """Of another version, say."""

        unknown = SlotTake(TENANT, f"{TENANT}:slots", Quota(Scope.TENANT, 1, "tenant.slots"))
        with pytest.raises(TypeError, match="a limit is a Rate"):
            driver.admit(tokens(1), unknown)
        for wrong in ([budget(1), tokens(1)], [slot(), budget(1)], [slot(), requests()]):
            with pytest.raises(ValueError, match="rates, then budgets, then slots"):
                driver.admit(*wrong)
        assert driver.admit(tokens(1000), budget(100), slot(1)).admitted

    def test_a_hold_that_never_lives_takes_nothing(self, driver: Driver) -> None:
        takes = [requests(1), tokens(1000), budget(100), slot(1)]
        for number in range(3):
            decision = driver.admit(*takes, id=f"{number}", expires_us=0)
            assert (decision.status, [*decision.granted]) == (Status.ADMITTED, [0, 0, 0, 0])
        assert driver.admit(budget(1, seed=None), expires_us=0).admitted, "but what was told of a budget is known"
        driver.run(driver.store.publish(policy=5))
        assert driver.admit(*takes, expires_us=0, policy_version=4).status is Status.STALE
        assert driver.admit(*takes, id="a").admitted
        assert driver.admit(*takes, id="b", expires_us=0).status is Status.REFUSED
        assert not driver.settle("b", takes, [None, 0, 0, 0])
        again = driver.admit(*takes, id="a", expires_us=0)
        assert (again.status, [*again.granted][2:]) == (Status.ADMITTED, [100, 1])

    def test_a_hold_that_has_ended_before_it_begins_is_an_error(self, driver: Driver) -> None:
        with pytest.raises(ValueError, match="a hold lives"):
            driver.admit(budget(1), expires_us=-1)
