"""The billing export: a tenant's month, written line by line, and proven against the entries of the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import field
from typing import Any, Literal, Protocol

from tollgate.domain import bills
from tollgate.domain.bills import Difference, Totals
from tollgate.domain.dataclass import dataclass
from tollgate.domain.records import UsageClose
from tollgate.domain.reports import Line, UsageRow


class Books(Protocol):
    """The ledger as the export needs it. Everything raises `StoreUnavailable`."""

    async def report(
        self, *, tenant: str | None = None, since: str | None = None, until: str | None = None
    ) -> list[UsageRow]: ...

    def entries(self, tenant: str, day: str) -> AsyncIterator[UsageClose]:
        """A tenant's entries of one UTC day, in no order."""
        ...


@dataclass(slots=True)
class Bill:
    """What was written. The manifest depends on the ledger alone: the same entries make the same file."""

    manifest: dict[str, Any]
    differences: list[Difference] = field(default_factory=list)
    """Between the aggregates and the entries; empty, too, where nobody asked."""


async def export(
    books: Books,
    tenant: str,
    days: Sequence[str],
    write: Callable[[bytes], object],
    *,
    kind: Literal["jsonl", "csv"] = "jsonl",
    entries: bool = False,
    verify: bool = False,
    passed: Callable[[int], object] = lambda days: None,
) -> Bill:
    """Write the bill of `days` (a month's). `entries`: a line for each, not for each row of the report. `verify`: sum
    the entries, and compare with the report. `passed` is told of each day that is done. Raises `StoreUnavailable`."""
    rows = await books.report(tenant=tenant, since=days[0], until=days[-1])
    columns = bills.ENTRY_COLUMNS if entries else bills.ROW_COLUMNS
    sha256, size, number = hashlib.sha256(), 0, 0

    def put(lines: Sequence[Line], *, head: bool = False) -> None:
        nonlocal size, number
        data = bills.written(lines, columns, kind, head=head)
        sha256.update(data)
        size, number = size + len(data), number + len(lines)
        write(data)

    put([] if entries else bills.row_lines(rows), head=True)
    proof, counted = Totals(), 0
    for day in days if entries or verify else ():
        found = [entry async for entry in books.entries(tenant, day)]
        for entry in found:
            proof.enter(entry)
        counted += len(found)
        if entries:
            put(bills.entry_lines(found))
        passed(1)
    manifest = {
        "tollgate_bill": bills.VERSION,
        "tenant": tenant,
        "month": days[0][:7],
        "lines_are": "entries" if entries else "rows",
        "format": kind,
        "lines": number,
        "bytes": size,
        "sha256": sha256.hexdigest(),
        "totals": proof.as_dict() if entries else bills.total(dict(row.sums) for row in rows),
        "verified_entries": counted if verify else None,
    }
    return Bill(manifest, proof.differences(rows) if verify else [])
