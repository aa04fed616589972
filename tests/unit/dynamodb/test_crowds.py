"""Who waits for the same item goes together: as if each had come for itself, and nobody is left without an answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.records import NOON
from tests.unit.dynamodb.world import MINUTE, World, budget, loaded, rate, slot
from tollgate.adapters.dynamodb_limit_crowds import Crowds, Waiting
from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import Item, counter
from tollgate.adapters.dynamodb_limit_parts import Part, Unknown
from tollgate.adapters.dynamodb_limit_plans import MOST_COUNTERS, Asked, next_plan
from tollgate.domain.limits import Admission, Decision, Scope, Settlement, State, Take, Unit, fits, grant
from tollgate.ports import StoreUnavailable

Served = list[tuple[str, list[int]]]


class Gate:
    """Serves a crowd when it is told to, with the number that each has asked."""

    def __init__(self) -> None:
        self.served: Served = []
        self.open = asyncio.Event()
        self.fault: Exception | None = None

    async def serve(self, key: str, crowd: Sequence[Waiting[int, int]]) -> None:
        self.served.append((key, [one.asked for one in crowd]))
        await self.open.wait()
        if self.fault is not None:
            raise self.fault
        for one in crowd:
            one.tell(one.asked)


def with_gate(play: Callable[[Gate, Crowds[int, int]], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        gate = Gate()
        return await play(gate, Crowds(gate.serve))

    return asyncio.run(run())


async def arrive(crowds: Crowds[int, int], key: str, *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(crowds.join(key, number)) for number in numbers]
    await asyncio.sleep(0)  # they have joined
    await asyncio.sleep(0)  # and the first of them are served
    return tasks


class TestCrowds:
    def test_who_comes_meanwhile_goes_together_in_the_order_of_arrival(self) -> None:
        async def play(gate: Gate, crowds: Crowds[int, int]) -> tuple[Served, list[int], int]:
            first = await arrive(crowds, "hot", 1)
            others = await arrive(crowds, "hot", 2, 3, 4)
            gate.open.set()
            return gate.served, await asyncio.gather(*first, *others), len(crowds)

        assert with_gate(play) == ([("hot", [1]), ("hot", [2, 3, 4])], [1, 2, 3, 4], 0)

    def test_others_do_not_wait(self) -> None:
        async def play(gate: Gate, crowds: Crowds[int, int]) -> Served:
            tasks = await arrive(crowds, "hot", 1) + await arrive(crowds, "other", 2)
            gate.open.set()
            await asyncio.gather(*tasks)
            return gate.served

        assert with_gate(play) == [("hot", [1]), ("other", [2])]

    def test_what_goes_wrong_is_told_to_all_of_them_and_to_nobody_else(self) -> None:
        async def play(gate: Gate, crowds: Crowds[int, int]) -> tuple[list[Any], int]:
            gate.fault = StoreUnavailable("away")
            failing = await arrive(crowds, "hot", 1, 2)
            gate.open.set()
            told = await asyncio.gather(*failing, return_exceptions=True)
            gate.fault = None
            return told, await crowds.join("hot", 3)

        told, last = with_gate(play)
        assert [str(one) for one in told] == ["away", "away"]
        assert last == 3

    def test_who_gives_up_hears_its_answer_first(self) -> None:
        async def play(gate: Gate, crowds: Crowds[int, int]) -> tuple[bool, bool, int]:
            (task,) = await arrive(crowds, "hot", 1)
            task.cancel()
            await asyncio.sleep(0)
            waits = not task.done()
            gate.open.set()
            await asyncio.wait([task])
            return waits, task.cancelled(), len(crowds)

        assert with_gate(play) == (True, True, 0)

    def test_the_end_of_the_process_leaves_nobody_waiting(self) -> None:
        async def play(gate: Gate, crowds: Crowds[int, int]) -> tuple[list[bool], int]:
            tasks = await arrive(crowds, "hot", 1) + await arrive(crowds, "hot", 2, 3)
            for task in crowds.tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return [task.cancelled() for task in tasks], len(crowds)

        assert with_gate(play) == ([True] * 3, 0)


class TestPlans:
    """A plan decides as its members would be decided one after the other."""

    def test_as_if_each_had_written_for_itself(self) -> None:
        chance = random.Random(1)
        for _ in range(300):
            now = NOON
            numbers = {
                counter(rate(Scope.TENANT)): now + chance.randrange(-MINUTE, MINUTE),
                counter(rate(Scope.TENANT, unit=Unit.TOKENS)): now + chance.randrange(-MINUTE, MINUTE),
                counter(budget()): chance.randrange(100),
                counter(slot()): chance.randrange(5),
            }
            asked = [self.one(chance, i) for i in range(chance.randrange(1, 12))]
            values, expected = dict(numbers), list[tuple[str, list[int]]]()
            for one in asked:
                states = [State(values[counter(take)]) for take in one.part.takes]
                pairs = list(zip(one.part.takes, states, strict=True))
                if not all(fits(take, state, now) for take, state in pairs):
                    continue
                granted = [grant(take, state, now) for take, state in pairs]
                expected.append((one.admission.id, granted))
                for (take, state), amount in zip(pairs, granted, strict=True):
                    values[counter(take)] = max(state.value, now if take.kind == "r" else 0) + amount
            plan = next_plan(asked, Guess.right(Item(numbers), now), Unknown(), now, 1)
            pairs_of = zip(plan.members, plan.granted, strict=True)
            assert [(one.admission.id, granted) for one, granted in pairs_of] == expected
            for name, of in plan.sums.items():
                start = max(numbers[name], now if of.take.kind == "r" else 0)
                assert start + of.amount == values[name]
                assert start <= of.room

    def one(self, chance: random.Random, number: int) -> Asked:
        cost = chance.randrange(1, 40)
        takes: list[Take] = [
            rate(Scope.TENANT, chance.choice([40, 100])),
            rate(Scope.TENANT, unit=Unit.TOKENS, cost=cost, floor=chance.randrange(1, cost + 1)),
            loaded(budget(cost, floor=chance.randrange(1, cost + 1), amount=chance.choice([80, 100]))),
            slot(chance.choice([4, 5])),
        ]
        some = chance.sample(takes, chance.randrange(1, 5))
        part = Part("s#x", list(range(len(some))), some)
        return Asked(part, Admission(f"{number}", some, MINUTE), NOON)

    def test_a_write_does_not_grow_without_bounds(self) -> None:
        """Callers of many models, each with limits of its own."""
        asked = []
        for i in range(3 * MOST_COUNTERS):
            take = replace(rate(Scope.TENANT), key=f"{rate(Scope.TENANT).subject}:{i}")
            asked.append(Asked(Part("s#x", [0], [take]), Admission(f"{i}", [take], MINUTE), NOON))
        plan = next_plan(asked, Guess.right(Item(), NOON), Unknown(), NOON, 1)
        assert [one.admission.id for one in plan.members] == [f"{i}" for i in range(MOST_COUNTERS)]


class TestInTheTable:
    def at_once(self, world: World, admissions: Sequence[Admission]) -> list[Decision]:
        async def all_of_them() -> list[Decision]:
            return await asyncio.gather(*map(world.store.admit, admissions))

        return world.run(all_of_them())

    def test_a_crowd_costs_one_write_and_is_settled_whole(self, world: World) -> None:
        world.admit(budget(0, amount=300), id="first")
        takes = [
            rate(Scope.TENANT),
            rate(Scope.TENANT, unit=Unit.TOKENS, cost=2),
            loaded(budget(3, amount=300)),
            slot(30),
        ]
        world.counted()
        told = self.at_once(world, [Admission(f"{i}", takes, MINUTE, "acme") for i in range(50)])
        assert [one.admitted for one in told] == [True] * 30 + [False] * 20
        calls = world.counted()
        assert (calls.count("UpdateItem"), calls.count("PutItem"), calls.count("BatchGetItem")) == (1, 30, 1)
        assert [world.number(take) for take in takes] == [
            NOON + 30 * takes[0].inc_us,
            NOON + 30 * takes[1].inc_us,
            90,
            30,
        ]
        assert {state.value for one in told for state in one.states[3:]} == {30}

        async def settle() -> list[bool]:
            return await asyncio.gather(
                *(world.store.settle(Settlement(f"{i}", takes, [None, 1, 2, 0], "acme")) for i in range(50))
            )

        assert world.run(settle()) == [True] * 30 + [False] * 20
        assert [world.number(take) for take in takes[1:]] == [NOON + 30 * takes[1].inc_us // 2, 60, 0]

    def test_a_large_one_does_not_keep_out_the_small_ones_behind_it(self, world: World) -> None:
        sizes = (60, 60, 30, 30, 10)
        world.admit(budget(0), id="first")
        told = self.at_once(world, [Admission(f"{n}", [loaded(budget(s))], MINUTE) for n, s in enumerate(sizes)])
        assert [one.admitted for one in told] == [True, False, True, False, True]

    def test_a_crowd_that_another_limit_refuses_gives_all_back(self, world: World) -> None:
        takes = [rate(Scope.USER), slot(3)]
        told = self.at_once(world, [Admission(f"{i}", takes, MINUTE) for i in range(40)])
        assert sum(one.admitted for one in told) == 3
        assert world.number(takes[0]) == NOON + 3 * rate(Scope.USER).inc_us
        again = self.at_once(world, [Admission(f"{i}", [takes[0]], MINUTE) for i in range(3, 40)])
        assert all(one.admitted for one in again)
        assert world.number(takes[0]) == NOON + 40 * rate(Scope.USER).inc_us

    def test_who_gives_up_gives_back_what_was_taken_for_it(self, world: World) -> None:
        takes = [rate(Scope.USER)]

        async def some_give_up() -> None:
            tasks = [asyncio.create_task(world.store.admit(Admission(f"{i}", takes, MINUTE))) for i in range(10)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.wait(tasks)

        world.run(some_give_up())
        assert world.number(takes[0]) == NOON + 5 * rate(Scope.USER).inc_us

    @pytest.mark.parametrize("lost", range(3))
    def test_a_lost_reply_charges_no_crowd_twice(self, world: World, lost: int) -> None:
        """The write that takes, the same again, or the one that settles."""
        count = -1

        async def fault(operation: str, payload: dict[str, Any]) -> None:
            nonlocal count
            count += operation == "UpdateItem"
            if operation == "UpdateItem" and count == lost:
                await world.client.call(operation, payload)
                raise world.calls.outage()

        world.admit(budget(0, amount=300), id="first")
        takes = [rate(Scope.TENANT), loaded(budget(3, amount=300))]
        world.calls.fault = fault
        told = self.at_once(world, [Admission(f"{i}", takes, MINUTE, "acme") for i in range(50)])
        assert all(one.admitted for one in told)

        async def settle() -> list[bool]:
            settlements = [Settlement(f"{i}", takes, [None, 2], "acme") for i in range(50)]
            return await asyncio.gather(*map(world.store.settle, settlements))

        assert all(world.run(settle()))
        assert [world.number(take) for take in takes] == [NOON + 50 * rate(Scope.TENANT).inc_us, 100]

    def test_a_crowd_that_finds_a_budget_cold_loads_it_once(self, world: World) -> None:
        told = self.at_once(world, [Admission(f"{i}", [loaded(budget(5))], MINUTE) for i in range(10)])
        assert {one.cold for one in told} == {(0,)}
        world.counted()
        seeded = replace(budget(5), seed=50)
        told = self.at_once(world, [Admission(f"{i}", [seeded], MINUTE) for i in range(12)])
        assert [one.admitted for one in told] == [True] * 10 + [False] * 2
        assert world.counted().count("UpdateItem") <= 3
        assert world.number(seeded) == 100
