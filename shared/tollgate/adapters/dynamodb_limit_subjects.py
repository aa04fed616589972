"""The items of subjects in a table: each is taken from, settled and mended by one write.

A write is a guess, whose failed condition brings the item: then the next one is exact. Where a reply is lost, the same
write is made again, and either finds its mark or takes effect now. Where an item has no room for marks (a subject with
very many requests), a lost reply is a `StoreUnavailable`: charged once at most, never twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from tollgate.adapters import dynamodb_limit_writes as writes
from tollgate.adapters.dynamodb import AGAIN_WITHIN_S, ConditionFailed, Key, Table, Unsure, Write, again
from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import DAY_S, Item, forget, mark, shared
from tollgate.adapters.dynamodb_limit_lanes import Lanes
from tollgate.adapters.dynamodb_limit_moves import Move, giving_back
from tollgate.adapters.dynamodb_limit_parts import Part, Unknown
from tollgate.adapters.lru import Lru
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import SECOND_US, Admission
from tollgate.ports import Overloaded, StoreUnavailable

MAX_TRIES = 8
KNOWN = 10_000
SHED_S = 0.1
"""How long a subject is turned away, on average, after DynamoDB could not take all its writes."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A taking write whose reply is lost: when it was made (µs), what it takes, and whether its hold stands alone."""

    at_us: int
    granted: list[int]
    expiry_s: int
    alone: bool


