"""One subject's part of one admission: what it takes from one item, and how that stands to what the item says. Pure."""

from __future__ import annotations

from dataclasses import field

from tollgate.adapters.dynamodb_limit_items import DAY_S, SINGLE_CROWD, Item, counter, short_name, single
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import SECOND_US, BudgetTake, RateTake, Take, fits

BUDGET_KEPT_S = 40 * DAY_S
"""How long an item with budgets outlives its last write: longer than any window but a life's."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """How a rate starts that the store does not know: full, or (`half`) half empty. Unknown is also what was last
    taken from before `since_us`: the store has not been asked since."""

    half: bool = False
    since_us: int = 0

    def tat(self, take: RateTake, stored: int | None, now: int) -> tuple[int, bool]:
        """The TAT that decides, and whether it is known."""
        if not self.half:
            return stored or 0, True
        if stored is None or stored < self.since_us:
            return now + take.limit.burst_us // 2, False
        return stored, True


@dataclass(slots=True)
class Part:
    """What one admission takes from one item, in one write. The lists are parallel."""

    pk: str
    places: list[int]
    """Positions among the admission's takes."""
    takes: list[Take]
    shards: int = 1
    seen: Item | None = None
    """The item without what this admission takes; None: not looked at."""
    values: list[int] = field(default_factory=list)
    """TATs, committed units and slots in use, as `seen` or after taking."""
    granted: list[int] = field(default_factory=list)
    """What is taken; empty: nothing."""
    own: bool = False
    """Whether this call took it; an earlier one may have, whose reply was lost."""
    expiry_s: int = 0
    """When the holds expire that it shares; 0: its hold is its own."""
    named: bool = False
    """Whether the write that took it bears the request's own id, and not that of a crowd."""
    now_us: int = 0
    """When it was decided."""

    @property
    def holding(self) -> bool:
        return any(not isinstance(take, RateTake) for take in self.takes)

    @property
    def rates(self) -> list[str]:
        """The names of its rates in the item."""
        return [counter(take) for take in self.takes if isinstance(take, RateTake)]

    @property
    def few(self) -> bool:
        """Whether its limits keep so few requests in flight that each hold may stand alone."""
        most = [
            take.limit.amount // max(1, take.cost) if isinstance(take, BudgetTake) else take.limit.amount
            for take in self.takes
            if not isinstance(take, RateTake)
        ]
        return min(most, default=0) <= SINGLE_CROWD

    def value(self, take: Take, item: Item, unknown: Unknown, now: int) -> int:
        """TAT, committed units or slots in use; expired holds do not count."""
        stored = item.numbers.get(counter(take))
        if isinstance(take, RateTake):
            return unknown.tat(take, stored, now)[0]
        alias = short_name(counter(take))
        return (stored or 0) - sum(hold.amounts.get(alias, 0) for hold in item.expired(now).values())

    def look(self, item: Item, unknown: Unknown, now: int) -> None:
        self.seen = item
        self.values = [self.value(take, item, unknown, now) for take in self.takes]

    def refuses(self, now: int) -> bool:
        """Whether what was looked at has too little for it."""
        return not all(fits(take, value, now) for take, value in zip(self.takes, self.values, strict=True))

    def found_taken(self, id: str, item: Item, unknown: Unknown, now: int) -> None:
        """Another call of the same id has taken this part: what its hold says, and the least of the rest."""
        self.look(item, unknown, now)
        self.granted = [least(take) for take in self.takes]
        if hold := item.holds.get(single(id)):
            self.expiry_s = 0
            pairs = zip(self.takes, self.granted, strict=True)
            self.granted = [hold.amounts.get(short_name(counter(take)), amount) for take, amount in pairs]

    def cold(self) -> list[int]:
        """The budgets that nobody has loaded, by their positions in the admission; only after `look`."""
        return self.unloaded(self.seen if self.seen is not None else Item())

    def unloaded(self, item: Item) -> list[int]:
        return [
            i
            for i, take in zip(self.places, self.takes, strict=True)
            if isinstance(take, BudgetTake) and counter(take) not in item.numbers
        ]

    def kept_s(self, now: int) -> int:
        """Epoch seconds until which the item is of use once this is taken."""
        if any(isinstance(take, BudgetTake) for take in self.takes):
            return now // SECOND_US + BUDGET_KEPT_S
        refilled_us = now + max((take.limit.burst_us for take in self.takes if isinstance(take, RateTake)), default=0)
        return refilled_us // SECOND_US + 2 * DAY_S


def least(take: Take) -> int:
    """The least that a take needs: microseconds of TAT, units, or one slot."""
    if isinstance(take, RateTake):
        return take.floor_us
    return take.floor if isinstance(take, BudgetTake) else 1
