"""A tenant's bill of one month: its lines, their totals, and the proof that they are the ledger's entries. Pure.

Lines are the rows of the usage report, or the entries themselves. Either way each line says what of it was estimated
and what was reckoned at the ceiling price, for want of a price.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from tollgate.domain.bookkeeping import FIGURES, KINDS, Row, add, row_move
from tollgate.domain.records import UsageClose
from tollgate.domain.reports import COUNTS, PARTS, Line, UsageRow, grouped

VERSION = 1
"""Of the manifest and of the lines; grows when one of them means something else."""
ROW_KEYS = ("day", "team", "user", "key", "use_case", "model", "provider")
ROW_COLUMNS = (*ROW_KEYS, *COUNTS, *PARTS)
ENTRY_COLUMNS = (
    "id", "ts_us", "team", "user", "key", "use_case", "model", "upstream", "upstream_model", "degraded_from", "route",
    "outcome", "input_tokens", "output_tokens", *KINDS, "cost_microusd", "price", "priced", "estimated",
)  # fmt: skip


def row_lines(rows: Iterable[UsageRow]) -> list[Line]:
    return grouped(rows, ROW_KEYS, kinds=True)


def entry_lines(entries: Iterable[UsageClose]) -> list[Line]:
    """In the order of their time. What never left the gateway is no part of a bill."""
    billed = sorted((e for e in entries if row_move(e) is not None), key=lambda e: (e.ts_us, e.id))
    return [{name: getattr(entry, name) for name in ENTRY_COLUMNS} for entry in billed]


class Totals:
    """Sums of what a file says, and of the entries that prove it."""

    def __init__(self) -> None:
        self._sums: dict[Row, dict[str, int]] = {}

    def enter(self, entry: UsageClose) -> None:
        if (move := row_move(entry, "")) is not None:  # labels beyond a day's number are counted as one
            add(self._sums, {move[0]: move[1]})

    def differences(self, rows: Iterable[UsageRow]) -> list[Difference]:
        """Where rows say something else than the entries: each place and figure."""
        told: dict[Row, dict[str, int]] = {}
        for row, sums in rows:
            add(told, {row._replace(use_case=""): dict(sums)})
        found: list[Difference] = []
        for place in sorted(told.keys() | self._sums.keys()):
            one, other = told.get(place, {}), self._sums.get(place, {})
            found += [
                Difference(place, name, one.get(name, 0), other.get(name, 0))
                for name in FIGURES
                if one.get(name, 0) != other.get(name, 0)
            ]
        return found

    def as_dict(self) -> dict[str, int]:
        return total(self._sums.values())


class Difference(NamedTuple):
    row: Row
    figure: str
    told: int
    """By the aggregates, which the bill is made of."""
    entered: int
    """By the entries."""


def total(sums: Iterable[dict[str, int]]) -> dict[str, int]:
    found = dict.fromkeys(FIGURES, 0)
    for some in sums:
        for name, amount in some.items():
            found[name] += amount
    return found


def written(lines: Sequence[Line], columns: Sequence[str], kind: Literal["jsonl", "csv"], *, head: bool) -> bytes:
    """Lines as the file has them; `head`: with the names of the columns, where the format has such."""
    if kind == "jsonl":
        return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines).encode()
    out = _Text()
    writer = csv.writer(out, lineterminator="\n")
    if head:
        writer.writerow(columns)
    writer.writerows([[no_formula(line[name]) for name in columns] for line in lines])
    return "".join(out.parts).encode()


class _Text:
    """What `csv` writes to."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.write = self.parts.append


def no_formula(value: Any) -> Any:
    """Names come from callers' tokens, and a spreadsheet runs a cell that begins like a formula."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
