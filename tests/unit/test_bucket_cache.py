"""The local cache: it repeats refusals that the store would give too, and nothing else."""

from __future__ import annotations

from tollgate.domain.bucket_cache import TRUST_REFUNDABLE_US, TRUST_US, BucketCache
from tollgate.domain.limits import (
    Admission,
    Concurrency,
    Decision,
    Rate,
    RateTake,
    Scope,
    SlotTake,
    Status,
    Take,
    Unit,
)

NOW = 1_795_262_400_000_000
MINUTE = 60_000_000


def take(key: str = "k", unit: Unit = Unit.REQUESTS, cost: int = 1) -> RateTake:
    return RateTake("s", key, Rate(Scope.USER, unit, 1, MINUTE, 1, "user.requests.minute"), cost, cost)


def admission(*takes: Take) -> Admission:
    return Admission("id", list(takes), MINUTE, "acme")


def refused(cache: BucketCache, *takes: Take, tat: int = NOW + MINUTE, local: int = NOW) -> None:
    cache.learn(admission(*takes), Decision(Status.REFUSED, NOW, [tat for _ in takes]), local)


def test_repeats_a_refusal_without_the_store() -> None:
    cache = BucketCache()
    refused(cache, take())
    known = cache.refuses(admission(take("other"), take()), NOW + 1000)
    assert known is not None
    partial, decision = known
    assert [t.key for t in partial.takes if isinstance(t, RateTake)] == ["k"]
    assert decision.local
    assert decision.status is Status.REFUSED


def test_never_refuses_what_the_store_would_admit() -> None:
    cache = BucketCache()
    refused(cache, take(), tat=NOW + 1_000_000)
    assert cache.refuses(admission(take()), NOW + 999_999) is not None
    assert cache.refuses(admission(take()), NOW + 1_000_000) is None


def test_trust_ends_sooner_where_tokens_can_be_given_back() -> None:
    cache = BucketCache()
    refused(cache, take("r"), take("t", Unit.TOKENS))
    assert cache.refuses(admission(take("t", Unit.TOKENS)), NOW + TRUST_REFUNDABLE_US - 1) is not None
    assert cache.refuses(admission(take("t", Unit.TOKENS)), NOW + TRUST_REFUNDABLE_US) is None
    assert cache.refuses(admission(take("r")), NOW + TRUST_US - 1) is not None
    assert cache.refuses(admission(take("r")), NOW + TRUST_US) is None


def test_slots_and_admissions_are_not_remembered() -> None:
    cache = BucketCache()
    slot = SlotTake("s", "slots", Concurrency(Scope.TENANT, 1, "tenant.slots"))
    cache.learn(admission(slot), Decision(Status.REFUSED, NOW, [1]), NOW)
    cache.learn(admission(take()), Decision(Status.ADMITTED, NOW, [NOW + MINUTE], [MINUTE]), NOW)
    assert len(cache) == 0


def test_keeps_the_stores_time_on_a_clock_that_is_off() -> None:
    cache = BucketCache()
    off = 300_000_000
    refused(cache, take(), tat=NOW + 1_000_000, local=NOW - off)
    assert cache.now_us(NOW - off) == NOW
    assert cache.refuses(admission(take()), NOW - off + 999_999) is not None
    assert cache.refuses(admission(take()), NOW - off + 1_000_000) is None


def test_is_bounded() -> None:
    cache = BucketCache(capacity=10)
    for i in range(100):
        refused(cache, take(f"k{i}"))
    assert len(cache) == 10
    assert cache.refuses(admission(take("k99")), NOW) is not None
    assert cache.refuses(admission(take("k0")), NOW) is None
