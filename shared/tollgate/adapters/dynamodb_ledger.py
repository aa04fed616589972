"""The ledger in DynamoDB: what was used, each usage id once, whatever is repeated or arrives out of order.

A batch of usage records becomes few transactions: one put per record, on the condition that its id is new, and one
update per counter that they move together. Records that are there already cancel the transaction, are dropped from
it, and the rest is tried again; so do conflicts with other batches, after a moment.

Items (`ttl` in epoch seconds):

    u#<usage id>      u                    r: the record (JSON); p: 1 while it is an estimate; e: tenant, day and shard
    c#<subject>       <window label>       one number per figure: requests, tokens, microusd; tokens:<model> ...
    t#<tenant>        <day>#<digest>       one row of the report: user, model, provider ..., and its sums
    l#<tenant>        <day>                use-case labels that have rows of their own (`dynamodb_use_cases`)
    tenants           <digest>             tenant: every tenant that has rows
    o#<shard>         <expiry>#<digest>    r: an open call (JSON), until its close is entered or its estimate is billed

The index `entries` (hash key `e`) finds the entries of a tenant's day, for the billing export.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any

from tollgate.adapters.dynamodb import (
    BATCH,
    Cancelled,
    Client,
    Expression,
    Key,
    Plain,
    Table,
    encode_item,
    pause,
)
from tollgate.adapters.dynamodb_use_cases import UseCases
from tollgate.domain.bookkeeping import (
    FIGURES,
    Counter,
    EntryReport,
    Moves,
    Question,
    Row,
    add,
    day_of,
    moves,
    question,
    questions,
)
from tollgate.domain.keys import digest
from tollgate.domain.limits import SECOND_US, BudgetTake
from tollgate.domain.records import UsageClose, UsageOpen
from tollgate.domain.reports import UsageRow, used
from tollgate.ports import StoreUnavailable

DAY_S = 86_400
ENTRIES_KEPT_S = 100 * DAY_S
"""How long an id is known as entered; metering refuses records that are nearly as old."""
COUNTERS_KEPT_S = 140 * DAY_S
"""How long the counters of a day or month outlive its start: as long as their entries may still be corrected."""
ROWS_KEPT_S = 750 * DAY_S
OPENS_KEPT_S = 30 * DAY_S
OPEN_SHARDS = 4
"""Partitions of the open calls; each takes 1,000 writes a second."""
ENTRY_SHARDS = 4
"""Partitions of one tenant's day in the index of entries; each takes 1,000 writes a second."""
QUERIES_AT_ONCE = 8
RANGE_DAYS = 4
"""Days of rows that one query reads: a month of a large tenant is read by several at once."""
MAX_TRIES = 16
INDEXED_TENANTS = 50_000


@dataclass(slots=True)
class _Pending:
    """A record to be entered, and the estimate that it replaces, if there is one."""

    entry: UsageClose
    estimate: UsageClose | None = None


