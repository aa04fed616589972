"""How many calls an admission makes."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.unit.dynamodb.world import EVERYTHING, MINUTE, SECOND, World, budget, rate, slot
from tollgate.adapters import dynamodb_limit_versions
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import (
    Admission,
    Scope,
    Status,
    Take,
    Unit,
    refusal,
)


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
        monkeypatch.setattr(dynamodb_limit_versions, "FRESH_S", -1.0)
        before = world.number(rate(Scope.USER))
        assert admit() is Status.STALE
        assert world.number(rate(Scope.USER)) == before


def test_now_is_this_machines_clock_corrected_by_dynamodbs(world: World) -> None:
    class Ahead:
        clock_offset_us = 3600 * SECOND
        clock_known = True

        async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
            return await world.client.call(operation, payload)

    here = world.run(DynamoLimitStore(world.client, world.table).admit(Admission("a", [rate(Scope.IP)], MINUTE)))
    there = world.run(DynamoLimitStore(Ahead(), world.table).admit(Admission("b", [rate(Scope.USER)], MINUTE)))
    assert abs(there.now_us - here.now_us - 3600 * SECOND) < 60 * SECOND
