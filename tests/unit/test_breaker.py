"""When the breaker opens and closes."""

from __future__ import annotations

from tollgate.adapters.breaker import CALM, DOUBT_WINDOW, DOUBTS_TO_OPEN, MAX_CALM, OPEN_AFTER, RELAPSE, STALE, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(breaker: Breaker, clock: Clock) -> None:
    """Let it open, by an outage."""
    assert breaker.failed(breaker.doubts)
    clock.now += OPEN_AFTER + 0.01
    assert not breaker.probed(False)
    assert breaker.is_open


def calm_until_closing(breaker: Breaker, clock: Clock) -> float:
    """Answer every probe until it closes; how long that took."""
    began = clock.now
    while not breaker.probed(True):
        clock.now += 0.25
    breaker.close()
    return clock.now - began


def test_a_failure_is_a_doubt_which_one_good_probe_clears() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    assert breaker.failed(0)
    assert (breaker.is_closed, breaker.is_open) == (False, False)
    clock.now += 0.002
    assert breaker.probed(True)
    breaker.close()
    assert breaker.is_closed


def test_a_thousand_calls_that_fail_together_are_one_doubt() -> None:
    breaker = Breaker(Clock())
    assert [breaker.failed(0) for _ in range(1000)].count(True) == 1
    assert not breaker.is_open
    assert breaker.probed(True)
    breaker.close()
    assert not breaker.failed(0), "it was called before that doubt, and is no news"
    assert breaker.is_closed


def test_it_opens_when_no_probe_is_answered_for_a_while_and_says_since_when() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.failed(0)
    clock.now += OPEN_AFTER - 0.01
    breaker.probed(False)
    assert not breaker.is_open
    clock.now += 0.02
    breaker.probed(False)
    assert breaker.is_open
    clock.now += 10
    assert round(breaker.outage_seconds(), 2) == round(OPEN_AFTER + 10.01, 2)


def test_a_store_that_answers_probes_but_not_calls_opens_it_by_its_doubts() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(DOUBTS_TO_OPEN):
        assert not breaker.is_open
        assert breaker.failed(breaker.doubts)
        clock.now += DOUBT_WINDOW / DOUBTS_TO_OPEN - 0.01
        if not breaker.is_open:
            assert breaker.probed(True)
            breaker.close()
    assert breaker.is_open


def test_rare_hiccups_do_not_open_it() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(20):
        assert breaker.failed(breaker.doubts)
        assert breaker.probed(True)
        breaker.close()
        clock.now += DOUBT_WINDOW / (DOUBTS_TO_OPEN - 1)
    assert breaker.is_closed


def test_it_closes_after_a_calm_that_every_probe_confirms() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    opened(breaker, clock)
    assert not breaker.probed(True)
    clock.now += CALM - 0.01
    assert not breaker.probed(True)
    assert not breaker.probed(False)
    clock.now += 1
    assert CALM <= calm_until_closing(breaker, clock) < CALM + 0.3


def test_a_store_that_flaps_must_stay_calm_for_longer_up_to_a_bound() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    calms = []
    for _ in range(5):
        opened(breaker, clock)
        calms.append(calm_until_closing(breaker, clock))
    assert calms == [CALM, min(2 * CALM, MAX_CALM), MAX_CALM, MAX_CALM, MAX_CALM]
    clock.now += RELAPSE
    opened(breaker, clock)
    assert calm_until_closing(breaker, clock) == CALM


def test_it_is_stale_when_nobody_has_probed_for_long_unless_it_is_closed() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    clock.now += 3600
    assert not breaker.is_stale
    opened(breaker, clock)
    clock.now += STALE
    assert not breaker.is_stale
    clock.now += 0.01
    assert breaker.is_stale
    breaker.probed(False)
    assert not breaker.is_stale


def test_one_answer_closes_a_stale_one_which_is_stale_until_then() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    opened(breaker, clock)
    clock.now += 3600
    assert breaker.probed(True)
    assert breaker.is_stale, "what must come first has not come yet"
    assert breaker.outage_seconds() > 3600
    breaker.close()
    assert not breaker.is_stale


def test_a_failure_of_a_stale_one_begins_another_outage() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    opened(breaker, clock)
    assert not breaker.probed(True)
    clock.now += 3600
    assert not breaker.probed(False)
    assert breaker.outage_seconds() == 0
    clock.now += 0.25
    assert not breaker.probed(True), "the calm begins anew, too"
    assert CALM <= calm_until_closing(breaker, clock) < CALM + 0.3
