"""As the fallback of another store: what is unknown here, and what is told to the other."""

from __future__ import annotations

from dataclasses import replace

from tests.records import NOON
from tests.unit.dynamodb.world import MINUTE, SECOND, World, budget, loaded, rate, slot
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain import keys
from tollgate.domain.limits import (
    Admission,
    Rate,
    RateTake,
    Scope,
    Status,
    Take,
    Unit,
    refusal,
)


class TestUnknown:
    """As the fallback of another store: what this one does not know has been half used there."""

    def half(self, world: World) -> DynamoLimitStore:
        return DynamoLimitStore(world.calls, world.table, clock=lambda: world.now, unknown="half")

    def admitted(self, world: World, take: Take, store: DynamoLimitStore) -> int:
        count = 0
        while world.admit(take, store=store).admitted:
            count += 1
        return count

    def test_an_unknown_rate_starts_half_empty_and_fills_up(self, world: World) -> None:
        store, take = self.half(world), rate(Scope.USER, 10)
        assert self.admitted(world, take, store) == 5
        world.now += MINUTE
        assert self.admitted(world, take, store) == 10

    def test_more_than_half_waits_for_the_refill_and_not_for_ever(self, world: World) -> None:
        store, take = self.half(world), rate(Scope.USER, 100, unit=Unit.TOKENS, cost=80)
        decision = world.admit(take, store=store)
        wait = refusal(Admission("", [take], 0), decision).wait_us
        assert wait == take.limit.inc_us(30)
        world.now += wait - 1
        assert not world.admit(take, store=self.half(world)).admitted
        world.now += 1
        assert world.admit(take, store=self.half(world)).admitted

    def test_what_was_taken_from_before_the_outage_is_unknown_again(self, world: World) -> None:
        store, take = self.half(world), rate(Scope.USER, 10)
        assert self.admitted(world, take, store) == 5
        world.now += 10 * MINUTE
        assert self.admitted(world, take, store) == 10  # the same outage: full is full
        world.now += 3600 * SECOND
        store.outage_begins()
        assert self.admitted(world, take, store) == 5

    def test_what_is_given_back_is_not_taken(self, world: World) -> None:
        store, take = self.half(world), rate(Scope.USER, 10)
        for _ in range(3):
            assert world.admit(take, slot(0), store=store).status is Status.REFUSED
        for _ in range(3):
            tight = rate(Scope.TENANT, 10, cost=8, unit=Unit.TOKENS)
            assert world.admit(take, tight, store=store).status is Status.REFUSED
        assert self.admitted(world, take, store) == 5

    def test_budgets_are_loaded_whatever_rates_do(self, world: World) -> None:
        store = self.half(world)
        assert world.admit(rate(Scope.USER, 10), loaded(budget(1)), store=store).status is Status.COLD
        assert world.admit(budget(100), store=store).admitted


class TestRecall:
    def test_rates_are_recalled_in_one_call_and_nothing_is_taken(self, world: World) -> None:
        takes = [rate(Scope.USER), rate(Scope.IP), rate(Scope.USER, unit=Unit.TOKENS), rate(Scope.TENANT)]
        world.admit(takes[0], takes[3])
        world.admit(takes[3])
        world.counted()
        known = world.run(world.store.recall(takes, range(4)))
        assert known == [NOON + takes[0].inc_us, None, None, NOON + 2 * takes[3].inc_us]
        assert world.counted() == ["BatchGetItem"]
        assert world.run(world.store.recall([], [])) == []

    def test_a_spread_rate_is_recalled_as_a_whole(self, world: World) -> None:
        limit = Rate(Scope.GLOBAL, Unit.REQUESTS, 2000, SECOND, 2000, "global.requests.second")
        take = RateTake(keys.global_subject(), f"{keys.global_subject()}:requests.second", limit, 1, 1)
        for i in range(40):
            decision = world.admit(take, id=f"{i}")
            assert (decision.status, decision.granted[0]) == (Status.ADMITTED, take.inc_us)
        shards = ["s#{g}", *(f"s#{{g}}#{i}" for i in range(1, 8))]
        assert sorted(pk for pk in world.items() if pk.startswith("s#")) == shards
        assert world.run(world.store.recall([take], [0])) == [NOON + 40 * take.inc_us]

    def test_a_rate_is_recalled_from_where_all_takes_of_its_subject_are_counted(self, world: World) -> None:
        """Also where the others are not cold: their bursts have passed since the other store was lost."""
        subject = keys.global_subject()
        limit = Rate(Scope.GLOBAL, Unit.REQUESTS, 2000, SECOND, 2000, "global.requests.second")
        requests = RateTake(subject, f"{subject}:requests.second", limit, 1, 1)
        limit = Rate(Scope.GLOBAL, Unit.TOKENS, 12 * 10**6, MINUTE, 12 * 10**6, "global.tokens.minute")
        tokens = RateTake(subject, f"{subject}:tokens.minute", limit, 10_000, 10_000)
        for i in range(40):
            assert world.admit(requests, tokens, slot(100), id=f"{i}").admitted
        assert world.run(world.store.recall([requests, tokens, slot(100)], [1])) == [NOON + 40 * tokens.inc_us]

    def test_a_seed_of_another_store_raises_a_rate_and_never_lowers_it(self, world: World) -> None:
        take = rate(Scope.USER, 10)
        for seed, left in ((NOON + 4 * take.inc_us, 5), (NOON + 1, 4), (NOON + 9 * take.inc_us, 0), (0, -1)):
            decision = world.admit(replace(take, seed_us=seed))
            assert decision.admitted is (left >= 0)
            assert decision.values[0] == NOON + (10 - max(left, 0)) * take.inc_us