class SubjectItems:
    """`unknown`: how a rate starts that is not in the table."""

    def __init__(self, table: Table, unknown: Unknown) -> None:
        self.unknown = unknown
        self._table = table
        self._known: Lru[Guess] = Lru(KNOWN)
        self._lost: Lru[Attempt | None] = Lru(KNOWN)
        """Writes that may or may not have been done, by request and item."""
        self._shed_until: Lru[float] = Lru(KNOWN)
        """Items that were throttled a moment ago (s, monotonic)."""
        self._lanes = Lanes()

    async def find(self, pks: Iterable[str]) -> dict[str, Item]:
        """Those that exist, read consistently."""
        keys: list[Key] = [{"pk": pk} for pk in sorted(set(pks))]
        return {plain["pk"]: Item.read(plain) for plain in await self._table.get_many(keys)}

    async def take(self, part: Part, admission: Admission, now: int) -> bool:
        """One write for all limits of a subject; after a wrong guess one more, with what the item really says. False
        if it does not fit, or a budget is cold: `part` tells what there is."""
        async with self._lanes.turn(part.pk):
            return await self._take(part, admission, now)

    async def _take(self, part: Part, admission: Admission, now: int) -> bool:
        name = f"{admission.id} {part.pk}"
        if time.monotonic() < self._shed_until.get(part.pk, 0.0):
            raise Overloaded(f"DynamoDB: too many writes of {part.pk}")
        lost, started = self._lost.get(name, None), time.monotonic()
        known = guess = self._known.get(part.pk, Guess())
        for tries in range(MAX_TRIES):
            part.look(guess.item, self.unknown, now)
            if tries and not lost and (part.cold() or not part.fits(now)):
                await self._start_half(part, now)
                return False
            granted = part.grants(now, tries)
            alone = part.holding and not (guess.crowded if guess.crowded is not None else not part.few)
            part.expiry_s = shared(admission, now) if part.holding and not alone else 0
            write = writes.take_part(part, admission, guess, granted, self.unknown, now)
            if lost or not alone:
                mark(write, admission.id, now, lost.at_us if lost else None)
            try:
                item = Item.read(await self._table.update({"pk": part.pk}, write, returns="ALL_NEW"))
            except ConditionFailed as failed:
                item = await self._without_expired(part.pk, Item.read(failed.item), now)
                if not tries:
                    known.learn(part.rates, item, now)
                self._known.put(part.pk, known.after(item, now))
                guess = Guess.right(item, now)
                if item.has(admission.id, now):
                    self._lost.pop(name)
                    part.found_taken(admission.id, item, self.unknown, now)
                    if lost:
                        part.own, part.granted, part.expiry_s = True, lost.granted, lost.expiry_s
                    return True
                if lost and not lost.alone and not item.has_not(admission.id, lost.at_us):
                    raise StoreUnavailable("DynamoDB: nobody can tell whether this request has been charged") from None
                self._lost.pop(name)
                lost = None
            except Unsure:
                lost = lost or Attempt(now, granted, part.expiry_s, alone)
                self._lost.put(name, lost)
                if time.monotonic() - started > AGAIN_WITHIN_S:
                    raise
            except Overloaded:
                self._shed_until.put(part.pk, time.monotonic() + random.uniform(0.5, 1.5) * SHED_S)
                raise
            else:
                self._lost.pop(name)
                if not tries:
                    known.learn(part.rates, None, now)
                part.own, part.granted = True, granted
                item = await self._without_expired(part.pk, item, now)
                self._known.put(part.pk, known.after(item, now))
                part.look(item, self.unknown, now)
                return True
        raise StoreUnavailable(f"DynamoDB: what a subject has left changes faster than {MAX_TRIES} tries")

    async def _start_half(self, part: Part, now: int) -> None:
        if (write := writes.start_half(part, self.unknown, now)) is not None:
            with suppress(ConditionFailed):  # somebody else has started it
                await self._mend(part.pk, write)

    async def move(self, pk: str, move: Move, now: int, id: str, *, undo: bool = False) -> None:
        """One write for all that moves in an item: settled once per `id`, or (`undo`) what `id` took given back. It
        waits for its turn as long as that takes: nobody else would do it."""
        async with self._lanes.turn(pk, patient=True):
            await self._move(pk, move, now, id, undo=undo)

    async def _move(self, pk: str, move: Move, now: int, id: str, *, undo: bool) -> None:
        known = guess = self._known.get(pk, Guess())
        lost, started = False, time.monotonic()
        for _ in range(MAX_TRIES):
            write = move.write(guess, now)
            if write is None:
                return
            if undo:
                forget(write, id, now)
            elif not move.tells:
                mark(write, id, now, now if lost else None)
            try:
                item = Item.read(await self._table.update({"pk": pk}, write, returns="ALL_NEW"))
            except ConditionFailed as failed:
                item = Item.read(failed.item)
                self._known.put(pk, known.after(item, now))
                if item.has(id, now) or (lost and move.tells and move.single not in item.holds):
                    return
                if lost and not move.tells and not item.has_not(id, now):
                    raise StoreUnavailable("DynamoDB: nobody can tell whether this request has been settled") from None
                guess, move, lost = Guess.right(item, now), move.possible(item), False
                continue
            except Unsure:
                if undo or time.monotonic() - started > AGAIN_WITHIN_S:
                    raise
                lost = True
                continue
            self._known.put(pk, known.after(item, now))
            # a deep debt must outlive the item's usual life, or it would be forgiven
            needed = max((item.numbers.get(name, 0) for name in move.rates), default=0) // SECOND_US + DAY_S
            if needed > item.numbers.get("ttl", 0):
                await self._mend(pk, writes.keep_until(needed))
            return
        raise StoreUnavailable(f"DynamoDB: what a subject has left changes faster than {MAX_TRIES} tries")

    async def give_back(self, part: Part, id: str, now: int) -> None:
        """Undo what this call took, if it took something."""
        if not part.own:
            return
        part.own = False
        part.values = [value - amount for value, amount in zip(part.values, part.granted, strict=True)]
        await self.move(part.pk, giving_back(part, id), now, id, undo=True)

    async def _without_expired(self, pk: str, item: Item, now: int) -> Item:
        """The item after the holds whose holders died are released."""
        while (write := writes.release(item, now)) is not None:
            try:
                item = await self._mend(pk, write)
            except ConditionFailed as failed:  # someone else has met them, too
                item = Item.read(failed.item)
        return item

    async def seed(self, part: Part, now: int) -> None:
        """Create budgets and rates with what is known of them elsewhere, or raise them to that."""
        write = writes.seed(part, now)
        if write is None:
            return
        item = await self._mend(part.pk, write)
        self._known.put(part.pk, self._known.get(part.pk, Guess()).after(item, now))
        await self.raise_to(part.pk, writes.seeds(part), item)
        if (old := writes.outdated(part, item)) is not None:
            await self._mend(part.pk, old)

    async def raise_to(self, pk: str, floors: Mapping[str, int], item: Item) -> None:
        """Raise TATs, and what budgets have spent, to `floors`, as far as they exist."""
        for _ in range(MAX_TRIES):
            write = writes.raise_to(item, floors)
            if write is None:
                return
            try:
                await self._mend(pk, write)
            except ConditionFailed as failed:
                item = Item.read(failed.item)
                continue
            return
        raise StoreUnavailable(f"DynamoDB: what a subject has spent changes faster than {MAX_TRIES} tries")

    async def _mend(self, pk: str, write: Write) -> Item:
        """A write that may be made twice, because the second time it finds its condition gone or changes nothing."""
        return Item.read(await again(lambda: self._table.update({"pk": pk}, write, returns="ALL_NEW")))
