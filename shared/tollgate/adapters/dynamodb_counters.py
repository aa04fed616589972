"""Counters and report rows as items of the ledger's table, and what happens to those that everybody wants at once.

DynamoDB lets an item be written 1,000 units a second, a transaction costs twice the units, and of two that touch an
item at the same moment one is turned away. So one item takes some fifty transactions a second. A counter that turns
them away twice in a row is spread: from then on each transaction picks one of `SPREAD` items at random, and whoever
reads adds them up. The first item says so (`~`) before anything is written to the others: no reader misses them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from tollgate.adapters.dynamodb import Coded, Key, Plain, Table, Write, encode, encode_item, pause
from tollgate.domain.bookkeeping import Counter, Row
from tollgate.domain.keys import digest
from tollgate.ports import StoreUnavailable

Place = Counter | Row

DAY_S = 86_400
COUNTERS_KEPT_S = 140 * DAY_S
"""How long the counters of a day or month outlive its start: as long as their entries may still be corrected."""
ROWS_KEPT_S = 750 * DAY_S
SPREAD = 16
"""Items of a counter that is spread, the first included."""
MARK = "~"
REMEMBERED = 10_000
MARK_TRIES = 8


class Counters:
    """Where each counter and row is written and read; remembers which are spread."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._spread: set[Place] = set()

    def place(self, place: Place, slot: int) -> tuple[Coded, tuple[str, ...], tuple[dict[str, Any], ...]]:
        """The key of the item that a transaction adds to (`slot` is its own choice, of `SPREAD`), and what that says
        apart from its sums: names and values."""
        return _coded(place, slot if place in self._spread else 0)

    def is_spread(self, place: Place) -> bool:
        return place in self._spread

    async def spread(self, places: Iterable[Place]) -> None:
        """Let further writes of these go to several items. Raises `StoreUnavailable`."""
        if len(self._spread) > REMEMBERED:
            self._spread.clear()
        for place in places:
            if place in self._spread:
                continue
            if isinstance(place, Counter):  # rows are read by a query, which finds all of them
                await self._mark(place)
            self._spread.add(place)

    async def sums(self, counters: Sequence[Counter], *, sparing: bool = False) -> dict[Counter, Plain]:
        """What each of them counts. `sparing`: of those that are spread only some now and then, so that many small
        batches do not read `SPREAD` items each; what is left out is not in the answer. Raises `StoreUnavailable`."""
        keys = {counter: place_item(counter)[0] for counter in dict.fromkeys(counters)}
        found = await self._read(keys.values())
        spread = [counter for counter, key in keys.items() if MARK in found.get(_pair(key), {})]
        self._spread.update(spread)
        sums: dict[Counter, Plain] = {}
        if sparing:
            left_out = {counter for counter in spread if random.randrange(SPREAD)}
            spread = [counter for counter in spread if counter not in left_out]
            keys = {counter: key for counter, key in keys.items() if counter not in left_out}
        more = await self._read(at_slot(keys[counter], slot) for counter in spread for slot in range(1, SPREAD))
        for counter, key in keys.items():
            total = dict(found.get(_pair(key), {}))
            if MARK in total:
                for slot in range(1, SPREAD):
                    for name, value in more.get(_pair(at_slot(key, slot)), {}).items():
                        if isinstance(value, int):
                            total[name] = total.get(name, 0) + value
            sums[counter] = total
        return sums

    async def _read(self, keys: Iterable[Key]) -> dict[tuple[str, str], Plain]:
        items = await self._table.get_many(list(keys))
        return {_pair(item): item for item in items}

    async def _mark(self, counter: Counter) -> None:
        key, about = place_item(counter)
        if MARK in await self._table.get(key):
            return
        for attempt in range(MARK_TRIES):
            write = Write()
            write.sets += [f"{write.name(name)} = {write.value(value)}" for name, value in (about | {MARK: 1}).items()]
            try:
                await self._table.update(key, write)
            except StoreUnavailable:  # it is busy, or it would not have to be spread
                if attempt + 1 == MARK_TRIES:
                    raise
                await pause(attempt)
            else:
                return


def place_item(place: Place) -> tuple[Key, Plain]:
    """The key of a counter or row, and what its item says apart from its sums."""
    if isinstance(place, Counter):
        key = {"pk": f"c#{place.subject}", "sk": place.label}
        return key, {} if place.label == "life" else {"ttl": _start_s(place.label) + COUNTERS_KEPT_S}
    told = dict(zip(COLUMNS, place[2:-1], strict=True))
    about: Plain = {name: value for name, value in told.items() if value} | {"ttl": _start_s(place.day) + ROWS_KEPT_S}
    pk = f"{PARTITIONS[place.rollup]}#{place.tenant}"
    return {"pk": pk, "sk": f"{place.day}#{digest(json.dumps(place[2:-1]))}"}, about


COLUMNS = Row._fields[2:-1]
"""What a row's item says beside its key: everything but tenant, day and rollup."""
PARTITIONS = {"": "t", "uses": "n", "people": "p", "day": "d", "month": "m"}
"""Of rows by their rollup; a tenant has one of each."""


@lru_cache(maxsize=REMEMBERED)
def _coded(place: Place, slot: int) -> tuple[Coded, tuple[str, ...], tuple[dict[str, Any], ...]]:
    """Neighbours in a batch, and one batch and the next, move the same places."""
    key, about = place_item(place)
    return encode_item(at_slot(key, slot)), tuple(about), tuple([encode(value) for value in about.values()])


def at_slot(key: Key, slot: int) -> Key:
    return {"pk": key["pk"], "sk": f"{key['sk']}~{slot}"} if slot else key


def _pair(key: Plain | Key) -> tuple[str, str]:
    return key["pk"], key["sk"]


@lru_cache(maxsize=256)
def _start_s(label: str) -> int:
    """When a day or month begins, in epoch seconds."""
    day = label if len(label) > 7 else f"{label}-01"
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