class DynamoLedger:
    """Needs a table with the keys `pk` and `sk`."""

    def __init__(self, client: Client, table: str) -> None:
        self._table = Table(client, table, patient=True)
        self._indexed: set[str] = set()
        self._use_cases = UseCases(self._table)

    async def enter(self, entries: Sequence[UsageClose], *, provisional: bool = False) -> EntryReport:
        """Enter each usage id exactly once. `provisional` entries are estimates: a later real record replaces them, and
        they replace nothing. Raises `StoreUnavailable`; what was entered by then stays, and is repeated next time."""
        report = EntryReport(0, 0, 0, {})
        pending = {entry.id: _Pending(entry) for entry in entries}
        report.repeated = len(entries) - len(pending)
        if provisional and pending:  # nearly all of them have been closed: one read is cheaper than a failed write
            for item in await self._table.get_many([_entry_key(id) for id in pending]):
                del pending[item["pk"][2:]]
                report.repeated += 1
        await self._index(p.entry.tenant for p in pending.values())
        await self._use_cases.learn(p.entry for p in pending.values())
        # neighbours share counters, so that more records fit into one transaction
        together = sorted(pending.values(), key=lambda p: (p.entry.tenant, p.entry.user, p.entry.model))
        await self._enter(together, provisional, report)
        asked = questions(entries)
        answers = await self._answers(list(asked.values()))
        report.floors = dict(zip(asked, answers, strict=True))
        return report

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        return await self._answers([question(take) for take in takes])

    async def report(
        self,
        *,
        tenant: str | None = None,
        since: str | None = None,
        until: str | None = None,
        where: Mapping[str, str] = MappingProxyType({}),
    ) -> list[UsageRow]:
        tenants = [tenant] if tenant is not None else await self._tenants()
        busy = asyncio.Semaphore(QUERIES_AT_ONCE)

        async def rows(name: str, first: str, last: str) -> list[UsageRow]:
            ex = Expression()
            condition = f"{ex.name('pk')} = {ex.value(f't#{name}')} AND {ex.name('sk')} BETWEEN "
            condition += f"{ex.value(first)} AND {ex.value(last)}"
            async with busy:
                return [_usage_row(name, item) async for item in self._table.query(ex, condition)]

        ranges = _ranges(since or "0", (until or "9") + "~")  # "~" sorts after the "#" that follows the day
        parts = await asyncio.gather(*(rows(name, *days) for name in tenants for days in ranges))
        found = (row for part in parts for row in part)
        return used(r for r in found if all(getattr(r.row, name) == value for name, value in where.items()))

    # -- open calls ----------------------------------------------------------------------------------------------

    async def opened(self, opens: Sequence[UsageOpen]) -> None:
        """Remember calls that have begun. Remembering one twice changes nothing."""
        items = {open_.id: _open_item(open_) for open_ in opens}
        await self._table.write_many(puts=list(items.values()))

    async def overdue(self, before_us: int, limit: int) -> list[UsageOpen]:
        """Open calls whose hold expired before `before_us`, whether closed meanwhile or not; at most `limit`."""
        found: list[UsageOpen] = []
        for shard in range(OPEN_SHARDS):
            ex = Expression()
            condition = f"{ex.name('pk')} = {ex.value(f'o#{shard}')} AND {ex.name('sk')} < {ex.value(_time(before_us))}"
            async for item in self._table.query(ex, condition, limit=limit - len(found)):
                found.append(UsageOpen.parse(json.loads(item["r"])))
            if len(found) >= limit:
                break
        return found

    async def forget(self, opens: Sequence[UsageOpen]) -> None:
        await self._table.write_many(deletes=[_open_key(open_) for open_ in opens])

    # -- entering ------------------------------------------------------------------------------------------------

    async def _enter(self, pending: list[_Pending], provisional: bool, report: EntryReport) -> None:
        for attempt in range(MAX_TRIES):
            if not pending:
                return
            actions = self._actions(pending, provisional)
            if len(actions) > BATCH:
                half = len(pending) // 2
                await self._enter(pending[:half], provisional, report)
                await self._enter(pending[half:], provisional, report)
                return
            try:
                await self._table.transact(actions)
            except Cancelled as cancelled:
                known = len(pending)
                pending = await self._still_pending(pending, cancelled, provisional)
                report.repeated += known - len(pending)
                if any(code not in ("None", "ConditionalCheckFailed") for code, _ in cancelled.reasons):
                    await pause(attempt)
                continue
            report.entered += len(pending)
            report.replaced += sum(p.estimate is not None for p in pending)
            return
        raise StoreUnavailable(f"the ledger's counters conflict after {MAX_TRIES} tries")

    def _actions(self, pending: list[_Pending], provisional: bool) -> list[dict[str, Any]]:
        """The transaction: first one put per record, in their order; then one update per counter and row."""
        total: Moves = {}
        actions: list[dict[str, Any]] = []
        for one in pending:
            add(total, moves(one.entry, self._use_cases.row(one.entry)))
            ex = Expression()
            condition = f"attribute_not_exists({ex.name('pk')})"
            if one.estimate is not None:
                add(total, moves(one.estimate, self._use_cases.row(one.estimate)), -1)
                ex = Expression()
                condition = f"{ex.name('p')} = {ex.value(1)}"
            put = {
                "TableName": self._table.name,
                "Item": encode_item(_entry_item(one.entry, provisional)),
                "ConditionExpression": condition,
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
            actions.append({"Put": put | ex.payload()})
        for place, amounts in total.items():
            ex = Expression()
            adds = [f"{ex.name(name)} {ex.value(amount)}" for name, amount in amounts.items()]
            key, about = _place(place)
            sets = [f"{ex.name(name)} = {ex.value(value)}" for name, value in about.items()]
            update = f"ADD {', '.join(adds)}" + (f" SET {', '.join(sets)}" if sets else "")
            change = {"TableName": self._table.name, "Key": encode_item(key), "UpdateExpression": update}
            actions.append({"Update": change | ex.payload()})
        return actions

    async def _still_pending(self, pending: list[_Pending], cancelled: Cancelled, provisional: bool) -> list[_Pending]:
        """What is left to be entered: without the ids that are there, except where a real record meets an estimate."""
        if len(cancelled.reasons) < len(pending):
            raise StoreUnavailable("DynamoDB cancelled a transaction without saying why")
        left: list[_Pending] = []
        for one, (code, item) in zip(pending, cancelled.reasons, strict=False):
            if code != "ConditionalCheckFailed":
                left.append(one)
                continue
            known = item or await self._table.get(_entry_key(one.entry.id))
            if not provisional and known.get("p"):
                left.append(_Pending(one.entry, UsageClose.parse(json.loads(known["r"]))))
        await self._use_cases.learn(one.estimate for one in left if one.estimate is not None)
        return left

    async def _index(self, tenants: Iterable[str]) -> None:
        """Before a tenant's first row there is its name in the list of tenants, so that no row is ever missed."""
        new = set(tenants) - self._indexed
        if not new:
            return
        await self._table.write_many(puts=[{"pk": "tenants", "sk": digest(name), "tenant": name} for name in new])
        if len(self._indexed) > INDEXED_TENANTS:
            self._indexed.clear()
        self._indexed |= new

    async def _tenants(self) -> list[str]:
        ex = Expression()
        condition = f"{ex.name('pk')} = {ex.value('tenants')}"
        return [item["tenant"] async for item in self._table.query(ex, condition)]

    async def _answers(self, asked: Sequence[Question]) -> list[int]:
        counters = {q.counter: _place(q.counter)[0] for q in asked}
        items = await self._table.get_many(list(counters.values()))
        found = {(item["pk"], item["sk"]): item for item in items}
        answers: list[int] = []
        for q in asked:
            key = counters[q.counter]
            item = found.get((key["pk"], key["sk"]), {})
            answers.append(sum(item.get(name, 0) for name in q.names))
        return answers


def _entry_key(id: str) -> Key:
    return {"pk": f"u#{id}", "sk": "u"}


def _entry_item(entry: UsageClose, provisional: bool) -> Plain:
    record = entry.as_dict()
    del record["settle"], record["budget_models"]  # long, and of no use later
    ttl = entry.ts_us // SECOND_US + ENTRIES_KEPT_S
    item: Plain = {**_entry_key(entry.id), "r": json.dumps(record, separators=(",", ":")), "ttl": ttl}
    item["e"] = f"{entry.tenant}#{day_of(entry)}#{zlib.crc32(entry.id.encode()) % ENTRY_SHARDS}"
    return item | {"p": 1} if provisional else item


def _place(place: Counter | Row) -> tuple[Key, Plain]:
    """The key of a counter or row, and what its item says apart from its sums."""
    if isinstance(place, Counter):
        key = {"pk": f"c#{place.subject}", "sk": place.label}
        return key, {} if place.label == "life" else {"ttl": _start_s(place.label) + COUNTERS_KEPT_S}
    told = dict(zip(_COLUMNS, place[2:], strict=True))
    about: Plain = {name: value for name, value in told.items() if value} | {"ttl": _start_s(place.day) + ROWS_KEPT_S}
    return {"pk": f"t#{place.tenant}", "sk": f"{place.day}#{digest(json.dumps(place[2:]))}"}, about


def _usage_row(tenant: str, item: Plain) -> UsageRow:
    columns = [item.get(name, "") for name in _COLUMNS]
    sums = {name: item[name] for name in FIGURES if name in item}
    return UsageRow(Row(tenant, item["sk"].partition("#")[0], *columns), sums)


_COLUMNS = Row._fields[2:]
"""What a row's item says beside its key: everything but tenant and day."""


def _ranges(first: str, last: str) -> list[tuple[str, str]]:
    """The sort keys from `first` to `last` in ranges of a few days, so that queries can run beside each other; in one
    where the days are not both given."""
    try:
        day, end = date.fromisoformat(first), date.fromisoformat(last.rstrip("~"))
    except ValueError:
        return [(first, last)] if first <= last else []
    found: list[tuple[str, str]] = []
    while day <= end:
        to = min(day + timedelta(days=RANGE_DAYS - 1), end)
        found.append((day.isoformat(), f"{to.isoformat()}~"))
        day = to + timedelta(days=1)
    return found


def _start_s(label: str) -> int:
    """When a day or month begins, in epoch seconds."""
    day = label if len(label) > 7 else f"{label}-01"
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


def _time(us: int) -> str:
    """Sorts like the number."""
    return f"{us:017d}"


def _open_key(open_: UsageOpen) -> Key:
    shard = zlib.crc32(open_.id.encode()) % OPEN_SHARDS
    return {"pk": f"o#{shard}", "sk": f"{_time(open_.expires_us)}#{digest(open_.id)}"}


def _open_item(open_: UsageOpen) -> Plain:
    record = json.dumps(open_.as_dict(), separators=(",", ":"))
    return {**_open_key(open_), "r": record, "ttl": open_.expires_us // SECOND_US + OPENS_KEPT_S}
