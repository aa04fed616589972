"""The usage report: rows of the ledger, and how they are added up. Pure: no clock, no IO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tollgate.domain.bookkeeping import FIGURES, KINDS, Row

KEYS = ("tenant", "user", "model", "provider", "day")
"""What a report's rows are told apart by unless somebody asks otherwise."""
ALL_KEYS = ("tenant", "team", "user", "key", "use_case", "model", "provider", "day")
COUNTS = ("requests", "input_tokens", "output_tokens", "total_tokens", "cost_microusd")
PARTS = (*KINDS, "estimated", "ceiling")
"""Parts of the counts, which are told on demand."""

Line = dict[str, Any]
"""One line of a report: its keys, then its counts."""


class UsageRow(NamedTuple):
    """One row of the ledger with its sums, named as in `FIGURES`; what is not there is 0."""

    row: Row
    sums: Mapping[str, int]


def used(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """In order, without rows whose usage was all taken back."""
    return sorted((r for r in rows if any(r.sums.get(name) for name in FIGURES)), key=lambda r: r.row)


def grouped(rows: Iterable[UsageRow], by: Sequence[str] = KEYS, *, kinds: bool = False) -> list[Line]:
    """Lines with the keys `by`, and everything else that the rows count added up; sorted by those keys."""
    at = [Row._fields.index(name) for name in by]
    found: dict[tuple[str, ...], dict[str, int]] = {}
    for row, sums in rows:
        into = found.setdefault(tuple([row[i] for i in at]), dict.fromkeys(FIGURES, 0))
        for name, amount in sums.items():
            into[name] += amount
    shown = (*COUNTS, *(PARTS if kinds else ()))
    lines: list[Line] = []
    for key in sorted(found):
        total = found[key]
        total["total_tokens"] = total["input_tokens"] + total["output_tokens"]
        lines.append(dict(zip(by, key, strict=True)) | {name: total[name] for name in shown})
    return lines
