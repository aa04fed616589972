"""What lasts until a moment: boosts, and users who may not call. Apart from the policy's schema, because a login cannot
wait until that is imported."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime

_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9-])"


def read_moment(text: str) -> datetime:
    """A moment as documents write it: one without a zone is UTC, a date alone is its midnight. Raises `ValueError`."""
    if not re.match(_DATE, text):  # Python would take weeks, too
        raise ValueError("expected a date")
    found = datetime.fromisoformat(text.upper())
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def moment_us(moment: datetime) -> int:
    """In µs since 1970."""
    return int(moment.timestamp() * 1_000_000)


def lasts(until: datetime | None, now_us: int) -> bool:
    """Whether what ends at this moment (None: never) is still so; at the moment itself it is not."""
    return until is None or now_us < moment_us(until)


def disables(entries: Iterable[tuple[str, datetime | None]], names: Collection[str], now_us: int) -> bool:
    """Whether calls of the user with these names are refused now. `entries`: who is disabled, and until when."""
    return any(user in names and lasts(until, now_us) for user, until in entries)
