"""A deadline that is moved often costs a timer now and then, and is never missed."""

from __future__ import annotations

from math import inf
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tollgate.adapters.deadline import Deadline


class Timer:
    def __init__(self, at: float, act: Any) -> None:
        self.at, self.act, self.cancelled = at, act, False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Of an event loop just the clock and its timers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.armed = 0

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, act: Any) -> Timer:
        self.armed += 1
        self.timers.append(Timer(at, act))
        return self.timers[-1]

    def run_until(self, moment: float) -> None:
        while due := [t for t in self.timers if not t.cancelled and t.at <= moment]:
            timer = min(due, key=Timer.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.act()
        self.now = moment


def test_a_thousand_moves_into_the_future_arm_a_few_timers() -> None:
    loop, reached = Loop(), []
    deadline = Deadline(loop, lambda: reached.append(loop.now))  # type: ignore[arg-type]  # as much of a loop as it needs
    for ms in range(1000):
        loop.run_until(ms / 1000)
        deadline.move(ms / 1000 + 10)
    assert loop.armed == 1
    loop.run_until(30)
    assert reached == [10.999]
    assert loop.armed == 2


def test_none_is_never_reached() -> None:
    loop, reached = Loop(), []
    deadline = Deadline(loop, lambda: reached.append(loop.now))  # type: ignore[arg-type]  # see above
    deadline.move(5)
    deadline.at = inf
    loop.run_until(100)
    deadline.move(105)
    deadline.cancel()
    loop.run_until(200)
    assert not reached
    assert all(timer.cancelled for timer in loop.timers)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.001, 10)), max_size=20))
def test_it_is_reached_at_the_moment_it_was_last_moved_to(moves: list[tuple[float, float]]) -> None:
    """Whatever it was before, earlier or later; unless it was moved on in time."""
    loop, reached, expected = Loop(), [], []
    deadline = Deadline(loop, lambda: reached.append(loop.now))  # type: ignore[arg-type]  # see above
    due = inf
    for pause, ahead in moves:
        if due <= loop.now + pause:
            expected.append(due)
        loop.run_until(loop.now + pause)
        due = loop.now + ahead
        deadline.move(due)
    loop.run_until(1000)
    assert reached == [*expected, *([due] if moves else [])]
