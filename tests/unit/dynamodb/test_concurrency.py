"""What concurrent containers do to each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.records import NOON
from tests.unit.dynamodb.world import EVERYTHING, MINUTE, World, budget, loaded, rate, slot
from tollgate.domain.limits import (
    Admission,
    Decision,
    Scope,
    Settlement,
    Take,
    Unit,
)
from tollgate.ports import StoreUnavailable


class TestConcurrency:
    def at_once(self, world: World, takes: list[Take], count: int, containers: int) -> list[Decision]:
        stores = [world.container() for _ in range(containers)]

        async def all_of_them() -> list[Decision]:
            asked = [Admission(f"r{i}", takes, MINUTE, "acme") for i in range(count)]
            return await asyncio.gather(*(stores[i % containers].admit(one) for i, one in enumerate(asked)))

        return world.run(all_of_them())

    @pytest.mark.parametrize("containers", [1, 8])
    def test_exactly_the_burst_is_admitted(self, world: World, containers: int) -> None:
        decisions = self.at_once(world, [rate(Scope.USER, 20)], 40, containers)
        assert sum(d.admitted for d in decisions) == 20

    @pytest.mark.parametrize("containers", [1, 8])
    def test_a_budget_and_its_slots_are_never_exceeded(self, world: World, containers: int) -> None:
        world.admit(budget(0, amount=95), id="first")
        decisions = self.at_once(world, [budget(10, amount=95, floor=5), slot(7)], 24, containers)
        granted = [d.granted[0] for d in decisions if d.admitted]
        # those refused for want of a slot held a part of the budget for a moment: fewer than 7 may get in, never more
        assert 1 <= len(granted) <= 7
        assert world.number(slot()) == len(granted)
        assert world.number(budget()) == sum(granted)

    def test_the_last_of_a_budget_goes_to_somebody(self, world: World) -> None:
        world.admit(budget(0), id="first")
        decisions = self.at_once(world, [budget(40, floor=1)], 12, 6)
        granted = [d.granted[0] for d in decisions if d.admitted]
        assert sum(granted) == 100 or (sum(granted) < 100 and len(granted) == 12)

    def test_all_or_nothing_once_everything_is_given_back(self, world: World) -> None:
        takes: list[Take] = [*EVERYTHING, rate(Scope.GLOBAL, 1000, unit=Unit.TOKENS, cost=1), slot(3)]
        decisions = self.at_once(world, takes, 20, 5)
        assert sum(d.admitted for d in decisions) == 3
        for take in EVERYTHING:
            assert world.number(take) == NOON + 3 * take.inc_us

    def test_the_same_id_at_the_same_time_takes_once(self, world: World) -> None:
        world.admit(budget(0), id="first")
        takes: list[Take] = [rate(Scope.USER), budget(10), slot()]

        async def twice() -> list[Decision]:
            stores = [world.container() for _ in range(4)]
            return await asyncio.gather(*(s.admit(Admission("same", takes, MINUTE)) for s in stores))

        assert all(d.admitted for d in world.run(twice()))
        assert world.number(budget()) == 10
        assert world.number(slot()) == 1
        assert world.number(rate(Scope.USER)) == NOON + rate(Scope.USER).inc_us

    def test_a_guess_that_another_call_of_the_id_has_taken_is_settled_whole(self, world: World) -> None:
        """The other call, in another container, was killed before it could say what it had taken."""
        world.admit(budget(0), id="first")

        async def die(operation: str, payload: dict[str, Any]) -> None:
            if operation == "PutItem" or " - " in payload.get("UpdateExpression", ""):
                raise world.calls.outage()

        take = loaded(budget(50, floor=5))
        world.calls.fault = die
        with pytest.raises(StoreUnavailable):
            world.admit(take, id="a", store=world.container())
        world.calls.fault = None
        decision = world.admit(take, id="a")
        assert (decision.admitted, decision.granted[0]) == (True, 50)
        assert world.settle("a", (take, 20))
        assert world.number(take) == 20

    def test_an_id_settled_twice_at_the_same_time_moves_once(self, world: World) -> None:
        take = budget(10)
        world.admit(take, id="a")

        async def twice() -> list[bool]:
            settlement = Settlement("a", [take], [30])
            return await asyncio.gather(*(world.container().settle(settlement) for _ in range(4)))

        assert sorted(world.run(twice())) == [False, False, False, True]
        assert world.number(take) == 30
