"""When requests come: a day's curve, and on top of it users whose programs send many at once."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

BURST_SHARE = 0.02
"""How many arrivals are a whole burst: an agent that fans out, a test suite, a retry loop."""
BURST_MEAN = 8
BURST_S = 2.0


def curve(at: float) -> float:
    """The load at a moment of the day (0 to 1), around 1: the night has 0.5 of it, the afternoon 1.5."""
    return 1.0 - 0.5 * math.cos(2.0 * math.pi * at)


def arrivals(rps: float, seconds: float, seed: int) -> Iterator[tuple[float, int]]:
    """(second, how many requests within the next `BURST_S`): a Poisson process whose rate follows `curve`, a whole day
    of it however short the run is. `rps` is the mean over the run."""
    chance = random.Random(seed * 7 + 2)
    mean_size = 1 + BURST_SHARE * (BURST_MEAN - 1)
    most = 1.5 * rps / mean_size
    at = 0.0
    while True:
        at += chance.expovariate(most)
        if at >= seconds:
            return
        if chance.random() * 1.5 > curve(at / seconds):
            continue
        size = 1
        if chance.random() < BURST_SHARE:
            size = 1 + math.floor(math.log(1.0 - chance.random()) / math.log(1.0 - 1.0 / (BURST_MEAN - 1)))
            size = max(2, min(size, 100))
        yield at, size
