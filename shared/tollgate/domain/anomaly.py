"""Anomalous burn: an hour that costs a tenant far more than its own history lets expect. Pure: no clock, no IO.

A tenant's spending is bursty, follows the day and the week, and may have a nightly or weekly job; the sum of few dear
requests has a long tail. What is compared is therefore the dearest hour of each of the last days, as logarithms:

- its median and median absolute deviation (MAD) say where dear hours usually are, and how far they scatter. Neither
  is moved by a few days that were odd; a mean and a standard deviation would be, by the very thing they are to find.
- the second highest of those days: what has happened on two of them is no anomaly, however rare it is.

Amounts below a floor count as the floor, so that a tenant that goes from a cent to a dollar alarms nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from statistics import median

DAYS = 28
"""Whole weeks, so that every weekday counts equally."""
LEAST_DAYS = 7
"""With a shorter history nothing is usual."""
FLOOR = 1_000_000
"""Micro-dollars in an hour."""
DEVIATIONS = 5.0
"""Robust standard deviations above the median."""
LEAST_DEVIATION = 0.25
"""Of a tenant that spends the same every day: about a quarter more or less."""
ABOVE_SEEN = 1.5
"""Times the second dearest of the days."""
MAD_TO_SIGMA = 1.4826
"""Of a normal distribution."""


def unusual(peaks: Sequence[int], used: int) -> bool:
    """Whether an hour that cost `used` stands out of the dearest hours of the days before it (micro-dollars)."""
    if len(peaks) < LEAST_DAYS or used < FLOOR:
        return False
    if used <= ABOVE_SEEN * sorted(peaks)[-2]:
        return False
    logs = [log(max(peak, FLOOR)) for peak in peaks]
    middle = median(logs)
    deviation = max(MAD_TO_SIGMA * median(abs(value - middle) for value in logs), LEAST_DEVIATION)
    return log(used) > middle + DEVIATIONS * deviation
