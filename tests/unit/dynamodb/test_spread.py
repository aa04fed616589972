"""What everyone shares, in several items of a table."""

from __future__ import annotations

from dataclasses import replace

from tests.records import NOON
from tests.unit.dynamodb.world import MINUTE, World
from tollgate.domain import keys
from tollgate.domain.limits import (
    Admission,
    Rate,
    RateTake,
    Scope,
    Unit,
    refusal,
)


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
