"""The limit store on DynamoDB: what the contract does not show. How many calls it makes, what concurrent containers
do to each other, and what is left when a call, or a container, dies half way."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from tests.aws_fixture import Recorder, aws_endpoint, dynamodb, make_table
from tests.records import NOON
from tollgate.adapters import dynamodb_limits
from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.http import ConnectFailed
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
from tollgate.ports import StoreUnavailable

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


def budget(cost: int = 10, *, amount: int = 100, floor: int = -1, window: Window = Window.DAY) -> BudgetTake:
    subject = keys.tenant_subject("acme")
    label, start, end = window.bounds(NOON)
    limit = Budget(Scope.TENANT, Unit.TOKENS, amount, window, f"tenant.tokens.{window}")
    key = f"{subject}:b:tokens.{window}:{label}"
    return BudgetTake(subject, key, limit, cost, cost if floor < 0 else floor, label, start, end, 0)


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

    def test_settling_is_one_write_per_item_that_moves(self, world: World) -> None:
        takes: list[Take] = [rate(Scope.USER), rate(Scope.USER, unit=Unit.TOKENS, cost=50), budget(), slot()]
        world.admit(*takes, id="a")
        world.counted()
        assert world.settle("a", *zip(takes, (None, 20, 5, 0), strict=True))
        assert sorted(world.counted()) == ["DeleteItem", "UpdateItem", "UpdateItem", "UpdateItem"]

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
        before = world.items()
        assert admit() is Status.STALE
        assert world.items() == before


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
        items = world.items()
        assert items[f"c#{slot().key}"]["n"] == str(len(granted))
        assert items[f"b#{budget().key}"]["n"] == str(sum(granted))

    def test_the_last_of_a_budget_goes_to_somebody(self, world: World) -> None:
        world.admit(budget(0), id="first")
        decisions = self.at_once(world, [budget(40, floor=1)], 12, 6)
        granted = [d.states[0].granted for d in decisions if d.admitted]
        assert sum(granted) == 100 or (sum(granted) < 100 and len(granted) == 12)

    def test_all_or_nothing_once_everything_is_given_back(self, world: World) -> None:
        takes: list[Take] = [*EVERYTHING, rate(Scope.GLOBAL, 1000, unit=Unit.TOKENS, cost=1), slot(3)]
        decisions = self.at_once(world, takes, 20, 5)
        assert sum(d.admitted for d in decisions) == 3
        items = world.items()
        for take in EVERYTHING:
            assert int(items[f"r#{take.subject}"][":requests.minute"]) == NOON + 3 * take.inc_us

    def test_the_same_id_at_the_same_time_takes_once(self, world: World) -> None:
        world.admit(budget(0), id="first")
        takes: list[Take] = [rate(Scope.USER), budget(10), slot()]

        async def twice() -> list[Decision]:
            stores = [world.container() for _ in range(4)]
            return await asyncio.gather(*(s.admit(Admission("same", takes, MINUTE)) for s in stores))

        assert all(d.admitted for d in world.run(twice()))
        items = world.items()
        assert items[f"b#{budget().key}"]["n"] == "10"
        assert items[f"c#{slot().key}"]["n"] == "1"
        assert int(items[f"r#{rate(Scope.USER).subject}"][":requests.minute"]) == NOON + rate(Scope.USER).inc_us

    def test_an_id_settled_twice_at_the_same_time_moves_once(self, world: World) -> None:
        take = budget(10)
        world.admit(take, id="a")

        async def twice() -> list[bool]:
            settlement = Settlement("a", [take], [30])
            return await asyncio.gather(*(world.container().settle(settlement) for _ in range(4)))

        assert sorted(world.run(twice())) == [False, False, False, True]
        assert world.items()[f"b#{take.key}"]["spent"] == "30"


class TestFailures:
    def test_a_call_that_fails_half_way_gives_back_what_it_took(self, world: World) -> None:
        takes = (*EVERYTHING, budget(), slot())
        world.admit(*takes, id="first")
        world.settle("first", *((t, 0 if not isinstance(t, RateTake) else None) for t in takes))
        before = {pk: item.get("n", item) for pk, item in world.items().items()}

        async def fail(operation: str, payload: dict[str, Any]) -> None:
            if operation == "PutItem" and "e" in payload["Item"]:
                raise world.calls.outage()

        world.calls.fault = fail
        with pytest.raises(StoreUnavailable, match="InternalServerError"):
            world.admit(*takes)
        world.calls.fault = None
        assert {pk: item.get("n", item) for pk, item in world.items().items()} == before

    def test_what_a_dead_container_held_is_released_when_it_expires(self, world: World) -> None:
        world.admit(budget(0), slot(), id="first")

        async def die(operation: str, payload: dict[str, Any]) -> None:
            if operation == "PutItem" or "REMOVE" in payload.get("UpdateExpression", ""):
                raise world.calls.outage()

        world.calls.fault = die
        seeded = budget(100)
        seeded.seed = None
        with pytest.raises(StoreUnavailable):
            world.admit(seeded, slot())
        world.calls.fault = None
        assert world.admit(budget(1)).status is Status.REFUSED
        world.now += MINUTE
        assert world.admit(budget(100)).admitted

    def test_a_sweep_releases_what_nobody_asks_for(self, world: World) -> None:
        for i in range(3):
            world.admit(budget(10), slot(), id=f"{i}", life=SECOND)
        world.admit(budget(10), slot(), id="alive")
        world.now += SECOND
        assert world.run(world.store.sweep()) == 6
        assert world.run(world.store.sweep()) == 0
        items = world.items()
        assert items[f"b#{budget().key}"]["n"] == "10"
        assert items[f"c#{slot().key}"]["n"] == "1"

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
        with pytest.raises(StoreUnavailable, match="ThrottlingException"):
            world.admit(rate(Scope.USER))

    def test_a_failure_that_may_have_been_a_success_is_not_repeated(self, world: World) -> None:
        async def fail(operation: str, payload: dict[str, Any]) -> None:
            raise world.calls.outage()

        world.calls.fault = fail
        with pytest.raises(StoreUnavailable):
            world.admit(rate(Scope.USER))
        assert world.counted() == ["UpdateItem"]

    @pytest.mark.parametrize("method", ["admit", "settle", "raise_floor", "publish", "ping", "sweep"])
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
            "sweep": store.sweep(),
        }
        wanted = calls.pop(method)
        for other in calls.values():
            other.close()
        with pytest.raises(StoreUnavailable, match="nobody listens"):
            world.run(wanted)


class TestItems:
    def test_every_item_expires_except_credit_for_life_and_versions(self, world: World) -> None:
        life = budget(window=Window.LIFE)
        life.end_us = FOREVER_US
        world.admit(*EVERYTHING, budget(), life, slot())
        world.run(world.store.publish(policy=1, tenants={"acme": 1}))
        items = world.items()
        lasting = {pk for pk, item in items.items() if "ttl" not in item}
        assert lasting == {f"b#{life.key}", "v#policy", f"v#{keys.digest('acme')}"}
        assert int(items[f"b#{budget().key}"]["ttl"]) == budget().end_us // SECOND + 40 * DAY_S
        assert all(int(item["ttl"]) > NOON // SECOND + DAY_S - 1 for pk, item in items.items() if pk not in lasting)

    def test_an_item_lives_as_long_as_its_debt(self, world: World) -> None:
        take = rate(Scope.USER, 100, unit=Unit.TOKENS, cost=10)
        world.admit(take, id="a")
        world.settle("a", (take, 1_000_000))
        item = world.items()[f"r#{take.subject}"]
        assert int(item["ttl"]) >= int(item[":tokens.minute"]) // SECOND + DAY_S

    def test_settling_creates_no_bucket(self, world: World) -> None:
        take = rate(Scope.USER, unit=Unit.TOKENS, cost=10)
        world.admit(take, id="a")
        key = {"pk": {"S": f"r#{take.subject}"}}
        world.run(world.client.call("DeleteItem", {"TableName": world.table, "Key": key}))
        assert world.settle("a", (take, 50))
        assert world.items() == {}

    def test_names_of_any_shape(self, world: World) -> None:
        subject = "{x}"
        limit = Rate(Scope.USER, Unit.REQUESTS, 5, MINUTE, 5, "user.requests.minute")
        names = ["status", "ttl", "pk", "a.b", "#x", ":v", "SET", 'q"', "SELECT * FROM"]
        takes: list[Take] = [RateTake(subject, f"{subject}:{name}", limit, 1, 1) for name in names]
        assert world.admit(*takes).admitted
        assert world.admit(*takes).states[0].value == NOON + 2 * limit.inc_us(1)

    def test_hundreds_of_expired_holds_are_released(self, world: World) -> None:
        async def many() -> None:
            await asyncio.gather(
                *(world.store.admit(Admission(f"{i}", [budget(1, amount=60)], SECOND)) for i in range(60))
            )

        world.run(many())
        world.now += SECOND
        decision = world.admit(budget(60, amount=60))
        assert (decision.status, decision.states[0].value) == (Status.ADMITTED, 60)


def test_now_is_this_machines_clock_corrected_by_dynamodbs(world: World) -> None:
    class Ahead:
        clock_offset_us = 3600 * SECOND

        async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
            return await world.client.call(operation, payload)

    here = world.run(DynamoLimitStore(world.client, world.table).admit(Admission("a", [rate(Scope.IP)], MINUTE)))
    there = world.run(DynamoLimitStore(Ahead(), world.table).admit(Admission("b", [rate(Scope.USER)], MINUTE)))
    assert abs(there.now_us - here.now_us - 3600 * SECOND) < 60 * SECOND
