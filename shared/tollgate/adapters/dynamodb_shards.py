"""Hot subjects in several items: what everyone takes from would be written more often than one item can be.

A limit in N shards is N limits of an Nth each, so their sum never exceeds it. A shard of a rate is the same bucket in
which everything costs N times as much: the burst in microseconds stays, and no capacity is lost to rounding. A request
is sent to a shard by its id, and to one other if that refuses. N is a power of two, and a shard keeps its item when N
changes: so a limit that is raised seldom gets new, full shards, and they are half of it for each doubling of N. Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b

from tollgate.domain.limits import SECOND_US, Concurrency, Rate, RateTake, Scope, SlotTake, Take, Unit, fits

WRITES_PER_S = 400
"""Writes of one item that are aimed at; it can take 1,000 small ones."""
TOKENS_PER_REQUEST = 250
"""What a small request costs: where no requests are limited, this says how many there may be."""
SLOT_S = 1
"""How long a short call keeps its slot: where only slots are limited, this says how many there may be in a second."""
LEAST = {Unit.REQUESTS: 8, Unit.TOKENS: 1 << 18, Unit.SLOTS: 8}
"""What a shard keeps of a burst, or of slots: one request, with the largest context of today, must fit into it."""


def shards(takes: Iterable[Take]) -> int:
    """How many items count these limits of one subject; the same for every request, as its limits are. Fewer than its
    writes ask for where a burst (or the slots) would be cut too small."""
    per_s: dict[Unit, list[float]] = {}
    most, settled = 1 << 20, False
    for take in takes:
        limit = take.limit
        if limit.scope is not Scope.GLOBAL:
            return 1
        if isinstance(limit, Rate):
            each = TOKENS_PER_REQUEST if limit.unit is Unit.TOKENS else 1
            per_s.setdefault(limit.unit, []).append(limit.amount * SECOND_US / limit.period_us / each)
            most = min(most, limit.burst // LEAST[limit.unit])
        elif isinstance(limit, Concurrency):
            per_s.setdefault(limit.unit, []).append(limit.amount / SLOT_S)
            most = min(most, limit.amount // LEAST[limit.unit])
        settled = settled or limit.unit is not Unit.REQUESTS
    requests_per_s = min(per_s.get(Unit.REQUESTS) or per_s.get(Unit.TOKENS) or per_s.get(Unit.SLOTS) or [0.0])
    wanted = -(-int(requests_per_s) * (2 if settled else 1) // WRITES_PER_S)
    return min(1 << max(0, wanted - 1).bit_length(), 1 << max(0, most.bit_length() - 1))


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
