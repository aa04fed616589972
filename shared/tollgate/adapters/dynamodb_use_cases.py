"""Which use-case labels of a tenant's UTC day have rows of their own; the others are counted together.

One item per tenant and day has an attribute for each label and their number `n`; both change in one conditional write,
so that concurrent batches agree. A label that has a row keeps it and a full list stays full, so whoever asks again is
told the same: an estimate is taken off the row that it was added to.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from tollgate.adapters.dynamodb import ConditionFailed, Key, Plain, Table, Write
from tollgate.domain.bookkeeping import OTHER, USE_CASES, day_of
from tollgate.domain.records import UsageClose

KEPT_S = 140 * 86_400
"""As long as the day's entries may still be corrected."""

REMEMBERED = 10_000
"""Days of tenants and labels without a row; about 10 MB."""

Day = tuple[str, str]
"""A tenant and a UTC day."""


class UseCases:
    """Knows a day's labels once it has read them."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._known: dict[Day, set[str]] = {}
        self._others: set[tuple[Day, str]] = set()

    def many(self) -> bool:
        """Whether it has come to know so much that one had better begin anew."""
        return len(self._known) + len(self._others) > REMEMBERED

    async def learn(self, entries: Iterable[UsageClose]) -> None:
        """Find or make a place for every label of the entries. Raises `StoreUnavailable`."""
        labels: dict[Day, dict[str, None]] = {}  # in their order: who comes first has a row
        for entry in entries:
            if entry.use_case:
                labels.setdefault(_day(entry), {})[entry.use_case] = None
        unread = [day for day in labels if day not in self._known]
        items = {(item["pk"], item["sk"]): item for item in await self._table.get_many([_key(day) for day in unread])}
        for day in unread:
            key = _key(day)
            self._known[day] = _labels(items.get((key["pk"], key["sk"]), {}))
        for day, wanted in labels.items():
            for label in wanted:
                if label not in self._known[day] and (day, label) not in self._others:
                    await self._claim(day, label)

    def row(self, entry: UsageClose) -> str:
        """What the entry's row says. It was learned before."""
        label = entry.use_case
        return label if not label or label in self._known[_day(entry)] else OTHER

    async def _claim(self, day: Day, label: str) -> None:
        write, attribute = Write(), f"l:{label}"
        count = write.name("n")
        zero, one = write.value(0), write.value(1)
        write.sets += [
            f"{write.name(attribute)} = {one}",
            f"{count} = if_not_exists({count}, {zero}) + {one}",
            f"{write.name('ttl')} = {write.value(_start_s(day[1]) + KEPT_S)}",
        ]
        write.conditions.append(f"attribute_not_exists({write.name(attribute)})")
        write.conditions.append(f"(attribute_not_exists({count}) OR {count} < {write.value(USE_CASES)})")
        try:
            await self._table.update(_key(day), write)
        except ConditionFailed as found:
            self._known[day] |= _labels(found.item)
            if label not in self._known[day]:
                self._others.add((day, label))
        else:
            self._known[day].add(label)


def _day(entry: UsageClose) -> Day:
    return entry.tenant, day_of(entry)


def _key(day: Day) -> Key:
    return {"pk": f"l#{day[0]}", "sk": day[1]}


def _labels(item: Plain) -> set[str]:
    return {name[2:] for name in item if name.startswith("l:")}


def _start_s(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
