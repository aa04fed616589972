"""What everyone shares, in several items of a table."""

from __future__ import annotations

from dataclasses import replace

from tests.records import NOON
from tests.unit.dynamodb.world import MINUTE, SECOND, World
from tollgate.domain import keys
from tollgate.domain.bucket_cache import BucketCache
from tollgate.domain.limits import (
    Admission,
    Rate,
    RateTake,
    Scope,
    Status,
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
        assert world.run(world.store.recall([self.TAKE], [0])) == [NOON + self.TAKE.limit.inc_us(250)]

    def test_a_refusal_by_a_shard_tells_nothing_of_others(self, world: World) -> None:
        """A call of half the burst does not fit into any shard that has been taken from. Small ones do, though they
        would not fit into what the large one is told to be left."""
        cache = BucketCache()
        some = replace(self.TAKE, cost=300_000, floor=300_000)
        assert all(world.admit(some, id=f"{i}").admitted for i in range(16))
        assert sum(pk.startswith("s#") for pk in world.items()) == 2
        large = Admission("large", [replace(self.TAKE, cost=3_000_000, floor=3_000_000)], MINUTE, "acme")
        decision = world.run(world.store.admit(large))
        assert decision.status is Status.REFUSED
        assert (refusal(large, decision).wait_us or 0) > 0
        cache.learn(large, decision, world.now)
        small = Admission("small", [self.TAKE], MINUTE, "acme")
        assert cache.refuses(small, world.now) is None
        assert world.run(world.store.admit(small)).admitted

    def test_raising_a_limit_beyond_its_shards_gives_half_of_its_burst_anew(self, world: World) -> None:
        def take(amount: int) -> RateTake:
            limit = Rate(Scope.GLOBAL, Unit.REQUESTS, amount, SECOND, amount, "global.requests.second")
            return RateTake(keys.global_subject(), f"{keys.global_subject()}:requests.second", limit, 1, 1)

        assert sum(world.admit(take(400)).admitted for _ in range(410)) == 400
        assert 150 < sum(world.admit(take(401)).admitted for _ in range(300)) <= 401 // 2
        assert sum(world.admit(take(400)).admitted for _ in range(10)) == 0, "and lowering it gives nothing"

    def test_a_full_shard_is_not_the_end(self, world: World) -> None:
        take = replace(self.TAKE, cost=2_900_000, floor=2_900_000)
        told = [world.admit(take, id=f"{i}") for i in range(12)]
        assert sum(d.admitted for d in told) == 2
        refused = next(d for d in told if not d.admitted)
        assert (refusal(Admission("", [take], 0), refused).wait_us or 0) > 0
        assert sum(pk.startswith("s#") for pk in world.items()) == 2
