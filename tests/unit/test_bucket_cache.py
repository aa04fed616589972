"""The local cache: it repeats refusals that the store would give too, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from tollgate.domain.bucket_cache import ASKING_US, TRUST_REFUNDABLE_US, BucketCache
from tollgate.domain.limits import (
    FIRM_US,
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
SECOND = 1_000_000
MINUTE = 60_000_000


def take(key: str = "k", unit: Unit = Unit.REQUESTS, cost: int = 1) -> RateTake:
    return RateTake("s", key, Rate(Scope.USER, unit, 1, MINUTE, 1, "user.requests.minute"), cost, cost)


def admission(*takes: Take) -> Admission:
    return Admission("id", list(takes), MINUTE, "acme")


def answer(status: Status, values: Sequence[int], at: int = NOW, firm: int = FIRM_US) -> Decision:
    return Decision(status, at, values, [0 for _ in values], firm_us=firm)


def refused(
    cache: BucketCache,
    *takes: Take,
    tat: int = NOW + MINUTE,
    asked: int = NOW,
    at: int = NOW,
    firm: int = FIRM_US,
) -> None:
    cache.learn(admission(*takes), answer(Status.REFUSED, [tat for _ in takes], at, firm), asked)


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
    assert cache.refuses(admission(take("r")), NOW + FIRM_US - 1) is not None
    assert cache.refuses(admission(take("r")), NOW + FIRM_US) is None


def test_trust_ends_sooner_where_a_refusal_may_be_given_back() -> None:
    """A store of several groups, where others may have taken for a moment what they give back."""
    cache = BucketCache()
    refused(cache, take(), firm=SECOND)
    assert cache.refuses(admission(take()), NOW + SECOND - 1) is not None
    assert cache.refuses(admission(take()), NOW + SECOND) is None
    assert Decision(Status.REFUSED, NOW).firm_us == SECOND, "unless a store says more"
    refused(cache, take("mine"), firm=0)
    assert cache.refuses(admission(take("mine")), NOW) is None


def test_what_this_container_decided_alone_is_not_remembered_but_the_time_is() -> None:
    cache = BucketCache()
    decision = answer(Status.REFUSED, [NOW + MINUTE], NOW + SECOND)
    decision.local = True
    cache.learn(admission(take()), decision, NOW)
    assert len(cache) == 0
    assert cache.now_us(NOW) == NOW + SECOND


def test_when_trust_ends_one_asks_and_the_others_wait_for_what_it_hears() -> None:
    cache = BucketCache()
    refused(cache, take(), tat=NOW + MINUTE)
    later = NOW + FIRM_US
    asked = [cache.refuses(admission(take()), later) is None for _ in range(100)]
    assert asked == [True] + [False] * 99
    assert cache.refuses(admission(take()), later + ASKING_US - 1) is not None
    assert cache.refuses(admission(take()), later + ASKING_US) is None, "the first heard nothing"
    cache.learn(admission(take()), answer(Status.ADMITTED, [0], later), later)
    assert cache.refuses(admission(take()), later) is None


def test_an_answer_that_decides_nothing_makes_nobody_wait() -> None:
    """Not who asked, either: they come again with what was missing (a newer policy). Nor while no store answers."""
    cache, asked = BucketCache(), NOW + FIRM_US
    stale = answer(Status.STALE, [], asked)
    alone = answer(Status.ADMITTED, [NOW], asked)
    alone.local = True
    for told in (stale, alone):
        refused(cache, take())
        assert cache.refuses(admission(take()), asked) is None
        assert cache.refuses(admission(take()), asked) is not None, "somebody asks"
        cache.learn(admission(take()), told, asked)
        assert cache.refuses(admission(take()), asked) is None


def test_what_was_undone_is_forgotten() -> None:
    cache = BucketCache()
    refused(cache, take("a"), take("b"))
    cache.forget(admission(take("a"), take("c")))
    assert cache.refuses(admission(take("a")), NOW) is None
    assert cache.refuses(admission(take("b")), NOW) is not None


def test_who_is_refused_by_another_limit_does_not_ask_for_the_others() -> None:
    """Bob is blocked, and floods; Alice finds out that what both share has room again."""
    cache = BucketCache()
    refused(cache, take("shared"), firm=SECOND)
    refused(cache, take("bob"))
    later = NOW + SECOND
    assert cache.refuses(admission(take("bob"), take("shared")), later) is not None
    assert cache.refuses(admission(take("shared")), later) is None


def test_what_is_known_is_renewed_by_what_admissions_return() -> None:
    """So a flood costs one call for each that is admitted."""
    cache = BucketCache()
    refused(cache, take(), tat=NOW + SECOND)
    assert cache.refuses(admission(take()), NOW + SECOND) is None
    cache.learn(admission(take()), answer(Status.ADMITTED, [NOW + 2 * MINUTE], NOW + SECOND), NOW + SECOND)
    assert cache.refuses(admission(take()), NOW + SECOND) is not None
    cache.learn(admission(take()), answer(Status.ADMITTED, [0], NOW + 2 * SECOND), NOW + 2 * SECOND)
    assert cache.refuses(admission(take()), NOW + 2 * SECOND) is None


def test_slots_and_admissions_are_not_remembered() -> None:
    cache = BucketCache()
    slot = SlotTake("s", "slots", Concurrency(Scope.TENANT, 1, "tenant.slots"))
    cache.learn(admission(slot), Decision(Status.REFUSED, NOW, [1]), NOW)
    cache.learn(admission(take()), Decision(Status.ADMITTED, NOW, [NOW + MINUTE], [MINUTE]), NOW)
    assert len(cache) == 0


def test_keeps_the_stores_time_on_a_clock_that_is_off() -> None:
    cache = BucketCache()
    off = 300_000_000
    refused(cache, take(), tat=NOW + 1_000_000, asked=NOW - off)
    assert cache.now_us(NOW - off) == NOW
    assert cache.refuses(admission(take()), NOW - off + 999_999) is not None
    assert cache.refuses(admission(take()), NOW - off + 1_000_000) is None


def test_a_late_answer_does_not_prolong_a_refusal() -> None:
    """Decided as soon as it was asked, or just before the answer came 5 s later: it ends in time, or sooner."""
    cache = BucketCache()
    for decided_us in (0, 5 * SECOND):
        at = NOW + decided_us
        refused(cache, take(), tat=at + SECOND, at=at, asked=NOW)
        assert cache.refuses(admission(take()), at + SECOND) is None
    refused(cache, take(), tat=NOW + SECOND)
    assert cache.refuses(admission(take()), NOW + SECOND - 1) is not None


def test_is_bounded() -> None:
    cache = BucketCache(capacity=10)
    for i in range(100):
        refused(cache, take(f"k{i}"))
    assert len(cache) == 10
    assert cache.refuses(admission(take("k99")), NOW) is not None
    assert cache.refuses(admission(take("k0")), NOW) is None
