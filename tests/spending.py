"""Simulated spending of tenants by the hour: bursty, by day and week, with the long tail of few dear requests."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

MEDIAN_REQUEST = 20_000
"""Micro-dollars."""


@dataclass(frozen=True)
class Tenant:
    rate: float
    """Requests in the busiest hour of an ordinary day."""
    tail: float
    """Sigma of a request's cost, which is log-normal."""
    swing: float
    """Sigma of a day's level, log-normal and correlated with the day before (0.7)."""
    weekend: float
    """Share of a weekday's requests."""
    weekly: int
    """What a job costs on each seventh day, in micro-dollars."""

    @classmethod
    def any(cls, chance: random.Random) -> Tenant:
        return cls(
            10 ** chance.uniform(0, 4),
            chance.choice([0.5, 1.0, 1.5]),
            chance.choice([0.1, 0.3, 0.5]),
            chance.choice([0.2, 0.5, 1.0]),
            chance.choice([0, 0, 0, 50_000_000]),
        )

    def days(self, chance: random.Random, number: int) -> Iterator[list[int]]:
        """What each hour of each day costs, in micro-dollars."""
        level = 0.0
        for day in range(number):
            level = 0.7 * level + math.sqrt(0.51) * chance.gauss(0, self.swing)
            busy = self.rate * math.exp(level) * (self.weekend if day % 7 > 4 else 1)
            hours = [self._hour(chance, busy * _daylight(hour)) for hour in range(24)]
            if day % 7 == 6:
                hours[3] += round(self.weekly * math.exp(chance.gauss(0, 0.3)))
            yield hours

    def _hour(self, chance: random.Random, expected: float) -> int:
        number = _poisson(chance, expected)
        if number < 200:
            return round(MEDIAN_REQUEST * sum(math.exp(chance.gauss(0, self.tail)) for _ in range(number)))
        spread = math.sqrt((math.exp(self.tail**2) - 1) / number)
        return max(0, round(MEDIAN_REQUEST * number * math.exp(self.tail**2 / 2) * (1 + chance.gauss(0, spread))))


def _daylight(hour: int) -> float:
    return 0.15 + (0.85 * math.sin(math.pi * (hour - 6) / 14) if 6 <= hour <= 20 else 0)


def _poisson(chance: random.Random, expected: float) -> int:
    if expected > 50:
        return max(0, round(chance.gauss(expected, math.sqrt(expected))))
    limit, number, product = math.exp(-expected), 0, chance.random()
    while product > limit:
        number += 1
        product *= chance.random()
    return number
