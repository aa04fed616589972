"""A deadline that is moved often and seldom reached: the timer behind it is armed lazily.

Moving it into the future is an assignment; the timer stays where it is, and only when it fires is the deadline looked
at again. So a connection that lives through a thousand requests arms a timer every now and then, not a thousand times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf


class Deadline:
    """Calls `reached` once the loop's clock (s) has passed `at`."""

    __slots__ = ("_loop", "_reached", "_timer", "_timer_at", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, reached: Callable[[], None]) -> None:
        self.at = inf
        """Infinite: there is none now. May be assigned where it only moves into the future; else `move`."""
        self._loop = loop
        self._reached = reached
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf

    def move(self, at: float) -> None:
        self.at = at
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(at, self._fired), at

    def cancel(self) -> None:
        """There is no deadline any more, and no timer."""
        self.at = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fired(self) -> None:
        self._timer = None
        if self._loop.time() >= self.at:
            self._reached()
        elif self.at != inf:
            self.move(self.at)
