"""Hot subjects in several items: what everyone takes from would be written more often than one item can be.

A limit in N shards is N limits of an Nth each, so their sum never exceeds it. A shard of a rate is the same bucket in
which everything costs N times as much: the burst in microseconds stays, and no capacity is lost to rounding. A request
is sent to a shard by its id, and to one other if that refuses. Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b

from tollgate.domain.limits import SECOND_US, RateTake, Scope, SlotTake, Take, Unit, fits

WRITES_PER_S = 400
"""Writes of one item that are aimed at; it can take 1,000 small ones."""
TOKENS_PER_REQUEST = 250
"""What a small request costs: where only tokens are limited, this says how many requests there may be."""
LEAST_BURST = {Unit.REQUESTS: 8, Unit.TOKENS: 1 << 18}
"""The burst that a shard keeps: one request, with the largest context of today, must fit into it."""


def shards(takes: Iterable[Take]) -> int:
    """How many items count these limits of one subject; the same for every request, as its limits are."""
    rates = [take.limit for take in takes if isinstance(take, RateTake) and take.limit.scope is Scope.GLOBAL]
    if not rates:
        return 1
    requests = [r.amount * SECOND_US / r.period_us for r in rates if r.unit is Unit.REQUESTS]
    tokens = [r.amount * SECOND_US / r.period_us / TOKENS_PER_REQUEST for r in rates if r.unit is not Unit.REQUESTS]
    writes_per_s = min(requests or tokens) * (2 if tokens else 1)  # tokens are settled, too
    most = min(rate.burst // LEAST_BURST.get(rate.unit, 1) for rate in rates)
    return max(1, min(-(-int(writes_per_s) // WRITES_PER_S), most))


def pick(id: str, count: int) -> tuple[int, int]:
    """The shard of a request, and another one to try (the same where there is no other)."""
    chance = int.from_bytes(blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    first = chance % count
    return first, (first + 1 + (chance >> 32) % (count - 1)) % count if count > 1 else first


def share(take: Take, shard: int, count: int) -> Take:
    """What a request takes of one shard."""
    if count == 1:
        return take
    part = copy.copy(take)
    if isinstance(part, RateTake):
        part.inc_us, part.floor_us = part.inc_us * count, part.floor_us * count
    elif isinstance(part, SlotTake):
        part.limit = replace(part.limit, amount=(part.limit.amount + shard) // count)
    return part


def whole(take: Take, part: Take, value: int, granted: int, count: int, now: int) -> tuple[int, int]:
    """What a shard (which `part` was taken from) has and granted, as that of the whole limit: as full as that, and
    refusing if the shard does."""
    if count == 1:
        return value, granted
    refused = not granted and not fits(part, value, now)
    if isinstance(take, RateTake) and isinstance(part, RateTake):
        more = part.floor_us - take.floor_us if refused else 0
        return max(value, now) + more, granted // count
    if isinstance(take, SlotTake):
        return take.limit.amount if refused else min(value * count, take.limit.amount), granted
    return value, granted


def whole_tat(tats: Iterable[int | None], count: int, now: int) -> int | None:
    """The TAT of a limit as a whole, from those of its shards; None if none is known."""
    known = [tat for tat in tats if tat is not None]
    if count == 1 or not known:
        return known[0] if known else None
    return now + sum(max(0, tat - now) for tat in known) // count
