"""What is left to chance, and how likely it is."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds: log-normal, with a heavy tail for a small share of all draws."""

    median_s: float
    sigma: float = 0.4
    tail_share: float = 0.0
    tail_median_s: float = 0.0

    def draw(self, chance: random.Random) -> float:
        median = self.tail_median_s if self.tail_share and chance.random() < self.tail_share else self.median_s
        return median * math.exp(chance.gauss(0.0, self.sigma))


def mixed(*parts: int) -> int:
    """64 bits that look random and depend on nothing but `parts` (splitmix64)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


def share(*parts: int) -> float:
    """A number in [0, 1) that depends on nothing but `parts`."""
    return mixed(*parts) / 2**64


def normal(*parts: int) -> float:
    """A standard normal number that depends on nothing but `parts` (Box and Muller)."""
    bits = mixed(*parts)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    return math.sqrt(-2.0 * math.log((low + 1) / 2**32)) * math.cos(2.0 * math.pi * high / 2**32)
