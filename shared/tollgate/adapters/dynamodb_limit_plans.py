"""What one write takes for all who wait for an item. Pure.

They are taken in the order in which they came, as if each had written for itself: who comes first is served first, and
who asks for more than is left when it is his turn does not keep out those behind him. Of each counter the write takes
the sum, on condition that the last of them still finds room. So what the item says after the write is what it would say
after as many writes, and whoever is left is decided by that: nobody is refused who would have fitted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import field

from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import Item, Mark, counter, nobody_can_tell, shared, short_name
from tollgate.adapters.dynamodb_limit_parts import Part, Unknown, least
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import Admission, RateTake, Take, fits, grant

EXACT_TRIES = 3
"""Tries of a write that take as much as fits."""
MOST_COUNTERS = 24
"""Of one write for several, and their shared holds: DynamoDB's expressions are limited (4 KB, 300 operators)."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request's share of a write."""

    mark: Mark
    at_us: int
    alone: bool
    """Whether the request's hold stands alone, and tells that the write was done."""
    granted: list[int]
    expiry_s: int


@dataclass(slots=True)
class Asked:
    """One request's part of an item, and when it was asked (µs)."""

    part: Part
    admission: Admission
    now: int
    taken: bool | None = None
    """The answer."""

    @property
    def name(self) -> str:
        return f"{self.admission.id} {self.part.pk}"

    def decide(self, taken: bool, now: int) -> None:
        self.taken, self.part.now_us = taken, now


@dataclass(slots=True)
class Sum:
    """What all of them take of one counter."""

    take: Take
    """One of theirs."""
    amount: int
    room: int
    """The highest TAT, or the most committed units or slots, at which all of them still fit."""


@dataclass(slots=True)
class Plan:
    """Whom the next write serves."""

    now: int
    alone: bool = False
    """Whether its only member's hold stands alone."""
    window_us: int = 0
    """When it is made, if its reply may well be lost."""
    members: list[Asked] = field(default_factory=list)
    granted: list[list[int]] = field(default_factory=list)
    """Of each member, of each of its takes."""
    sums: dict[str, Sum] = field(default_factory=dict)
    held: dict[tuple[str, int], int] = field(default_factory=dict)
    """What they hold: (counter's short name, when the hold expires that they share (s)) -> amount."""
    own_id: str = ""

    @property
    def mark(self) -> Mark:
        """What the write leaves: its only member's, or its own."""
        if len(self.members) == 1 and (self.alone or not self.window_us):
            return Mark(self.members[0].admission.id)
        self.own_id = self.own_id or os.urandom(8).hex()
        return Mark(self.own_id, self.window_us)

    @property
    def rates(self) -> list[str]:
        return [name for name, of in self.sums.items() if isinstance(of.take, RateTake)]

    def attempts(self) -> list[Attempt]:
        """The members' shares."""
        mark, pairs = self.mark, zip(self.members, self.granted, strict=True)
        return [Attempt(mark, self.now, self.alone, granted, one.part.expiry_s) for one, granted in pairs]

    def done(self, attempts: Sequence[Attempt], item: Item, unknown: Unknown) -> None:
        """All of them have taken their shares; this is the item now."""
        for one, share in zip(self.members, attempts, strict=True):
            one.part.look(item, unknown, self.now)
            one.part.own, one.part.named = True, share.mark.id == one.admission.id
            one.part.granted, one.part.expiry_s = share.granted, share.expiry_s
            one.decide(True, self.now)

    def recognise(self, lost: Sequence[Attempt], item: Item, unknown: Unknown) -> None:
        """The write was refused by this item: has it been done all the same, or a `lost` one before it, or by another
        call of its only member's id? Raises `StoreUnavailable` where nobody can tell."""
        first = self.members[0]
        if lost and item.has(lost[0].mark, self.now):
            self.done(lost, item, unknown)
        elif item.has(self.mark, self.now):
            first.part.found_taken(first.admission.id, item, unknown, self.now)
            first.decide(True, self.now)
        elif lost and not lost[0].alone and not item.has_not(lost[0].mark, lost[0].at_us, self.now):
            raise nobody_can_tell("charged")

    def add(self, one: Asked, names: list[str], granted: list[int]) -> bool:
        """`names` of the counters. False if the write would become too large."""
        part = one.part
        expiry_s = shared(one.admission, self.now) if part.holding and not self.alone else 0
        held = {
            (short_name(name), expiry_s): amount
            for name, take, amount in zip(names, part.takes, granted, strict=True)
            if not isinstance(take, RateTake)
        }
        if self.members and max(len(self.sums.keys() | names), len(self.held | held)) > MOST_COUNTERS:
            return False
        part.expiry_s = expiry_s
        self.members.append(one)
        self.granted.append(granted)
        for hold, amount in held.items():
            self.held[hold] = self.held.get(hold, 0) + amount
        for name, take, amount in zip(names, part.takes, granted, strict=True):
            most = self.now + take.limit.burst_us if isinstance(take, RateTake) else take.limit.amount
            of = self.sums.setdefault(name, Sum(take, 0, most))
            of.amount += amount
            of.room = min(of.room, most - of.amount)
        return True


def next_plan(
    asked: Sequence[Asked], guess: Guess, unknown: Unknown, now: int, tries: int, *, window_us: int = 0
) -> Plan:
    """Whom to serve next. At first, when the item may have changed: the first of them, and those behind him as long as
    all that can ever fit is left for them; no cost shrinks for what is only guessed. Then all who fit into the item as
    it was a moment ago; and after some tries with no more than each needs, which others disturb less."""
    plan, values = Plan(now, _alone(asked, guess), window_us), dict[str, int]()
    for one in asked:
        part, takes = one.part, one.part.takes
        names = [counter(take) for take in takes]
        whole = [grant(take, 0, now) for take in takes]
        if not tries and len(asked) == 1:
            plan.add(one, names, whole)
            break
        found = [
            values[name] if name in values else part.value(take, guess.item, unknown, now)
            for name, take in zip(names, takes, strict=True)
        ]
        pairs = list(zip(takes, found, strict=True))
        fit = all(fits(take, value, now) for take, value in pairs)
        granted = [grant(take, value, now) if tries < EXACT_TRIES else least(take) for take, value in pairs]
        if not tries:
            if plan.members and not (fit and granted == whole):
                break
            granted = whole
        elif not fit or part.unloaded(guess.item):
            continue
        if not plan.add(one, names, granted):
            break
        for name, take, amount, value in zip(names, takes, granted, found, strict=True):
            values[name] = (max(value, now) if isinstance(take, RateTake) else value) + amount
    return plan


def _alone(asked: Sequence[Asked], guess: Guess) -> bool:
    """Whether the next hold is its request's own."""
    part = asked[0].part
    crowded = guess.crowded if guess.crowded is not None else not part.few
    return len(asked) == 1 and part.holding and not crowded
