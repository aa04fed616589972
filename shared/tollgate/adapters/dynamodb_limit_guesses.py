"""What a container guesses of an item that it has not just read: a write has to say beforehand what it will find.

A rate is idle or busy. Where the TAT that was last seen lies in the future, it is busy; where it lies in the past,
others may have come since, or nobody. One container is always right to say nobody, one of a thousand hardly ever is at
a high load. So each container learns, for each rate of an item, by two bits, as processors predict branches. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

from tollgate.adapters.dynamodb_limit_items import Item
from tollgate.domain.dataclass import dataclass

MOST = 3
"""Surely busy. 0 is surely idle; from 2 on, busy is the better guess."""
UNDECIDED = 1


@dataclass(slots=True)
class Guess:
    """Of one item. An item that was never seen is guessed to be empty."""

    item: Item = field(default_factory=Item)
    """As it was last seen."""
    crowded: bool | None = None
    """Whether holds shared their expiry then; None: it was not seen. (By now the crowd may be gone, or just come. That
    it is there is the guess that no condition contradicts.)"""
    in_windows: int = 0
    """Of how many writes it told then by their windows."""
    trends: dict[str, int] = field(default_factory=dict)
    """Rate -> 0 to 3: how often it was busy where that could not be told beforehand."""

    @classmethod
    def right(cls, item: Item, now: int) -> Guess:
        """Of an item that is before us."""
        return cls(item, item.crowded(now), item.in_windows)

    def after(self, item: Item, now: int) -> Guess:
        """For the next time, now that the item looks like this; without what makes items large."""
        return Guess(Item(item.numbers), item.crowded(now), item.in_windows, self.trends)

    def busy(self, rate: str, now: int) -> bool:
        """Whether the rate's TAT lies in the future."""
        return self.item.numbers.get(rate, 0) > now or self.trends.get(rate, UNDECIDED) > UNDECIDED

    def learn(self, rates: Iterable[str], found: Item | None, now: int) -> None:
        """`found` contradicts the guess; None: it was right."""
        for rate in rates:
            if self.item.numbers.get(rate, 0) > now:
                continue
            busy = found.numbers.get(rate, 0) > now if found is not None else self.busy(rate, now)
            trend = self.trends.get(rate, UNDECIDED) + (1 if busy else -1)
            self.trends[rate] = max(0, min(MOST, trend))
