"""The usage report: rows of the ledger, and how they are added up. Pure: no clock, no IO."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import date, timedelta
from typing import Any, NamedTuple

from tollgate.domain.bookkeeping import DAYS, FIGURES, KINDS, MONTHS, Row

KEYS = ("tenant", "user", "model", "provider", "day")
"""What a report's rows are told apart by for programs, unless somebody asks otherwise: each of them is often a row that
nobody rolled up."""
OVERVIEW = ("tenant", "model", "provider")
"""The same for people, of all tenants: few lines, from a rollup."""
TENANT_OVERVIEW = (*OVERVIEW, "day")
"""The same of one tenant."""
ALL_KEYS = ("tenant", "team", "user", "key", "use_case", "model", "provider", "day")
COUNTS = ("requests", "input_tokens", "output_tokens", "total_tokens", "cost_microusd")
PARTS = (*KINDS, "estimated", "ceiling")
"""Parts of the counts, which are told on demand."""

_NOTHING = dict.fromkeys(FIGURES, 0)

Line = dict[str, Any]
"""One line of a report: its keys, then its counts."""


class UsageRow(NamedTuple):
    """One row of the ledger with its sums, named as in `FIGURES`; what is not there is 0."""

    row: Row
    sums: dict[str, int]


class Span(NamedTuple):
    """Rows of one rollup, from a day (or month) to another, both included; None: from the first, to the last."""

    rollup: str
    first: str | None
    last: str | None


def spans(by: Collection[str], since: str | None, until: str | None) -> list[Span]:
    """The fewest rows that tell the columns `by` from one day to another: where nobody asks for days, whole months of
    the smallest rollup that tells them, and days for the rest of the range."""
    asked = frozenset(by) - {"tenant"}
    days = _smallest(DAYS, asked)
    if "day" in asked:
        return [Span(days, since, until)]
    first = None if since is None else since[:7] if since[8:] == "01" else _month(since, 1)
    last = None if until is None else until[:7] if _last_day(until) == until else _month(until, -1)
    if first is not None and last is not None and first > last:
        return [Span(days, since, until)]
    found = [Span(_smallest(MONTHS, asked), first, last)]
    if since is not None and since[:7] != first:
        found.append(Span(days, since, _last_day(since)))
    if until is not None and until[:7] != last:
        found.append(Span(days, f"{until[:7]}-01", until))
    return found


def _smallest(rollups: Mapping[str, Set[str]], asked: Set[str]) -> str:
    return next(name for name, told in rollups.items() if asked <= told)


def _last_day(day: str) -> str:
    """Of the day's month."""
    return (date.fromisoformat(f"{_month(day, 1)}-01") - timedelta(days=1)).isoformat()


def _month(day: str, more: int) -> str:
    """The month before or after the day's."""
    year, month = divmod(int(day[:4]) * 12 + int(day[5:7]) - 1 + more, 12)
    return f"{year:04}-{month + 1:02}"


def used(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """In order, without rows whose usage was all taken back."""
    return sorted((r for r in rows if any(r.sums.values())), key=lambda r: r.row)


def grouped(rows: Iterable[UsageRow], by: Sequence[str] = KEYS, *, kinds: bool = False) -> list[Line]:
    """Lines with the keys `by`, and everything else that the rows count added up; sorted by those keys."""
    at = [Row._fields.index(name) for name in by]
    found: dict[tuple[str, ...], dict[str, int]] = {}
    for row, sums in rows:
        key = tuple([row[i] for i in at])
        into = found.get(key)
        if into is None:
            found[key] = {**_NOTHING, **sums}
        else:
            for name, amount in sums.items():
                into[name] += amount
    shown = (*COUNTS, *(PARTS if kinds else ()))
    lines: list[Line] = []
    for key in sorted(found):
        total = found[key]
        total["total_tokens"] = total["input_tokens"] + total["output_tokens"]
        lines.append(dict(zip(by, key, strict=True)) | {name: total[name] for name in shown})
    return lines
