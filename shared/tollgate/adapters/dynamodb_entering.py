"""A batch of usage records becomes few transactions, each of which enters some records and moves their counters.

One put per record, on the condition that its id is new, and one update per counter that they move together. Records
that are there already cancel the transaction, are dropped from it, and the rest is tried again; so do conflicts with
other batches, after a moment. Neighbours share counters, so a batch is sorted and cut into pieces that fit; a tenant's
go one after another, and tenants beside each other.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from functools import lru_cache
from itertools import groupby
from typing import Any

import orjson

from tollgate.adapters.dynamodb import BATCH, Cancelled, Expression, Key, Plain, Table, few_at_once, pause
from tollgate.adapters.dynamodb_counters import SPREAD, Counters, Place
from tollgate.adapters.dynamodb_use_cases import UseCases
from tollgate.domain.bookkeeping import EntryReport, Move, Moves, add, day_of, moves, summed
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import SECOND_US
from tollgate.domain.records import UsageClose
from tollgate.ports import StoreUnavailable

DAY_S = 86_400
ENTRIES_KEPT_S = 100 * DAY_S
"""How long an id is known as entered; metering refuses records that are nearly as old."""
ENTRY_SHARDS = 4
"""Partitions of one tenant's day in the index of entries; each takes 1,000 writes a second."""
MAX_TRIES = 16
LANES = 4
"""Transactions of one batch at once. Those of other tenants share no item."""
LANE_RECORDS = 20
"""Fewer are not worth a transaction of their own."""
SPREAD_AFTER = 2
"""Conflicts in a row after which the counters in question are spread."""
REFUSED = "ConditionalCheckFailed"
CONFLICTS = frozenset({"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"})


@dataclass(slots=True)
class Pending:
    """A record to be entered, where it stands in its batch, and the estimate that it replaces, if there is one."""

    entry: UsageClose
    position: int
    estimate: UsageClose | None = None
    moves: Move = field(default_factory=dict)


_REFUSED_WITH_ITEM = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
_NEW = {"ConditionExpression": "attribute_not_exists(pk)", **_REFUSED_WITH_ITEM}
_ESTIMATE = {
    "ConditionExpression": "#p = :1",
    "ExpressionAttributeNames": {"#p": "p"},
    "ExpressionAttributeValues": {":1": {"N": "1"}},
    **_REFUSED_WITH_ITEM,
}
"""The conditions of a put: that the id is new; that it is that of an estimate."""


@lru_cache(maxsize=1024)
def _adding(figures: tuple[str, ...], about: tuple[str, ...]) -> tuple[str, dict[str, str], tuple[str, ...]]:
    """The update that adds to these attributes and sets those, its names, and its values' places in their order."""
    ex = Expression()
    values = tuple([f":{i}" for i in range(len(figures) + len(about))])
    adds = [f"{ex.name(name)} {value}" for name, value in zip(figures, values, strict=False)]
    sets = [f"{ex.name(name)} = {value}" for name, value in zip(about, values[len(figures) :], strict=True)]
    return f"ADD {', '.join(adds)}" + (f" SET {', '.join(sets)}" if sets else ""), ex.names, values


