"""The audit log in DynamoDB: entries are put under a key of their own, once, and never touched again.

Items of a table with the keys `pk` and `sk`; both kinds stand in time order under their month or day:

    change#<2026-11>        <time, µs>#<stream record id>    actor, table, item, action, before, after
    refusal#<2026-11-21>    <minute, µs>#<line id>           as `Refusals`; ttl (epoch seconds)

A role's permission can be bound to the partition key, so that who may note refusals cannot note changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict

from tollgate.adapters.dynamodb import Client, ConditionFailed, Expression, Plain, Table
from tollgate.domain.audit import Change, Refusals
from tollgate.domain.limits import SECOND_US

REFUSALS_KEPT_S = 90 * 86_400
"""Seconds; changes are kept for ever."""
AT_ONCE = 10


class AuditTable:
    """Everything raises `StoreUnavailable`; what was noted by then stays, and is passed over next time."""

    def __init__(self, client: Client, table: str) -> None:
        self._table = Table(client, table, patient=True)

    async def note(self, entries: Sequence[Change | Refusals]) -> int:
        """Put each entry once, whatever is repeated; how many were new."""
        new = 0
        for at in range(0, len(entries), AT_ONCE):
            new += sum(await asyncio.gather(*(self._put(entry) for entry in entries[at : at + AT_ONCE])))
        return new

    async def changes(self, since_us: int, until_us: int) -> AsyncIterator[Change]:
        """In time order, until `until_us` exclusive."""
        async for item in self._between(Change, since_us, until_us):
            del item["pk"], item["sk"]
            yield Change(**item)

    async def refusals(self, since_us: int, until_us: int) -> AsyncIterator[Refusals]:
        """In the order of their minutes, until `until_us` exclusive."""
        async for item in self._between(Refusals, since_us, until_us):
            del item["pk"], item["sk"], item["ttl"]
            yield Refusals(**item)

    async def _put(self, entry: Change | Refusals) -> bool:
        label = entry.window.bounds(entry.ts_us)[0]
        item: Plain = {"pk": f"{entry.kind}#{label}", "sk": f"{_time(entry.ts_us)}#{entry.id}", **asdict(entry)}
        if isinstance(entry, Refusals):
            item["ttl"] = entry.ts_us // SECOND_US + REFUSALS_KEPT_S
        new = Expression()
        try:
            await self._table.put(item, condition=f"attribute_not_exists({new.name('pk')})", expression=new)
        except ConditionFailed:
            return False
        return True

    async def _between(
        self, entries: type[Change] | type[Refusals], since_us: int, until_us: int
    ) -> AsyncIterator[Plain]:
        at = since_us
        while at < until_us:
            label, _, end = entries.window.bounds(at)
            ex = Expression()
            condition = f"{ex.name('pk')} = {ex.value(f'{entries.kind}#{label}')} AND {ex.name('sk')} BETWEEN "
            condition += f"{ex.value(_time(at))} AND {ex.value(_time(min(end, until_us)))}"
            async for item in self._table.query(ex, condition):
                yield item
            at = end


def _time(us: int) -> str:
    """Sorts like the number; a moment's entries come after it, because their keys are longer."""
    return f"{us:017d}"
