"""A circuit breaker: when to stop asking a store that does not answer, and when to ask it again.

Closed, it lets calls pass. The first that fails puts it **in doubt**: from then on nobody waits for the store but a
probe, which either clears the doubt within milliseconds (a hiccup, however many calls it hit) or, where it fails for
`OPEN_AFTER`, opens the breaker. So what is counted is time and not calls: one stall under a thousand concurrent calls
is one doubt, and a caller that asks once a second is protected as well as one that asks a thousand times. A store that
answers probes but not calls is caught by the number of its doubts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

OPEN_AFTER = 0.3
"""Seconds without an answer to any probe. With a reply timeout of 0.1 s and a probe's 0.5 s it is open within 0.7 s."""
DOUBTS_TO_OPEN = 3
DOUBT_WINDOW = 5.0
"""Seconds within which so many doubts open it at once."""
CALM = 1.0
"""Seconds for which every probe must be answered before it closes."""
MAX_CALM = 3.0
"""Each opening within RELAPSE seconds of a closing doubles the calm that is asked for, up to this."""
RELAPSE = 60.0
STALE = 1.0
"""Seconds without a probe after which nothing is known any more. There is one every 0.75 s at least, so the process was
held up, or frozen (as on Lambda between two requests)."""


class Breaker:
    """Closed, in doubt, or open. Time in seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.is_closed = True
        self.is_open = False
        self.doubts = 0
        """So far; a call remembers it, so that a failure of a call from before the last doubt is no new one."""
        self._doubted_at: deque[float] = deque(maxlen=DOUBTS_TO_OPEN)
        self._failing_since = 0.0
        self._asked_at = 0.0
        self._calm_since: float | None = None
        self._calm = CALM
        self._closed_at = float("-inf")

    @property
    def is_stale(self) -> bool:
        """Whether it is long ago that somebody found out how the store is; never while it is closed."""
        return not self.is_closed and self._clock() - self._asked_at > STALE

    def failed(self, doubts: int) -> bool:
        """A call failed that was made after so many doubts; True if that is a new doubt."""
        if not self.is_closed or doubts != self.doubts:
            return False
        now = self._clock()
        self.is_closed = False
        self.doubts += 1
        self._failing_since = self._asked_at = now
        self._doubted_at.append(now)
        if len(self._doubted_at) == DOUBTS_TO_OPEN and now - self._doubted_at[0] < DOUBT_WINDOW:
            self._open(now)
        return True

    def probed(self, answered: bool) -> bool:
        """Count a probe; True if it may close now. Closing is `close`, after whatever must come first.

        Of a stale breaker the next probe decides: an answer closes it, and a failure begins another outage."""
        now, stale = self._clock(), self.is_stale
        if answered and stale:
            return True
        self._asked_at = now
        if answered:
            if not self.is_open:
                return True
            if self._calm_since is None:
                self._calm_since = now
            return now - self._calm_since >= self._calm
        self._calm_since = None
        if stale:
            self._failing_since = now
        if not self.is_closed and not self.is_open and now - self._failing_since >= OPEN_AFTER:
            self._open(now)
        return False

    def outage_seconds(self) -> float:
        """Since the first failure; 0 while it is closed."""
        return 0.0 if self.is_closed else self._clock() - self._failing_since

    def close(self) -> None:
        if self.is_open:
            self._closed_at = self._clock()
            self._doubted_at.clear()
        self.is_closed, self.is_open = True, False

    def _open(self, now: float) -> None:
        self.is_open = True
        self._calm_since = None
        self._calm = min(2 * self._calm, MAX_CALM) if now - self._closed_at < RELAPSE else CALM
