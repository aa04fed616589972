"""A server's clock, learned from the `Date` of its answers. Pure: the caller reads the local clock."""

from __future__ import annotations

from datetime import UTC, datetime

_SECOND_US = 1_000_000
_STEP_US = 250_000
"""How far the wall clock must leave the steady one to have been set: slewing moves it by 0.5 ms a second at most."""
_MONTHS = {name: i for i, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1)}


class ServerClock:
    """Keeps the interval in which the server's clock minus ours must lie, and answers its value nearest to zero.

    `Date` has whole seconds, and an answer takes time: what one says is ``date - received <= offset < date + 1 s -
    sent``. Several together narrow that down, however slow single answers are. An answer that contradicts the earlier
    ones (a clock was set, or has drifted) starts afresh; so does the first one after our clock has left the machine's
    steady one, for a container that wakes from a freeze may have its clock set at any time. A local clock that may be
    right is taken to be right: hosts on AWS are synchronised far better than to a second.
    """

    def __init__(self) -> None:
        self.offset_us = 0
        """The server's clock minus ours (µs); wrong by less than a second plus the fastest answer's time."""
        self._low: int | None = None
        self._high = 0
        self._apart_us = 0
        """Our clock minus the steady one, when the last answer came."""

    def known(self, local_us: int, steady_us: int) -> bool:
        """Whether an answer has told it since our clock was last set. `steady_us`: a clock that nobody sets."""
        return self._low is not None and abs(local_us - steady_us - self._apart_us) < _STEP_US

    def observe(self, date: bytes, sent_us: int, received_us: int, steady_us: int) -> None:
        """Takes in a `Date` header; the first two times by our clock (µs since the epoch), the last by the steady one,
        on receipt."""
        server = _epoch_s(date)
        if server is None:
            return
        low, high = server * _SECOND_US - received_us, (server + 1) * _SECOND_US - sent_us
        if self.known(received_us, steady_us) and self._low is not None and low <= self._high and high >= self._low:
            low, high = max(low, self._low), min(high, self._high)
        self._low, self._high, self._apart_us = low, high, received_us - steady_us
        self.offset_us = min(max(0, low), high)


def _epoch_s(date: bytes) -> int | None:
    """``Sat, 21 Nov 2026 07:02:44 GMT`` (RFC 9110's only current form) as seconds; None for anything else."""
    try:
        _, day, month, year, clock, zone = date.split(b" ")
        hour, minute, second = clock.split(b":")
        if zone != b"GMT":
            return None
        moment = datetime(int(year), _MONTHS[month], int(day), int(hour), int(minute), min(int(second), 59), tzinfo=UTC)
    except (ValueError, KeyError):
        return None
    return int(moment.timestamp())
