"""Who waits for the same item goes together: as if each had come for itself, and nobody is left without an answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.records import NOON
from tests.unit.dynamodb.world import MINUTE, SECOND, World, budget, loaded, rate, slot
from tollgate.adapters.dynamodb import Table
from tollgate.adapters.dynamodb_limit_crowds import Crowds, Waiting
from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import Item, counter
from tollgate.adapters.dynamodb_limit_moves import Move
from tollgate.adapters.dynamodb_limit_parts import Part, Unknown
from tollgate.adapters.dynamodb_limit_plans import MOST_COUNTERS, Asked, Plan, next_plan
from tollgate.adapters.dynamodb_limit_subjects import SubjectItems
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import (
    Admission,
    Decision,
    RateTake,
    Scope,
    Settlement,
    Take,
    Unit,
    fits,
    grant,
    remaining,
)
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


def a_request(chance: random.Random, id: str) -> Admission:
    """Some of a tenant's limits; plans of two sizes."""
    cost = chance.randrange(1, 40)
    takes: list[Take] = [
        rate(Scope.TENANT, chance.choice([40, 100])),
        rate(Scope.TENANT, unit=Unit.TOKENS, cost=cost, floor=chance.randrange(1, cost + 1)),
        loaded(budget(cost, floor=chance.randrange(1, cost + 1), amount=chance.choice([80, 100]))),
        slot(chance.choice([4, 5])),
    ]
    some = sorted(chance.sample(range(4), chance.randrange(1, 5)))
    return Admission(id, [takes[i] for i in some], MINUTE, "acme")


