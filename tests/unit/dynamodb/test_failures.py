"""What is left when a call, or a container, dies half way, and what DynamoDB turns away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.records import NOON
from tests.unit.dynamodb.world import EVERYTHING, MINUTE, SECOND, World, budget, loaded, rate, slot
from tollgate.adapters import dynamodb_limit_subjects
from tollgate.adapters.aws import AwsError
from tollgate.adapters.dynamodb import Unsure
from tollgate.adapters.http import ConnectFailed
from tollgate.domain import keys
from tollgate.domain.limits import (
    Admission,
    Decision,
    Rate,
    RateTake,
    Scope,
    Settlement,
    Status,
    Unit,
    hold_expiry_us,
)
from tollgate.ports import Overloaded, StoreUnavailable


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
        world.now = hold_expiry_us(world.now, MINUTE)
        assert world.admit(loaded(budget(100))).admitted

    def test_what_was_taken_is_given_back_where_mending_the_item_fails(self, world: World) -> None:
        assert world.admit(slot(), id="dies", life=SECOND).admitted
        world.now += 2 * SECOND

        async def fail(operation: str, payload: dict[str, Any]) -> None:
            if "REMOVE" in payload.get("UpdateExpression", ""):
                raise AwsError("ThrottlingException", "slow down", 400, {})

        world.calls.fault = fail
        take = rate(Scope.TENANT)
        with pytest.raises(StoreUnavailable):
            world.admit(take)
        world.calls.fault = None
        assert world.number(take) == world.now

    @pytest.mark.parametrize("away", [(Scope.USER,), (Scope.TENANT,), (Scope.USER, Scope.TENANT)], ids="+".join)
    def test_a_settlement_that_was_turned_away_is_made_later(self, world: World, away: tuple[Scope, ...]) -> None:
        """By the next who is asked to, or by metering; each subject once."""
        user, tenant = (rate(scope, unit=Unit.TOKENS, cost=10) for scope in (Scope.USER, Scope.TENANT))
        world.admit(budget(0), id="first")
        takes = (user, tenant, loaded(budget(10)), slot())
        assert world.admit(*takes, id="a").admitted
        pks = {f"s#{take.subject}" for take in takes if take.limit.scope in away}

        async def throttle(operation: str, payload: dict[str, Any]) -> None:
            if operation == "UpdateItem" and payload["Key"]["pk"]["S"] in pks:
                raise AwsError("ProvisionedThroughputExceededException", "hot", 400, {})

        world.calls.fault = throttle
        settlement = Settlement("a", takes, [30, 30, 7, 0], "acme", "dynamodb")
        with pytest.raises(Overloaded):
            world.run(world.store.settle(settlement))
        world.calls.fault = None
        assert world.run(world.store.replay([settlement])) == 1
        assert world.run(world.store.replay([settlement])) == 0
        assert not world.run(world.store.settle(settlement))
        used = NOON + 3 * user.inc_us
        assert [world.number(take) for take in takes] == [used, used, 7, 0]

    def test_a_settlement_of_which_nobody_can_tell_is_not_made_again(self, world: World) -> None:
        """Its write is done, and what follows is turned away: once is enough."""
        take = rate(Scope.USER, 1000, unit=Unit.TOKENS, cost=10)
        world.admit(take, id="a")
        lost = 0

        async def fault(operation: str, payload: dict[str, Any]) -> None:
            nonlocal lost
            if operation == "UpdateItem" and payload["Key"]["pk"]["S"].startswith("s#"):
                if lost:
                    raise AwsError("ThrottlingException", "slow down", 400, {})
                lost += 1
                await world.client.call(operation, payload)
                raise AwsError("InternalServerError", "the reply is lost", 500, {})

        world.calls.fault = fault
        with pytest.raises(Unsure):
            world.settle("a", (take, 30))
        world.calls.fault = None
        assert not world.settle("a", (take, 30))
        assert world.number(take) == NOON + 3 * take.inc_us

    def test_a_claim_whose_replies_are_lost_is_given_up(self, world: World) -> None:
        take = rate(Scope.USER, 1000, unit=Unit.TOKENS, cost=10)
        world.admit(take, id="a")
        lost = 0

        async def lose(operation: str, payload: dict[str, Any]) -> None:
            nonlocal lost
            if operation == "UpdateItem" and payload["Key"]["pk"]["S"].startswith("h#") and lost < 2:
                lost += 1
                with suppress(AwsError):
                    await world.client.call(operation, payload)
                raise AwsError("InternalServerError", "the reply is lost", 500, {})

        world.calls.fault = lose
        with pytest.raises(Unsure):
            world.settle("a", (take, 30))
        assert world.settle("a", (take, 30))
        assert world.number(take) == NOON + 3 * take.inc_us

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

    def test_a_throttled_subject_is_turned_away_at_once_and_others_are_not(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seconds = 0.0
        monkeypatch.setattr(dynamodb_limit_subjects, "time", SimpleNamespace(monotonic=lambda: seconds))
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
        seconds = 1.6 * dynamodb_limit_subjects.SHED_S
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
            "recall": store.recall([rate(Scope.USER)], [0]),
        }
        wanted = calls.pop(method)
        for other in calls.values():
            other.close()
        with pytest.raises(StoreUnavailable, match="nobody listens"):
            world.run(wanted)
