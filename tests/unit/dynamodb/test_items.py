"""What the items hold, and for how long."""

from __future__ import annotations

from tests.records import NOON
from tests.unit.dynamodb.world import DAY_S, EVERYTHING, MINUTE, SECOND, World, budget, rate, slot
from tollgate.domain import keys
from tollgate.domain.limits import (
    FOREVER_US,
    Rate,
    RateTake,
    Scope,
    Status,
    Take,
    Unit,
    Window,
)


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
        assert world.admit(*takes).values[0] == NOON + 2 * limit.inc_us(1)

    def test_hundreds_of_expired_holds_are_released(self, world: World) -> None:
        for i in range(60):
            assert world.admit(budget(1, amount=60), id=f"{i}", life=SECOND).admitted
        world.now += 2 * SECOND  # those that share an expiry: in whole seconds
        decision = world.admit(budget(60, amount=60))
        assert (decision.status, decision.values[0]) == (Status.ADMITTED, 60)