def used(chance: random.Random, take: Take) -> int | None:
    """What it used of it in the end: less or more than it holds."""
    return None if take.limit.unit is Unit.REQUESTS else chance.randrange(30) if take.kind != "c" else 0


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
                pairs = [(take, values[counter(take)]) for take in one.part.takes]
                if not all(fits(take, value, now) for take, value in pairs):
                    continue
                granted = [grant(take, value, now) for take, value in pairs]
                expected.append((one.admission.id, granted))
                for (take, value), amount in zip(pairs, granted, strict=True):
                    values[counter(take)] = max(value, now if take.kind == "r" else 0) + amount
            plan = next_plan(asked, Guess.right(Item(numbers), now), Unknown(), now, 1)
            pairs_of = zip(plan.members, plan.granted, strict=True)
            assert [(one.admission.id, granted) for one, granted in pairs_of] == expected
            for name, of in plan.sums.items():
                start = max(numbers[name], now if of.take.kind == "r" else 0)
                assert start + of.amount == values[name]
                assert start <= of.room
                assert self.serves_all(plan, name, of.room)
                assert not self.serves_all(plan, name, of.room + 1)

    def serves_all(self, plan: Plan, name: str, value: int) -> bool:
        """Whether what is granted of a counter does not exceed it for any of the members, one after the other."""
        for one, granted in zip(plan.members, plan.granted, strict=True):
            for take, amount in zip(one.part.takes, granted, strict=True):
                if counter(take) == name:
                    value += amount
                    most = plan.now + take.limit.burst_us if isinstance(take, RateTake) else take.limit.amount
                    if value > most:
                        return False
        return True

    def one(self, chance: random.Random, number: int) -> Asked:
        admission = a_request(chance, f"{number}")
        return Asked(Part("s#x", list(range(len(admission.takes))), admission.takes), admission, NOON)

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

    def settled_at_once(self, world: World, settlements: Sequence[Settlement]) -> list[bool]:
        async def all_of_them() -> list[bool]:
            return await asyncio.gather(*map(world.store.settle, settlements))

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
        assert {value for one in told for value in one.values[3:]} == {30}
        settlements = [Settlement(f"{i}", takes, [None, 1, 2, 0], "acme") for i in range(50)]
        assert self.settled_at_once(world, settlements) == [True] * 30 + [False] * 20
        assert [world.number(take) for take in takes[1:]] == [NOON + 30 * takes[1].inc_us // 2, 60, 0]

    @pytest.mark.parametrize("seed", range(12))
    def test_a_crowd_is_decided_as_one_after_the_other(self, world: World, seed: int) -> None:
        """By the memory store, in the order in which they came: who is admitted, what is granted, what is left."""
        chance, other = random.Random(seed), MemoryLimitStore(lambda: world.now)
        start = Admission("first", [budget(0)], MINUTE, "acme")
        world.run(other.admit(start))
        world.run(world.store.admit(start))
        for crowd in range(4):
            world.now += chance.randrange(MINUTE // 4)
            asked = [a_request(chance, f"{crowd}.{i}") for i in range(chance.randrange(1, 15))]
            told = self.at_once(world, asked)
            expected = [world.run(other.admit(one)) for one in asked]
            assert [one.status for one in told] == [one.status for one in expected]
            granted = [[one.granted for one in each] for each in (told, expected)]
            assert granted[0] == granted[1]
            settlements = [
                Settlement(one.id, one.takes, [used(chance, take) for take in one.takes], "acme")
                for one, decision in zip(asked, told, strict=True)
                if decision.admitted
            ]
            assert all(self.settled_at_once(world, settlements))
            assert all(world.run(other.settle(one)) for one in settlements)
        everything: list[Take] = [rate(Scope.TENANT), rate(Scope.TENANT, unit=Unit.TOKENS), loaded(budget()), slot()]
        looks = [world.run(store.look(Admission("look", everything, 0, "acme"))) for store in (world.store, other)]
        left = [[remaining(t, v, world.now) for t, v in zip(everything, look.values, strict=True)] for look in looks]
        assert left[0] == left[1]

    def test_what_others_took_meanwhile_is_not_taken_again(self, world: World) -> None:
        takes = [rate(Scope.TENANT), slot(100)]
        assert world.admit(*takes).admitted
        elsewhere = world.container()
        for _ in range(94):
            assert world.admit(*takes, store=elsewhere).admitted
        world.counted()
        told = self.at_once(world, [Admission(f"{i}", takes, MINUTE) for i in range(20)])
        assert [one.admitted for one in told] == [True] * 5 + [False] * 15
        assert world.counted().count("UpdateItem") == 2
        assert [world.number(take) for take in takes] == [NOON + 100 * rate(Scope.TENANT).inc_us, 100]

    @pytest.mark.parametrize("busy", [False, True])
    def test_debts_and_give_backs_of_one_moment_are_all_counted(self, world: World, busy: bool) -> None:
        """In a bucket that has long been full again, too."""
        take = rate(Scope.TENANT, unit=Unit.TOKENS, cost=10)
        assert world.admit(take).admitted
        world.now += 0 if busy else MINUTE
        table, pk = Table(world.calls, world.table, patient=False), f"s#{take.subject}"
        items = SubjectItems(table, Unknown(), lambda: world.now)
        deltas = [30, -4, 20, -7]

        async def settle() -> None:
            moves = [Move(f"={n}", 0, {counter(take): delta * SECOND}) for n, delta in enumerate(deltas)]
            await asyncio.gather(*(items.move(pk, move, world.now, f"{n}") for n, move in enumerate(moves)))

        world.counted()
        world.run(settle())
        assert world.counted() == ["UpdateItem"] * (2 if busy else 1)  # nobody had seen that it is
        assert world.number(take) == world.now + (take.inc_us if busy else 0) + 39 * SECOND

    def test_what_used_exactly_what_it_held_is_settled(self, world: World) -> None:
        take = rate(Scope.TENANT, unit=Unit.TOKENS, cost=10)
        assert world.admit(take, budget(10), id="a").admitted
        assert world.settle("a", (take, 10), (budget(10), 10))
        assert [world.number(take), world.number(budget())] == [NOON + take.inc_us, 10]

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

    @pytest.mark.usefixtures("again_and_again")
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
        assert all(self.settled_at_once(world, [Settlement(f"{i}", takes, [None, 2], "acme") for i in range(50)]))
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
