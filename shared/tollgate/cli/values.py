"""What options take: amounts of money, spans of time and moments, read the same by every command."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

import click

_SPAN = re.compile(r"([1-9][0-9]{0,5})(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class _Span(click.ParamType[timedelta]):
    """``90s``, ``30m``, ``2h``, ``7d``, ``4w``, as a `timedelta`; ``0`` is none at all."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        if value == "0":
            return timedelta()
        if (found := span(value)) is None:
            self.fail(f"expected a span of time such as 30m, 2h, 7d or 4w, found {value!r}", param, ctx)
        return found


class _Moment(click.ParamType[datetime]):
    """A day (its first moment) or an ISO time, in UTC where it names no zone, as an aware `datetime`; with a
    `direction` (1: from now, -1: ago) also a span of time."""

    name = "moment"

    def __init__(self, direction: Literal[-1, 0, 1] = 0) -> None:
        self._direction = direction

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        if self._direction and (away := span(value)) is not None:
            return datetime.now(UTC) + self._direction * away
        try:
            found = datetime.fromisoformat(value.strip())
        except ValueError:
            more = {-1: ", or 30m, 2h, 7d ago", 0: "", 1: ", or 30m, 2h, 7d from now"}[self._direction]
            message = f"expected a UTC day or time such as 2026-12-01 or 2026-12-01T18:00Z{more}, found {value!r}"
            self.fail(message, param, ctx)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def span(text: str) -> timedelta | None:
    """What a text such as ``2h`` says; None if it says no span of time."""
    found = _SPAN.fullmatch(text.strip())
    return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


class _Dollars(click.ParamType[int]):
    """``25``, ``0.50`` or ``$1,000``, as micro-dollars."""

    name = "dollars"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            micro = Decimal(value.strip().removeprefix("$").replace(",", "")) * 1_000_000
        except InvalidOperation:
            micro = Decimal("NaN")
        if not micro.is_finite() or micro != micro.to_integral_value() or abs(micro) > 10**15:
            self.fail(f"expected US dollars such as 25 or 0.50, found {value!r}", param, ctx)
        return int(micro)


SPAN, MOMENT, AGO, AHEAD, DOLLARS = _Span(), _Moment(), _Moment(-1), _Moment(1), _Dollars()
