"""Writes that were done, and whose answers never came."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.records import NOON
from tests.unit.dynamodb.world import DAY_S, MINUTE, SECOND, World, budget, loaded, rate, slot
from tollgate.adapters import dynamodb_limit_items, dynamodb_limit_subjects
from tollgate.adapters.aws import AwsError
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.http_message import ClosedEarly
from tollgate.domain.limits import (
    Admission,
    RateTake,
    Scope,
    Settlement,
    Status,
    Unit,
    hold_expiry_us,
)
from tollgate.ports import StoreUnavailable

pytestmark = pytest.mark.usefixtures("again_and_again")


class TestLostReplies:
    """A write that was done, and whose answer never came."""

    def drop(self, world: World, which: Callable[[int], bool]) -> None:
        """Lose the replies to those writes, counted from 0, for which `which` says so; each after it was done."""
        count = -1

        async def fault(operation: str, payload: dict[str, Any]) -> None:
            nonlocal count
            if operation not in ("UpdateItem", "PutItem"):
                return
            count += 1
            if which(count):
                with suppress(AwsError):  # that a condition does not hold is an answer, too
                    await world.client.call(operation, payload)
                raise ClosedEarly("the reply was dropped", after_bytes=0)

        world.calls.fault = fault

    def test_whichever_reply_is_lost_all_is_charged_and_settled_once(self, world: World) -> None:
        takes = (rate(Scope.USER), rate(Scope.TENANT, unit=Unit.TOKENS, cost=5), budget(10), slot())
        world.admit(budget(0), id="first")
        takes = tuple(loaded(take) for take in takes)
        for lost in range(6):  # the user's write, the tenant's, the marker; the claim, and the tenant's again
            self.drop(world, lambda n, lost=lost: n == lost)
            assert world.admit(*takes, id=f"{lost}").admitted
            assert world.settle(f"{lost}", *zip(takes, (None, 3, 4, 0), strict=True))
            expected = [NOON + (lost + 1) * takes[0].inc_us, NOON + (lost + 1) * 3 * SECOND * 60 // 100]
            assert [world.number(take) for take in takes] == [*expected, 4 * (lost + 1), 0]

    def test_as_many_charges_as_requests_however_many_replies_are_lost(self, world: World) -> None:
        take = rate(Scope.USER, 10)
        take = replace(take, limit=replace(take.limit, period_us=DAY_S * SECOND, amount=2000, burst=2000))
        self.drop(world, lambda n: n % 3 == 0)  # each taking write; then the same again, and the marker
        for i in range(100):
            world.now += 100_000  # ten requests a second
            assert world.admit(take, id=f"{i}").admitted
        assert world.number(take) == NOON + 100_000 + 100 * take.inc_us

    def test_a_call_that_gave_up_is_found_by_the_next_of_the_same_id(self, world: World) -> None:
        takes = (rate(Scope.USER), loaded(budget(10)), slot())
        world.admit(budget(0), id="first")
        self.drop(world, lambda n: True)
        with pytest.raises(StoreUnavailable):
            world.admit(*takes, id="a")
        world.calls.fault = None
        assert world.admit(*takes, id="a").admitted
        assert world.number(takes[0]) == NOON + takes[0].inc_us
        assert world.settle("a", *zip(takes, (None, 7, 0), strict=True))
        assert [world.number(take) for take in takes[1:]] == [7, 0]

    def test_what_nobody_can_tell_any_more_is_not_charged_again(self, world: World) -> None:
        """Every entry of the item has been taken by others meanwhile."""
        take = rate(Scope.USER, 1000)
        self.drop(world, lambda n: True)
        with pytest.raises(StoreUnavailable):
            world.admit(take, id="a")
        world.calls.fault = None
        for _ in range(8 * dynamodb_limit_items.IDS):
            assert world.admit(take, store=world.container()).admitted
        before = world.number(take)
        with pytest.raises(StoreUnavailable, match="nobody can tell"):
            world.admit(take, id="a")
        assert world.number(take) == before == NOON + (1 + 8 * dynamodb_limit_items.IDS) * take.inc_us

    def test_after_a_while_nobody_can_tell_any_more(self, world: World) -> None:
        take = rate(Scope.USER)
        self.drop(world, lambda n: True)
        with pytest.raises(StoreUnavailable):
            world.admit(take, id="a")
        world.calls.fault = None
        world.now += dynamodb_limit_items.TELLS_US + SECOND
        with pytest.raises(StoreUnavailable, match="nobody can tell"):
            world.admit(take, id="a")
        assert world.number(take) == NOON + take.inc_us

    def wary(self, world: World, store: DynamoLimitStore | None = None) -> None:
        """Have the store lose a first reply, for a subject that nobody else asks for."""
        subject, somebody = uuid.uuid4().hex, rate(Scope.USER)
        self.drop(world, lambda n: n == 0)
        assert world.admit(replace(somebody, subject=subject, key=f"{subject}:rate"), store=store).admitted
        world.calls.fault = None

    def lose(self, world: World, take: RateTake, *, others: int = 0, late: int = 0) -> None:
        """Lose every other reply from now on; meanwhile a container that has lost replies, too, takes so often, and so
        much time passes (µs)."""
        other, writes, meanwhile = world.container(), 0, False
        self.wary(world, other)

        async def fault(operation: str, payload: dict[str, Any]) -> None:
            nonlocal writes, meanwhile
            if operation != "UpdateItem" or meanwhile or (writes := writes + 1) % 2 == 0:
                return
            with suppress(AwsError):
                await world.client.call(operation, payload)
            meanwhile = True
            for _ in range(others):
                assert (await other.admit(Admission(uuid.uuid4().hex, [take], MINUTE, "acme"))).admitted
            meanwhile = False
            world.now += late
            raise ClosedEarly("the reply was dropped", after_bytes=0)

        world.calls.fault = fault

    def windows(self, world: World, take: RateTake) -> dict[str, int]:
        """How many writes the item tells by their windows."""
        item = world.items()[f"s#{take.subject}"]
        return {name: len(value) for name, value in item.items() if name.startswith("j")}

    def test_who_has_lost_a_reply_is_told_among_those_of_the_same_seconds(self, world: World) -> None:
        """For a minute; and some seconds after the last of them they are gone."""
        take = rate(Scope.USER, 1000)
        assert world.admit(take).admitted
        assert self.windows(world, take) == {}
        self.wary(world)
        assert all(world.admit(take).admitted for _ in range(5))
        world.now += 2 * dynamodb_limit_items.WINDOW_US
        assert world.admit(take).admitted
        assert list(self.windows(world, take).values()) == [5, 1]
        world.now += dynamodb_limit_items.WINDOW_KEPT_US
        assert world.admit(take, store=world.container()).admitted
        assert list(self.windows(world, take).values()) == [1], "still asked for, by whichever clock"
        world.now += 2 * dynamodb_limit_items.WINDOW_US
        assert world.admit(take, store=world.container()).admitted
        assert self.windows(world, take) == {}

    def test_however_many_others_write_meanwhile_it_can_be_told(self, world: World) -> None:
        take = rate(Scope.USER, 1000)
        self.wary(world)
        self.lose(world, take, others=150)
        assert world.admit(take).admitted
        assert world.number(take) == NOON + (1 + 150) * take.inc_us

    def test_a_settlement_is_told_as_well(self, world: World) -> None:
        take = rate(Scope.USER, 1000, cost=10, unit=Unit.TOKENS)
        self.wary(world)
        self.lose(world, take, others=20)
        assert world.admit(take, id="a").admitted
        self.lose(world, take, others=20)
        assert world.settle("a", (take, 4))  # loses the reply to its claim, too
        assert world.number(take) == NOON + (3 * 20 * 10 + 4) * take.inc_us // 10

    def test_after_some_seconds_its_window_may_be_gone_and_it_is_not_charged_again(self, world: World) -> None:
        take = rate(Scope.USER, 1000)
        self.wary(world)
        self.lose(world, take, late=dynamodb_limit_items.WINDOW_TELLS_US + SECOND)
        with pytest.raises(StoreUnavailable, match="dropped"):
            world.admit(take, id="a")
        with pytest.raises(StoreUnavailable, match="nobody can tell"):
            world.admit(take, id="a")
        assert world.number(take) == NOON + take.inc_us

    def test_the_next_call_of_the_same_id_finds_it_in_its_window(self, world: World) -> None:
        take = rate(Scope.USER, 1000)
        self.wary(world)
        self.drop(world, lambda n: True)
        with pytest.raises(StoreUnavailable):
            world.admit(take, id="a")
        world.calls.fault = None
        world.now += dynamodb_limit_items.WINDOW_TELLS_US // 2
        assert world.admit(take, id="a").admitted
        assert world.number(take) == NOON + take.inc_us

    def test_an_item_tells_only_so_many(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who sees them leaves an entry instead, so that the item stays small."""
        monkeypatch.setattr(dynamodb_limit_subjects, "MOST_IN_WINDOWS", 3)
        take = rate(Scope.USER, 1000)
        self.wary(world)
        assert all(world.admit(take).admitted for _ in range(10))
        assert sum(self.windows(world, take).values()) == 3
        assert world.number(take) == NOON + 10 * take.inc_us

    def test_what_was_certainly_not_done_is_done_again(self, world: World) -> None:
        take = rate(Scope.USER)
        world.admit(take)
        world.now += 5 * SECOND

        async def unheard(operation: str, payload: dict[str, Any]) -> None:
            raise world.calls.outage()

        world.calls.fault = unheard
        with pytest.raises(StoreUnavailable):
            world.admit(take, id="a")
        world.calls.fault = None
        assert world.admit(take, id="a").admitted
        assert world.number(take) == NOON + 5 * SECOND + take.inc_us

    def hold_back(self, world: World, wanted: str) -> list[dict[str, Any]]:
        """The first write of that kind seems to be lost, and stays on its way: what it was."""
        held: list[dict[str, Any]] = []

        async def fault(operation: str, payload: dict[str, Any]) -> None:
            if operation == wanted and not held:
                held.append(copy.deepcopy(payload))
                raise ClosedEarly("reset; the request is still on its way", after_bytes=0)

        world.calls.fault = fault
        return held

    def test_a_write_that_arrives_after_its_hold_was_settled_takes_nothing(self, world: World) -> None:
        takes = (rate(Scope.TENANT), loaded(budget(10)), slot())
        world.admit(takes[0], budget(0), id="first")
        held = self.hold_back(world, "UpdateItem")
        assert world.admit(*takes, id="a").admitted
        assert world.settle("a", *zip(takes, (None, 7, 0), strict=True))
        before = [world.number(take) for take in takes]
        with pytest.raises(AwsError, match="ConditionalCheckFailed"):
            world.run(world.client.call("UpdateItem", held[0]))
        assert [world.number(take) for take in takes] == before

    def test_a_marker_that_arrives_after_its_settlement_is_not_settled_again(self, world: World) -> None:
        take = rate(Scope.USER, 1000, unit=Unit.TOKENS, cost=10)
        held = self.hold_back(world, "PutItem")
        assert world.admit(take, id="a").admitted
        assert world.settle("a", (take, 30))
        with pytest.raises(AwsError, match="ConditionalCheckFailed"):
            world.run(world.client.call("PutItem", held[0]))
        assert world.run(world.store.replay([Settlement("a", [take], [30], "acme")])) == 0
        assert world.number(take) == NOON + 3 * take.inc_us

    def test_what_is_mended_beside_an_admission_is_mended_again(self, world: World) -> None:
        """Creating a budget, and releasing the hold of one who died: neither makes a request fail."""
        self.drop(world, lambda n: n % 2 == 0)
        assert world.admit(budget(100), id="dies").admitted
        world.now = hold_expiry_us(world.now, 60 * SECOND)
        self.drop(world, lambda n: n % 2 == 0)
        assert world.admit(loaded(budget(90)), id="a").admitted
        assert world.number(budget()) == 90

    def test_what_was_taken_after_all_is_given_back_when_another_limit_refuses(self, world: World) -> None:
        self.drop(world, lambda n: n == 0)
        assert world.admit(rate(Scope.USER), slot(0)).status is Status.REFUSED
        assert world.admit(rate(Scope.USER, 1), rate(Scope.TENANT, 1)).admitted
        self.drop(world, lambda n: n == 0)
        assert world.admit(rate(Scope.IP), rate(Scope.TENANT, 1)).status is Status.REFUSED
        assert world.number(rate(Scope.IP)) == NOON
