"""A circuit breaker: when to stop asking a store that does not answer, and when to ask it again."""

from __future__ import annotations

from collections.abc import Callable

FAILURES_TO_OPEN = 3
"""In a row. With a reply timeout of 100 ms the breaker opens within 0.3 s of a stall."""
PROBES_TO_CLOSE = 2
"""In a row: one lucky answer of a store that restarts is not a recovery."""
PROBE_EVERY = 0.5
"""Seconds between two probes."""


class Breaker:
    """Closed (calls pass) or open (only probes do). Time in seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._successes = 0
        self.opened_at: float | None = None
        """When the first of the failures that opened it happened; None while closed."""
        self._first_failure = 0.0

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> bool:
        """Count a failed call; True if this one opened the breaker."""
        if self._failures == 0:
            self._first_failure = self._clock()
        self._failures += 1
        if self.is_open or self._failures < FAILURES_TO_OPEN:
            return False
        self.opened_at = self._first_failure
        self._successes = 0
        return True

    def probed(self, answered: bool) -> bool:
        """Count a probe; True if the breaker may close now. Closing is `close`, after whatever must come first."""
        self._successes = self._successes + 1 if answered else 0
        return self._successes >= PROBES_TO_CLOSE

    def outage_seconds(self) -> float:
        return 0.0 if self.opened_at is None else self._clock() - self.opened_at

    def close(self) -> None:
        self.opened_at = None
        self._failures = 0
