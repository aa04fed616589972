"""The ledger in DynamoDB: what was used, each usage id once, whatever is repeated or arrives out of order.

How a batch is entered is told in `dynamodb_entering`, how counters stand it in `dynamodb_counters`.

Items (`ttl` in epoch seconds):

    u#<usage id>      u                    r: the record (JSON); p: 1 while it is an estimate; e: tenant, day and shard
    c#<subject>       <window label>       one number per figure: requests, tokens, microusd; tokens:<model> ...
                                           ~: 1 where it goes on in <window label>~1 .. ~15
    t#<tenant>        <day>#<digest>       one row of the report: user, model, provider ..., its sums (also in ~1 ..)
    n#, p#, m# ...    <month>#<digest>     the same, of a month: by use case, model and provider; by user, team and key;
                                           by all of these
    d#<tenant>        <day>#<digest>       the same, of a day, by model and provider alone
    l#<tenant>        <day>                use-case labels that have rows of their own (`dynamodb_use_cases`)
    tenants           <digest>             tenant: every tenant that has rows
    models            <digest>             models: which ones the digest in a budget's key stands for (JSON)
    o#<shard>         <expiry>#<digest>    r: an open call (JSON), until its close is entered or its estimate is billed

The index `entries` (hash key `e`) finds the entries of a tenant's day, for the billing export.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from tollgate.adapters.dynamodb import Client, Expression, Key, Plain, Table
from tollgate.adapters.dynamodb_counters import Counters
from tollgate.adapters.dynamodb_entering import Entering, Pending, entry_key, entry_partitions
from tollgate.adapters.dynamodb_rows import read_rows
from tollgate.adapters.dynamodb_use_cases import UseCases
from tollgate.domain.bookkeeping import (
    EntryReport,
    Question,
    first_of_each,
    models_digest,
    question,
    questions,
)
from tollgate.domain.keys import digest
from tollgate.domain.limits import SECOND_US, BudgetTake
from tollgate.domain.records import UsageClose, UsageOpen
from tollgate.domain.reports import ALL_KEYS, UsageRow, used

DAY_S = 86_400
OPENS_KEPT_S = 30 * DAY_S
OPEN_SHARDS = 4
"""Partitions of the open calls; each takes 1,000 writes a second."""
REMEMBERED = 50_000
"""Index entries that this process knows to be there."""


class DynamoLedger:
    """Needs a table with the keys `pk` and `sk`."""

    def __init__(self, client: Client, table: str) -> None:
        self._table = Table(client, table, patient=True)
        self._indexed: set[tuple[str, str]] = set()
        self._use_cases = UseCases(self._table)
        self._counters = Counters(self._table)

    async def enter(self, entries: Sequence[UsageClose], *, provisional: bool = False) -> EntryReport:
        """Enter each usage id exactly once. `provisional` entries are estimates: a later real record replaces them, and
        they replace nothing. Raises `StoreUnavailable`; what was entered by then stays, and is repeated next time."""
        report = EntryReport()
        pending = first_of_each(entries, report)
        await self._index(entry for _, entry in pending)
        if self._use_cases.many():  # a batch keeps its own to its end
            self._use_cases = UseCases(self._table)
        batch = Entering(self._table, self._counters, self._use_cases, report, provisional=provisional)
        await batch.enter([Pending(entry, position) for position, entry in pending])
        asked = questions(entries)
        answers = await self._answers(list(asked.values()), sparing=True)
        for (key, q), answer in zip(asked.items(), answers, strict=True):
            if answer is not None:
                report.floors[key], report.moved[key] = answer, q.of(batch.moved)
        return report

    async def known(self, ids: Sequence[str]) -> dict[str, tuple[UsageClose, bool]]:
        """The entries of these ids, as far as there are any, and whether each is an estimate."""
        items = await self._table.get_many([entry_key(id) for id in dict.fromkeys(ids)])
        entries = ((UsageClose.parse(json.loads(item["r"])), bool(item.get("p"))) for item in items)
        return {entry.id: (entry, estimate) for entry, estimate in entries}

    async def answers(self, asked: Sequence[Question]) -> list[int]:
        return [answer or 0 for answer in await self._answers(asked)]

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
        passed: Callable[[int], object] = lambda rows: None,
    ) -> list[UsageRow]:
        """`passed` is told how many more rows have been read, page by page."""
        tenants = [tenant] if tenant is not None else await self.tenants()
        rows = await read_rows(self._table, tenants, {*by, *where}, since, until, passed)
        wanted = list(where.items())
        return used(one for one in rows if all(getattr(one.row, name) == value for name, value in wanted))

    async def entries(self, tenant: str, day: str) -> AsyncIterator[UsageClose]:
        """A tenant's entries of one UTC day, in no order; without what only settling needs. An index follows its table
        after a moment."""
        for name in entry_partitions(tenant, day):
            ex = Expression()
            condition = f"{ex.name('e')} = {ex.value(name)}"
            async for item in self._table.query(ex, condition, index="entries"):
                yield UsageClose.parse(json.loads(item["r"]))

    async def entry(self, id: str) -> tuple[UsageClose, bool] | None:
        """What was entered for a call, and whether it is an estimate still; None if nothing was (yet, or any more)."""
        item = await self._table.get(entry_key(id))
        return (UsageClose.parse(json.loads(item["r"])), bool(item.get("p"))) if item else None

    async def open_call(self, id: str) -> UsageOpen | None:
        """A call that has begun and whose end nobody has told yet."""
        return next(iter(await self.open_calls([id])), None)

    # -- open calls ----------------------------------------------------------------------------------------------

    async def opened(self, opens: Sequence[UsageOpen]) -> None:
        """Remember calls that have begun. Remembering one twice changes nothing."""
        items = {open_.id: _open_item(open_) for open_ in opens}
        await self._table.write_many(puts=list(items.values()))

    async def open_calls(self, ids: Sequence[str]) -> list[UsageOpen]:
        """Those of these calls that have begun, closed or not. Reads all open calls of their partitions: for the few
        whose end is told in another way."""
        wanted: dict[int, set[str]] = {}
        for id in ids:
            wanted.setdefault(_shard(id), set()).add(digest(id))
        found: list[UsageOpen] = []
        for shard, digests in wanted.items():
            ex = Expression()
            async for item in self._table.query(ex, f"{ex.name('pk')} = {ex.value(f'o#{shard}')}", consistent=True):
                if item["sk"].partition("#")[2] in digests:
                    found.append(UsageOpen.parse(json.loads(item["r"])))
        return found

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

    # -- internals -----------------------------------------------------------------------------------------------

    async def _index(self, entries: Iterable[UsageClose]) -> None:
        """Before a tenant's first row there is its name in the list of tenants, so that no row is ever missed; and
        before a budget's first floor the models that its key stands for."""
        new: dict[tuple[str, str], Plain] = {}
        for entry in entries:
            if ("tenants", entry.tenant) not in self._indexed:
                new["tenants", entry.tenant] = {"pk": "tenants", "sk": digest(entry.tenant), "tenant": entry.tenant}
            for key, models in entry.budget_models:
                if (name := models_digest(key)) and ("models", name) not in self._indexed:
                    new["models", name] = {"pk": "models", "sk": name, "models": json.dumps(models)}
        if not new:
            return
        await self._table.write_many(puts=list(new.values()))
        if len(self._indexed) > REMEMBERED:
            self._indexed.clear()
        self._indexed.update(new)

    async def tenants(self) -> list[str]:
        return [item["tenant"] for item in await self._listed("tenants")]

    async def budget_models(self) -> dict[str, tuple[str, ...]]:
        """What the digests in the keys of budgets stand for, as far as usage was counted against them."""
        return {item["sk"]: tuple(json.loads(item["models"])) for item in await self._listed("models")}

    async def _listed(self, pk: str) -> list[Plain]:
        ex = Expression()
        return [item async for item in self._table.query(ex, f"{ex.name('pk')} = {ex.value(pk)}")]

    async def _answers(self, asked: Sequence[Question], *, sparing: bool = False) -> list[int | None]:
        """None for what `sparing` has left out."""
        sums = await self._counters.sums([q.counter for q in asked], sparing=sparing)
        return [sum(sums[q.counter].get(name, 0) for name in q.names) if q.counter in sums else None for q in asked]


def _time(us: int) -> str:
    """Sorts like the number."""
    return f"{us:017d}"


def _shard(id: str) -> int:
    return zlib.crc32(id.encode()) % OPEN_SHARDS


def _open_key(open_: UsageOpen) -> Key:
    return {"pk": f"o#{_shard(open_.id)}", "sk": f"{_time(open_.expires_us)}#{digest(open_.id)}"}


def _open_item(open_: UsageOpen) -> Plain:
    record = json.dumps(open_.as_dict(), separators=(",", ":"))
    return {**_open_key(open_), "r": record, "ttl": open_.expires_us // SECOND_US + OPENS_KEPT_S}
