"""Rows of the usage report, read from the ledger's table: as few and as little of each as answers, and added up page
by page, so that a report holds no more than it tells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from tollgate.adapters.dynamodb import Coded, Expression, Table, few_at_once
from tollgate.adapters.dynamodb_counters import COLUMNS, PARTITIONS
from tollgate.domain.bookkeeping import FIGURES, Row
from tollgate.domain.reports import Span, UsageRow, spans

QUERIES_AT_ONCE = 8
RANGE_DAYS = 4
"""Days of single rows that one query reads: a month of a large tenant is read by several at once."""

_Sums = dict[tuple[str, ...], dict[str, int]]
"""What was read: a row's tenant, day and `COLUMNS` (empty where nobody asks), and its figures."""


async def read_rows(
    table: Table,
    tenants: Iterable[str],
    asked: Collection[str],
    since: str | None,
    until: str | None,
    passed: Callable[[int], object],
) -> list[UsageRow]:
    """What these tenants used, by the columns `asked`, in no order; `passed` is told of each page how many rows it has.
    Raises `StoreUnavailable`."""
    with_day = "day" in asked
    columns = [name if name in asked else "" for name in COLUMNS]
    sums: _Sums = {}

    async def read(tenant: str, rollup: str, first: str, last: str) -> None:
        ex = Expression()
        condition = f"{ex.name('pk')} = {ex.value(f'{PARTITIONS[rollup]}#{tenant}')}"
        condition += f" AND {ex.name('sk')} BETWEEN {ex.value(first)} AND {ex.value(last)}"
        told = [ex.name(name) for name in (*(["sk"] if with_day else []), *filter(None, columns), *FIGURES)]
        async for page in table.pages(ex, condition, ProjectionExpression=", ".join(told)):
            _add_up(sums, tenant, columns, page, with_day=with_day)
            passed(len(page))

    ranges = [(span.rollup, *days) for span in spans(asked, since, until) for days in _ranges(span)]
    await few_at_once(QUERIES_AT_ONCE, (read(tenant, *each) for tenant in tenants for each in ranges))
    return [UsageRow(Row._make((*row, "")), total) for row, total in sums.items()]


def _add_up(sums: _Sums, tenant: str, columns: Sequence[str], page: Iterable[Coded], *, with_day: bool) -> None:
    """A row may be in several items: where it is spread, and where others differ in what nobody asks for."""
    for item in page:
        day = item["sk"]["S"].partition("#")[0] if with_day else ""
        row = (tenant, day, *[item[name]["S"] if name in item else "" for name in columns])
        into = sums.get(row)
        if into is None:
            into = sums[row] = {}
        for name in FIGURES:
            if name in item:
                into[name] = into.get(name, 0) + int(item[name]["N"])


def _ranges(span: Span) -> list[tuple[str, str]]:
    """The sort keys of a span; of single rows, which are many, in ranges of a few days, so that queries can run beside
    each other."""
    first, last = span.first or "0", f"{span.last or 9}~"  # "~" sorts after the "#" behind the day
    if first > last:
        return []
    starts = [first]
    if span.first and not span.rollup:
        day, today = date.fromisoformat(first), datetime.now(UTC).date().isoformat()
        while (day := day + timedelta(days=RANGE_DAYS)).isoformat() <= min(last, today):
            starts.append(day.isoformat())
    return [*pairwise(starts), (starts[-1], last)]
