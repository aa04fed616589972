"""The limit store on DynamoDB: what the contract does not show. How many calls it makes, what concurrent containers
do to each other, and what is left when a call, or a container, dies half way."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from tests.aws_fixture import Recorder, aws_endpoint, dynamodb, make_table
from tests.records import NOON
from tollgate.adapters import dynamodb_limit_items, dynamodb_limits
from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.dynamodb_limit_items import counter
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.http import ConnectFailed
from tollgate.adapters.http_message import ClosedEarly
from tollgate.domain import keys
from tollgate.domain.limits import (
    FOREVER_US,
    Admission,
    Budget,
    BudgetTake,
    Concurrency,
    Decision,
    Rate,
    RateTake,
    Scope,
    Settlement,
    SlotTake,
    Status,
    Take,
    Unit,
    Window,
    refusal,
)
from tollgate.ports import Overloaded, StoreUnavailable

T = TypeVar("T")
SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY_S = 86_400


def rate(scope: Scope, amount: int = 100, *, cost: int = 1, unit: Unit = Unit.REQUESTS, floor: int = -1) -> RateTake:
    subject = {
        Scope.IP: keys.ip_subject("203.0.113.7"),
        Scope.USER: keys.member_subject("acme", "u", "alice"),
        Scope.TENANT: keys.tenant_subject("acme"),
    }.get(scope, keys.global_subject())
    limit = Rate(scope, unit, amount, MINUTE, amount, f"{scope}.{unit}.minute")
    return RateTake(subject, f"{subject}:{unit}.minute", limit, cost, cost if floor < 0 else floor)


def budget(
    cost: int = 10, *, amount: int = 100, floor: int = -1, window: Window = Window.DAY, at: int = NOON
) -> BudgetTake:
    subject = keys.tenant_subject("acme")
    label, start, end = window.bounds(at)
    limit = Budget(Scope.TENANT, Unit.TOKENS, amount, window, f"tenant.tokens.{window}")
    key = f"{subject}:b:tokens.{window}:{label}"
    return BudgetTake(subject, key, limit, cost, cost if floor < 0 else floor, label, start, end, 0)


def loaded(take: T) -> T:
    """The same take of a budget that has been loaded before."""
    if isinstance(take, BudgetTake):
        return replace(take, seed=None)  # type: ignore[return-value]
    return take


def slot(amount: int = 5) -> SlotTake:
    subject = keys.tenant_subject("acme")
    return SlotTake(subject, f"{subject}:slots", Concurrency(Scope.TENANT, amount, "tenant.slots"))


class World:
    """One table, a clock, and containers that use it."""

    def __init__(self, client: AwsClient, runner: asyncio.Runner) -> None:
        self.client = client
        self.calls = Recorder(client)
        self.now = NOON
        self._runner = runner
        self.table = self.run(make_table(client))
        self.store = self.container()

    def container(self) -> DynamoLimitStore:
        return DynamoLimitStore(self.calls, self.table, clock=lambda: self.now)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def admit(self, *takes: Take, id: str = "", life: int = MINUTE, store: DynamoLimitStore | None = None) -> Decision:
        admission = Admission(id or uuid.uuid4().hex, list(takes), life, "acme")
        return self.run((store or self.store).admit(admission))

    def settle(self, id: str, *pairs: tuple[Take, int | None]) -> bool:
        return self.run(self.store.settle(Settlement(id, [t for t, _ in pairs], [u for _, u in pairs], "acme")))

    def items(self) -> dict[str, dict[str, Any]]:
        found = self.run(self.client.call("Scan", {"TableName": self.table}))["Items"]
        return {item["pk"]["S"]: {k: next(iter(v.values())) for k, v in item.items()} for item in found}

    def number(self, take: Take) -> int:
        """What is counted for `take`: TAT, committed units, slots in use."""
        return int(self.items()[f"s#{take.subject}"][counter(take)])

    def counted(self) -> list[str]:
        calls, self.calls.calls = self.calls.calls, []
        return calls


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def client(runner: asyncio.Runner) -> Iterator[AwsClient]:
    with aws_endpoint() as url, dynamodb(url, runner) as client:
        yield client


@pytest.fixture
def world(client: AwsClient, runner: asyncio.Runner) -> World:
    return World(client, runner)


EVERYTHING = (rate(Scope.IP), rate(Scope.USER), rate(Scope.TENANT), rate(Scope.GLOBAL))


class TestCalls:
    def test_one_write_per_subject_and_one_for_the_marker(self, world: World) -> None:
        same_subject = rate(Scope.USER, unit=Unit.TOKENS, cost=5)
        for _ in range(3):
            assert world.admit(*EVERYTHING, same_subject).admitted
            assert world.counted() == ["UpdateItem"] * 4 + ["PutItem"]

    def test_a_wrong_guess_costs_one_more_write(self, world: World) -> None:
        world.admit(rate(Scope.USER))
        world.counted()
        assert world.admit(rate(Scope.USER), store=world.container()).admitted
        assert world.counted() == ["UpdateItem", "UpdateItem", "PutItem"]

    def test_a_blocked_address_does_not_touch_its_tenant(self, world: World) -> None:
        takes = (rate(Scope.GLOBAL), rate(Scope.TENANT), rate(Scope.IP, 1))
        assert world.admit(*takes).admitted
        before = world.items()
        world.counted()
        assert world.admit(*takes).status is Status.REFUSED
        assert world.counted() == ["UpdateItem", "BatchGetItem"]
        assert world.items() == before

    def test_settling_is_one_write_per_subject_that_moves(self, world: World) -> None:
        takes: list[Take] = [rate(Scope.USER), rate(Scope.USER, unit=Unit.TOKENS, cost=50), budget(), slot()]
        world.admit(*takes, id="a")
        world.counted()
        assert world.settle("a", *zip(takes, (None, 20, 5, 0), strict=True))
        assert world.counted() == ["UpdateItem"] * 3  # the marker, the user, the tenant

    def test_more_than_the_whole_burst_is_refused_without_a_write(self, world: World) -> None:
        take = rate(Scope.USER, 10, cost=11, unit=Unit.TOKENS)
        decision = world.admit(rate(Scope.IP), take)
        assert world.counted() == ["BatchGetItem"]
        assert refusal(Admission("", [rate(Scope.IP), take], 0), decision).never

    def test_versions_are_read_seldom_and_beside_the_admission(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def admit() -> Status:
            admission = Admission(uuid.uuid4().hex, [rate(Scope.USER)], MINUTE, "acme", 3, 5)
            return world.run(world.store.admit(admission)).status

        assert admit() is Status.ADMITTED
        assert "BatchGetItem" in world.counted()
        world.run(world.container().publish(policy=6, tenants={"acme": 3}))
        assert admit() is Status.ADMITTED
        assert "BatchGetItem" not in world.counted()
        monkeypatch.setattr(dynamodb_limits, "VERSIONS_FRESH_S", -1.0)
        before = world.number(rate(Scope.USER))
        assert admit() is Status.STALE
        assert world.number(rate(Scope.USER)) == before


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
        granted = [d.states[0].granted for d in decisions if d.admitted]
        # those refused for want of a slot held a part of the budget for a moment: fewer than 7 may get in, never more
        assert 1 <= len(granted) <= 7
        assert world.number(slot()) == len(granted)
        assert world.number(budget()) == sum(granted)

    def test_the_last_of_a_budget_goes_to_somebody(self, world: World) -> None:
        world.admit(budget(0), id="first")
        decisions = self.at_once(world, [budget(40, floor=1)], 12, 6)
        granted = [d.states[0].granted for d in decisions if d.admitted]
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
        assert (decision.admitted, decision.states[0].granted) == (True, 50)
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


class TestFailures:
    def test_a_call_that_fails_half_way_gives_back_what_it_took(self, world: World) -> None:
        takes = (*EVERYTHING, budget(), slot())
        world.admit(*takes, id="first")
        world.settle("first", *((t, 0 if not isinstance(t, RateTake) else None) for t in takes))
        before = [world.number(take) for take in takes]

        async def fail(operation: str, payload: dict[str, Any]) -> None:
            if operation == "PutItem" and "e" in payload["Item"]:
                raise world.calls.outage()

        world.calls.fault = fail
        with pytest.raises(StoreUnavailable, match="InternalServerError"):
            world.admit(*takes)
        world.calls.fault = None
        assert [world.number(take) for take in takes] == before

    def test_what_a_dead_container_held_is_released_when_it_expires(self, world: World) -> None:
        world.admit(budget(0), id="first")

        async def die(operation: str, payload: dict[str, Any]) -> None:
            if operation == "PutItem" or " - " in payload.get("UpdateExpression", ""):
                raise world.calls.outage()

        world.calls.fault = die
        with pytest.raises(StoreUnavailable):
            world.admit(loaded(budget(100)), slot())
        world.calls.fault = None
        assert world.admit(loaded(budget(1))).status is Status.REFUSED
        world.now += MINUTE
        assert world.admit(loaded(budget(100))).admitted

    def test_throttling_is_tried_again_but_not_for_long(self, world: World) -> None:
        left = 2

        async def throttle(operation: str, payload: dict[str, Any]) -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                raise AwsError("ThrottlingException", "slow down", 400, {})

        world.calls.fault = throttle
        assert world.admit(rate(Scope.USER)).admitted
        left = 1000
        with pytest.raises(Overloaded, match="ThrottlingException"):
            world.admit(rate(Scope.USER))

    def test_a_throttled_subject_is_turned_away_at_once_and_others_are_not(self, world: World) -> None:
        hot = rate(Scope.TENANT)

        async def throttle(operation: str, payload: dict[str, Any]) -> None:
            if payload.get("Key") == {"pk": {"S": f"s#{hot.subject}"}}:
                raise AwsError("ProvisionedThroughputExceededException", "hot", 400, {})

        world.calls.fault = throttle
        with pytest.raises(Overloaded):
            world.admit(rate(Scope.IP), hot)
        assert world.number(rate(Scope.IP)) == NOON  # given back
        world.counted()
        with pytest.raises(Overloaded):
            world.admit(hot)
        assert world.counted() == []
        assert all(world.admit(rate(Scope.USER), rate(Scope.GLOBAL)).admitted for _ in range(20))
        world.calls.fault = None
        time.sleep(1.6 * dynamodb_limits.SHED_S)
        assert world.admit(hot).admitted

    def test_one_hot_tenant_starves_nobody(self, world: World) -> None:
        """Items take 50 writes a second here; one tenant asks for 200, twenty others for 2 each, all of them also of
        what everyone shares."""
        written: Counter[str] = Counter()

        async def limited(operation: str, payload: dict[str, Any]) -> None:
            if operation == "UpdateItem":
                pk = payload["Key"]["pk"]["S"]
                written[pk] += 1
                if written[pk] > 50:
                    raise AwsError("ProvisionedThroughputExceededException", "hot", 400, {})

        limit = Rate(Scope.GLOBAL, Unit.REQUESTS, 10**6, MINUTE, 10**6, "global.requests.minute")
        everyone = RateTake(keys.global_subject(), f"{keys.global_subject()}:requests.minute", limit, 1, 1)
        stores = [world.container() for _ in range(10)]

        def ask(tenant: str, n: int) -> Coroutine[Any, Any, Decision]:
            subject = keys.tenant_subject(tenant)
            own = replace(rate(Scope.TENANT, 10**6), subject=subject, key=f"{subject}:requests.minute")
            return stores[n % 10].admit(Admission(f"{tenant}{n}", [own, everyone], MINUTE, tenant))

        async def second() -> tuple[list[Decision | BaseException], list[Decision | BaseException]]:
            hot, others = list[Decision | BaseException](), list[Decision | BaseException]()
            for n in range(0, 40, 2):
                asked = [ask("hot", 5 * n + i) for i in range(10)] + [ask(f"t{n // 2}", n + i) for i in range(2)]
                told = await asyncio.gather(*asked, return_exceptions=True)
                hot, others = hot + told[:10], others + told[10:]
            return hot, others

        world.calls.fault = limited
        hot, others = world.run(second())
        assert all(isinstance(one, Decision) and one.admitted for one in others)
        served = [one for one in hot if isinstance(one, Decision)]
        assert 10 <= sum(one.admitted for one in served) <= 50
        assert len(served) + sum(isinstance(one, Overloaded) for one in hot) == 200

    @pytest.mark.parametrize("method", ["admit", "settle", "raise_floor", "publish", "ping", "recall"])
    def test_every_failure_is_one_kind_of_error(self, world: World, method: str) -> None:
        async def unreachable(operation: str, payload: dict[str, Any]) -> None:
            raise ConnectFailed("nobody listens")

        world.calls.fault = unreachable
        store = world.store
        calls: dict[str, Coroutine[Any, Any, Any]] = {
            "admit": store.admit(Admission("a", [rate(Scope.USER), budget()], MINUTE, "acme", 1, 1)),
            "settle": store.settle(Settlement("a", [budget()], [1])),
            "raise_floor": store.raise_floor({budget().key: 1}),
            "publish": store.publish(policy=1),
            "ping": store.ping(),
            "recall": store.recall([rate(Scope.USER)]),
        }
        wanted = calls.pop(method)
        for other in calls.values():
            other.close()
        with pytest.raises(StoreUnavailable, match="nobody listens"):
            world.run(wanted)


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

    def test_what_was_taken_after_all_is_given_back_when_another_limit_refuses(self, world: World) -> None:
        self.drop(world, lambda n: n == 0)
        assert world.admit(rate(Scope.USER), slot(0)).status is Status.REFUSED
        assert world.admit(rate(Scope.USER, 1), rate(Scope.TENANT, 1)).admitted
        self.drop(world, lambda n: n == 0)
        assert world.admit(rate(Scope.IP), rate(Scope.TENANT, 1)).status is Status.REFUSED
        assert world.number(rate(Scope.IP)) == NOON


class TestItems:
    def test_every_item_expires_except_versions(self, world: World) -> None:
        life = budget(window=Window.LIFE)
        life.end_us = FOREVER_US
        world.admit(*EVERYTHING, budget(), life, slot())
        world.run(world.store.publish(policy=1, tenants={"acme": 1}))
        items = world.items()
        lasting = {pk for pk, item in items.items() if "ttl" not in item}
        assert lasting == {"v#policy", f"v#{keys.digest('acme')}"}
        assert int(items[f"s#{budget().subject}"]["ttl"]) == NOON // SECOND + 40 * DAY_S
        assert all(int(item["ttl"]) > NOON // SECOND + DAY_S - 1 for pk, item in items.items() if pk not in lasting)

    def test_an_item_lives_as_long_as_its_debt(self, world: World) -> None:
        take = rate(Scope.USER, 100, unit=Unit.TOKENS, cost=10)
        world.admit(take, id="a")
        world.settle("a", (take, 1_000_000))
        assert int(world.items()[f"s#{take.subject}"]["ttl"]) >= world.number(take) // SECOND + DAY_S

    def test_settling_creates_no_bucket(self, world: World) -> None:
        take = rate(Scope.USER, unit=Unit.TOKENS, cost=10)
        world.admit(take, id="a")
        pk = f"s#{take.subject}"
        world.run(world.client.call("DeleteItem", {"TableName": world.table, "Key": {"pk": {"S": pk}}}))
        assert world.settle("a", (take, 50))
        assert pk not in world.items()

    def test_old_windows_leave_their_item(self, world: World) -> None:
        for days in range(4):
            world.now = NOON + days * DAY_S * SECOND
            assert world.admit(budget(at=world.now)).admitted
        names = {name for name in world.items()[f"s#{budget().subject}"] if name.startswith("b:")}
        assert names == {f"b:b:tokens.day:2026-11-{day}{end}" for day in (23, 24) for end in ("", ":spent")}

    def test_names_of_any_shape(self, world: World) -> None:
        subject = "{x}"
        limit = Rate(Scope.USER, Unit.REQUESTS, 5, MINUTE, 5, "user.requests.minute")
        names = ["status", "ttl", "pk", "a.b", "#x", ":v", "SET", 'q"', "SELECT * FROM"]
        takes: list[Take] = [RateTake(subject, f"{subject}:{name}", limit, 1, 1) for name in names]
        assert world.admit(*takes).admitted
        assert world.admit(*takes).states[0].value == NOON + 2 * limit.inc_us(1)

    def test_hundreds_of_expired_holds_are_released(self, world: World) -> None:
        for i in range(60):
            assert world.admit(budget(1, amount=60), id=f"{i}", life=SECOND).admitted
        world.now += SECOND
        decision = world.admit(budget(60, amount=60))
        assert (decision.status, decision.states[0].value) == (Status.ADMITTED, 60)


def test_now_is_this_machines_clock_corrected_by_dynamodbs(world: World) -> None:
    class Ahead:
        clock_offset_us = 3600 * SECOND
        clock_known = True

        async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
            return await world.client.call(operation, payload)

    here = world.run(DynamoLimitStore(world.client, world.table).admit(Admission("a", [rate(Scope.IP)], MINUTE)))
    there = world.run(DynamoLimitStore(Ahead(), world.table).admit(Admission("b", [rate(Scope.USER)], MINUTE)))
    assert abs(there.now_us - here.now_us - 3600 * SECOND) < 60 * SECOND


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
        assert world.admit(loaded(budget(1)), rate(Scope.USER, 10), store=store).status is Status.COLD
        assert world.admit(budget(100), store=store).admitted


class TestRecall:
    def test_rates_are_recalled_in_one_call_and_nothing_is_taken(self, world: World) -> None:
        takes = [rate(Scope.USER), rate(Scope.IP), rate(Scope.USER, unit=Unit.TOKENS), rate(Scope.TENANT)]
        world.admit(takes[0], takes[3])
        world.admit(takes[3])
        world.counted()
        known = world.run(world.store.recall(takes))
        assert known == [NOON + takes[0].inc_us, None, None, NOON + 2 * takes[3].inc_us]
        assert world.counted() == ["BatchGetItem"]
        assert world.run(world.store.recall([])) == []

    def test_a_spread_rate_is_recalled_as_a_whole(self, world: World) -> None:
        limit = Rate(Scope.GLOBAL, Unit.REQUESTS, 2000, SECOND, 2000, "global.requests.second")
        take = RateTake(keys.global_subject(), f"{keys.global_subject()}:requests.second", limit, 1, 1)
        for i in range(40):
            decision = world.admit(take, id=f"{i}")
            assert (decision.status, decision.states[0].granted) == (Status.ADMITTED, take.inc_us)
        assert sorted(pk for pk in world.items() if pk.startswith("s#")) == [f"s#{{g}}#{i}/5" for i in range(5)]
        assert world.run(world.store.recall([take])) == [NOON + 40 * take.inc_us]

    def test_a_seed_of_another_store_raises_a_rate_and_never_lowers_it(self, world: World) -> None:
        take = rate(Scope.USER, 10)
        for seed, left in ((NOON + 4 * take.inc_us, 5), (NOON + 1, 4), (NOON + 9 * take.inc_us, 0), (0, -1)):
            decision = world.admit(replace(take, seed_us=seed))
            assert decision.admitted is (left >= 0)
            assert decision.states[0].value == NOON + (10 - max(left, 0)) * take.inc_us


class TestShards:
    TAKE = RateTake(
        keys.global_subject(),
        f"{keys.global_subject()}:tokens.minute",
        Rate(Scope.GLOBAL, Unit.TOKENS, 6 * 10**6, MINUTE, 6 * 10**6, "global.tokens.minute"),
        1000,
        1000,
    )

    def test_settling_finds_the_shard(self, world: World) -> None:
        assert world.admit(self.TAKE, id="a").admitted
        assert world.settle("a", (self.TAKE, 250))
        assert world.run(world.store.recall([self.TAKE])) == [NOON + self.TAKE.limit.inc_us(250)]

    def test_a_full_shard_is_not_the_end(self, world: World) -> None:
        take = replace(self.TAKE, cost=2_900_000, floor=2_900_000)
        told = [world.admit(take, id=f"{i}") for i in range(12)]
        assert sum(d.admitted for d in told) == 2
        refused = next(d for d in told if not d.admitted)
        assert (refusal(Admission("", [take], 0), refused).wait_us or 0) > 0
        assert sum(pk.startswith("s#") for pk in world.items()) == 2
