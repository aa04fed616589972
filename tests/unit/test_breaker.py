"""When the breaker opens and closes."""

from __future__ import annotations

from tollgate.adapters.breaker import FAILURES_TO_OPEN, PROBES_TO_CLOSE, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_opens_after_some_failures_in_a_row_and_says_when_they_began() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    opened = []
    for _ in range(FAILURES_TO_OPEN):
        opened.append(breaker.failed())
        clock.now += 1
    assert opened == [False] * (FAILURES_TO_OPEN - 1) + [True]
    assert breaker.opened_at == 100.0
    assert breaker.outage_seconds() == FAILURES_TO_OPEN


def test_an_answer_starts_the_count_again() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(10):
        for _ in range(FAILURES_TO_OPEN - 1):
            assert not breaker.failed()
            clock.now += 1
        breaker.succeeded()
    assert not breaker.is_open


def test_one_lucky_probe_does_not_close_it() -> None:
    breaker = Breaker(Clock())
    probes = [breaker.probed(True) for _ in range(PROBES_TO_CLOSE)]
    assert probes == [False] * (PROBES_TO_CLOSE - 1) + [True]
    assert not breaker.probed(False)
    assert not breaker.probed(True)
