"""The ledger in one process: for `serve` without AWS, and the reference that DynamoDB's ledger is compared with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType

from tollgate.domain.bookkeeping import (
    OTHER,
    USE_CASES,
    EntryReport,
    Move,
    Moves,
    Question,
    Row,
    add,
    day_of,
    first_of_each,
    models_digest,
    moves,
    question,
    questions,
)
from tollgate.domain.limits import BudgetTake
from tollgate.domain.records import UsageClose, UsageOpen
from tollgate.domain.reports import ALL_KEYS, UsageRow, spans, used


class MemoryLedger:
    """Lives as long as its process, and so does what it knows."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[UsageClose, bool]] = {}
        self._sums: Moves = {}
        self._opens: dict[str, UsageOpen] = {}
        self._use_cases: dict[tuple[str, str], set[str]] = {}

    async def enter(self, entries: Sequence[UsageClose], *, provisional: bool = False) -> EntryReport:
        report, moved = EntryReport(), Moves()
        for position, entry in first_of_each(entries, report):
            known, estimate = self._entries.get(entry.id, (None, False))
            if known is not None and (provisional or not estimate):
                if provisional or known.bill() == entry.bill():
                    report.repeated += 1
                else:
                    report.tampered.append(position)
                continue
            if known is not None:
                add(moved, self._moves(known), -1)
                report.replaced += 1
            add(moved, self._moves(entry))
            self._entries[entry.id] = (entry, provisional)
            report.entered += 1
        add(self._sums, moved)
        for key, asked in questions(entries).items():
            report.floors[key], report.moved[key] = self._answer(asked), asked.of(moved)
        return report

    async def answers(self, asked: Sequence[Question]) -> list[int]:
        return [self._answer(each) for each in asked]

    async def budget_models(self) -> dict[str, tuple[str, ...]]:
        return {
            models_digest(key): models for entry, _ in self._entries.values() for key, models in entry.budget_models
        }

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        return await self.answers([question(take) for take in takes])

    async def report(
        self,
        *,
        tenant: str | None = None,
        since: str | None = None,
        until: str | None = None,
        where: Mapping[str, str] = MappingProxyType({}),
        by: Sequence[str] = ALL_KEYS,
    ) -> list[UsageRow]:
        wanted = spans({*by, *where}, since, until)
        return used(
            UsageRow(row, sums)
            for row, sums in self._sums.items()
            if isinstance(row, Row)
            and (tenant is None or row.tenant == tenant)
            and any(row.rollup == s.rollup and (s.first or "") <= row.day <= (s.last or "9") for s in wanted)
            and all(getattr(row, name) == value for name, value in where.items())
        )

    async def tenants(self) -> list[str]:
        return sorted({place.tenant for place in self._sums if isinstance(place, Row)})

    async def entries(self, tenant: str, day: str) -> AsyncIterator[UsageClose]:
        for entry, _ in self._entries.values():
            if entry.tenant == tenant and day_of(entry) == day:
                yield entry

    async def opened(self, opens: Sequence[UsageOpen]) -> None:
        for open_ in opens:
            self._opens[open_.id] = open_

    async def open_calls(self, ids: Sequence[str]) -> list[UsageOpen]:
        return [self._opens[id] for id in dict.fromkeys(ids) if id in self._opens]

    async def overdue(self, before_us: int, limit: int) -> list[UsageOpen]:
        due = sorted((o for o in self._opens.values() if o.expires_us < before_us), key=lambda o: o.expires_us)
        return due[:limit]

    async def forget(self, opens: Sequence[UsageOpen]) -> None:
        for open_ in opens:
            self._opens.pop(open_.id, None)

    def _moves(self, entry: UsageClose) -> Move:
        known = self._use_cases.setdefault((entry.tenant, day_of(entry)), set())
        if entry.use_case and len(known) < USE_CASES:
            known.add(entry.use_case)
        return moves(entry, entry.use_case if entry.use_case in known else OTHER if entry.use_case else "")

    def _answer(self, asked: Question) -> int:
        return asked.of(self._sums)
