"""An event loop whose clock leaps to the next timer: an hour of waiting costs nothing, and every run is the same.

The product reads the loop's time, or clocks that it is given; where it asks the machine, the machine answers from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from asyncio import base_events
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")

WALL_CLOCK: ContextVar[Callable[[], int]] = ContextVar("WALL_CLOCK")
"""What the container that runs believes to be the time, in µs since 1970; tasks inherit it."""


class VirtualTimeLoop(base_events.BaseEventLoop):
    """No sockets, no threads: whatever waits, waits for a timer (or for somebody who does)."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = self  # the base class asks its selector to wait

    def time(self) -> float:
        return self._now_s

    def freeze(self, seconds: float) -> None:
        """Nothing runs for so long: every timer that was due meanwhile is late."""
        self._now_s += seconds

    def select(self, timeout: float | None) -> list[Any]:
        """Wait for `timeout` seconds, by being there at once. None: nothing will ever happen again."""
        if timeout is None:
            raise RuntimeError("everybody waits, and nobody for a time")
        self._now_s += max(timeout, 0.0)
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody needs to be woken."""


def run(main: Coroutine[Any, Any, T], seed: int) -> T:
    """Run `main` from second 0 to its end. Whatever is left to chance follows from `seed`."""
    loop = VirtualTimeLoop()
    random.seed(seed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch("time.monotonic", loop.time))
        stack.enter_context(patch("time.time_ns", lambda: WALL_CLOCK.get()() * 1000))
        stack.enter_context(patch("time.time", lambda: WALL_CLOCK.get()() / 1e6))
        stack.enter_context(patch("os.urandom", random.randbytes))
        return stack.enter_context(asyncio.Runner(loop_factory=lambda: loop)).run(main)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that awaits nothing: what a server does between two moments."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise RuntimeError("it waited for something")