class Entering:
    """One batch on its way into the ledger."""

    def __init__(
        self, table: Table, counters: Counters, use_cases: UseCases, report: EntryReport, *, provisional: bool
    ) -> None:
        self._table = table
        self._counters = counters
        self._use_cases = use_cases
        self._report = report
        self._provisional = provisional
        self.moved: Moves = {}
        """By how much the batch has moved every counter."""

    async def enter(self, pending: Sequence[Pending]) -> None:
        """Raises `StoreUnavailable`; what was entered by then stays, and is a repetition next time."""
        await self._use_cases.learn(one.entry for one in pending)
        for one in pending:
            one.moves = self._moves(one.entry)
        waiting = sorted(pending, key=lambda one: (one.entry.tenant, one.entry.user, one.entry.model))
        if self._provisional:  # nearly all of them have been closed
            waiting = await self._without_known(waiting)
        lanes = _lanes(waiting, max(LANE_RECORDS, len(waiting) // LANES))
        await few_at_once(LANES, (self._enter(lane) for lane in lanes))

    async def _enter(self, waiting: list[Pending]) -> None:
        """One lane, transaction after transaction: they have counters in common, and would turn each other away."""
        looked = self._provisional
        while waiting:
            piece = self._piece(waiting)
            waiting = waiting[len(piece) :]
            met_known = await self._transact(piece)
            if met_known and not looked:  # a repetition seldom comes alone, and a look costs less than a failed write
                waiting, looked = await self._without_known(waiting), True

    # -- one transaction

    def _piece(self, waiting: Sequence[Pending]) -> list[Pending]:
        """As many of the first as fit into one transaction."""
        piece: list[Pending] = []
        places: set[Place] = set()
        for one in waiting:
            more = one.moves.keys() - places
            if len(piece) + 1 + len(places) + len(more) > BATCH:
                break
            piece.append(one)
            places |= more
        return piece

    async def _transact(self, piece: list[Pending]) -> bool:
        """Enter these; whether some of them were known already."""
        known = conflicts = 0
        for attempt in range(MAX_TRIES):
            if not piece:
                return True
            total = summed(one.moves for one in piece)
            try:
                await self._table.transact(self._actions(piece, total))
            except Cancelled as cancelled:
                codes = [code for code, _ in cancelled.reasons]
                if len(codes) < len(piece):
                    raise StoreUnavailable("DynamoDB cancelled a transaction without saying why") from cancelled
                contested = [
                    place for place, code in zip(total, codes[len(piece) :], strict=False) if code in CONFLICTS
                ]
                refused = [i for i, code in enumerate(codes[: len(piece)]) if code == REFUSED]
                known += len(refused)
                piece = await self._sorted_out(piece, {i: cancelled.reasons[i][1] for i in refused})
                if len(refused) < sum(code != "None" for code in codes):
                    self._report.conflicts += 1
                    conflicts += 1
                    if conflicts >= SPREAD_AFTER:
                        await self._counters.spread(contested)
                    await pause(attempt)
                continue
            self._report.entered += len(piece)
            self._report.replaced += sum(one.estimate is not None for one in piece)
            add(self.moved, total)
            return known > 0
        raise StoreUnavailable(f"the ledger's counters conflict after {MAX_TRIES} tries")

    def _actions(self, piece: Sequence[Pending], total: Move) -> list[dict[str, Any]]:
        """First one put per record, in their order; then one update per counter and row, in the order of `total`."""
        actions: list[dict[str, Any]] = []
        for one in piece:
            put = {"TableName": self._table.name, "Item": entry_item(one.entry, self._provisional)}
            actions.append({"Put": put | (_NEW if one.estimate is None else _ESTIMATE)})
        slot = random.randrange(SPREAD)
        for place, amounts in total.items():
            key, about, told = self._counters.place(place, slot)
            update, names, places = _adding(tuple(amounts), about)
            values = [*[{"N": str(amount)} for amount in amounts.values()], *told]
            change = {
                "TableName": self._table.name,
                "Key": key,
                "UpdateExpression": update,
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": dict(zip(places, values, strict=True)),
            }
            actions.append({"Update": change})
        return actions

    # -- what is known already

    async def _without_known(self, waiting: list[Pending]) -> list[Pending]:
        """What is left after a look at which ids the ledger has."""
        items = await self._table.get_many([entry_key(one.entry.id) for one in waiting])
        known = {item["pk"]: item for item in items}
        keys = [entry_key(one.entry.id)["pk"] for one in waiting]
        return await self._sorted_out(waiting, {i: known[pk] for i, pk in enumerate(keys) if pk in known})

    async def _sorted_out(self, pending: list[Pending], known: dict[int, Plain]) -> list[Pending]:
        """What is left to be entered, where some ids (by position) are in the ledger: a repetition is done with; the
        same id with another bill is refused; a real record that meets an estimate replaces it."""
        left: list[Pending] = []
        for i, one in enumerate(pending):
            if i not in known:
                left.append(one)
                continue
            item = known[i] or await self._table.get(entry_key(one.entry.id))
            if not item:  # it has just expired
                left.append(one)
                continue
            entered = UsageClose.parse(orjson.loads(item["r"]))
            if self._provisional:
                self._report.repeated += 1
            elif item.get("p"):
                await self._use_cases.learn([entered])
                change: Moves = {}
                add(change, self._moves(one.entry))
                add(change, self._moves(entered), -1)
                one.estimate, one.moves = entered, change
                left.append(one)
            elif entered.bill() == one.entry.bill():
                self._report.repeated += 1
            else:
                self._report.tampered.append(one.position)
        return left

    def _moves(self, entry: UsageClose) -> Move:
        return moves(entry, self._use_cases.row(entry))


def _lanes(waiting: Iterable[Pending], records: int) -> Iterator[list[Pending]]:
    """Whole tenants, of at least so many records."""
    lane: list[Pending] = []
    for _, of_tenant in groupby(waiting, key=lambda one: one.entry.tenant):
        lane += of_tenant
        if len(lane) >= records:
            yield lane
            lane = []
    if lane:
        yield lane


def entry_key(id: str) -> Key:
    return {"pk": f"u#{id}", "sk": "u"}


def entry_item(entry: UsageClose, provisional: bool) -> dict[str, Any]:
    """The item of an entry, as DynamoDB takes it."""
    record = entry.as_dict()
    del record["settle"], record["rates_us"], record["budget_models"]  # long, and of no use later
    item = {
        "pk": {"S": f"u#{entry.id}"},
        "sk": {"S": "u"},
        "r": {"S": orjson.dumps(record).decode()},
        "e": {"S": _partition(entry.tenant, day_of(entry), zlib.crc32(entry.id.encode()) % ENTRY_SHARDS)},
        "ttl": {"N": str(entry.ts_us // SECOND_US + ENTRIES_KEPT_S)},
    }
    return item | {"p": {"N": "1"}} if provisional else item


def entry_partitions(tenant: str, day: str) -> list[str]:
    """Where the index has the entries of a tenant's UTC day."""
    return [_partition(tenant, day, shard) for shard in range(ENTRY_SHARDS)]


def _partition(tenant: str, day: str, shard: int) -> str:
    return f"{tenant}#{day}#{shard}"
