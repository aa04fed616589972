"""The items of subjects in a table: each is taken from, settled and mended by one write, however many wait for it.

A write is a guess, whose failed condition brings the item: then the next one is exact. Who waits for the same item in
one container shares its writes (`dynamodb_limit_crowds`, `dynamodb_limit_plans`). What holds, for one and for many:

- A write takes all that it names, for all whom it names, or nothing for anybody; and it does so once. Where its reply
  is lost, the same write is made again, and either finds its mark or takes effect now. Where others have taken the
  place of the mark meanwhile, nobody can tell: that is a `StoreUnavailable`, charged once at most, never twice.
- The mark is a request's own id where it writes alone, and one of the write's own where several do. So a request that
  is asked again after it was taken among others is found by its marker (`dynamodb_limit_markers`), which is told before
  it is admitted, and what it took twice is given back.
- Holds of several are shared ones; each is settled by its own amount and expiry, whoever it was taken with.
- Nobody is refused but by an item that was read after all who were admitted before him, nor told anything before the
  write that it rests on has been answered.
- Who gives up while he waits learns what he has taken, and gives it back.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from tollgate.adapters import dynamodb_limit_writes as writes
from tollgate.adapters.dynamodb import AGAIN_WITHIN_S, ConditionFailed, Key, Table, Unsure, Write, again
from tollgate.adapters.dynamodb_limit_crowds import Crowds, Waiting
from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import DAY_S, MOST_IN_WINDOWS, Item, Mark, forget, nobody_can_tell
from tollgate.adapters.dynamodb_limit_moves import MOST_NAMES, Move, giving_back, write_of
from tollgate.adapters.dynamodb_limit_parts import Part, Unknown
from tollgate.adapters.dynamodb_limit_plans import Asked, Attempt, Plan, next_plan
from tollgate.adapters.lru import Lru
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import SECOND_US, Admission
from tollgate.ports import Overloaded, StoreUnavailable

MAX_TRIES = 8
KNOWN = 10_000
SHED_S = 0.1
"""How long a subject is turned away, on average, after DynamoDB could not take all its writes."""
WARY_S = 60.0
"""For how long who has lost a reply expects to lose more."""


@dataclass(slots=True)
class Moving:
    """What moves in an item for one request: settled once per `id`, or (`undo`) what `id` took given back."""

    move: Move
    now: int
    id: str
    undo: bool
    named: bool
    """Whether the item may remember `id`."""


class SubjectItems:
    """`unknown`: how a rate starts that is not in the table. `clock` (µs): DynamoDB's, as it is known here."""

    def __init__(self, table: Table, unknown: Unknown, clock: Callable[[], int]) -> None:
        self.unknown = unknown
        self._table = table
        self._clock = clock
        self._known: Lru[Guess] = Lru(KNOWN)
        self._lost: Lru[Attempt | None] = Lru(KNOWN)
        """Writes that may or may not have been done, by request and item."""
        self._shed_until: Lru[float] = Lru(KNOWN)
        """Items that were throttled a moment ago (s, monotonic)."""
        self._wary_until = 0.0
        """Until when replies may well be lost (s, monotonic)."""
        self._seeding: Crowds[Part, None] = Crowds(self._seed)
        self._taking: Crowds[Asked, bool] = Crowds(self._take)
        self._moving: Crowds[Moving, None] = Crowds(self._move_all)

    async def find(self, pks: Iterable[str]) -> dict[str, Item]:
        """Those that exist, read consistently."""
        keys: list[Key] = [{"pk": pk} for pk in sorted(set(pks))]
        return {plain["pk"]: Item.read(plain) for plain in await self._table.get_many(keys)}

    def _window_us(self, guess: Guess) -> int:
        """When a write is made whose reply may well be lost, and whose mark the item has room for; else 0."""
        wary = time.monotonic() < self._wary_until and guess.in_windows < MOST_IN_WINDOWS
        return self._clock() if wary else 0

    # -- taking --------------------------------------------------------------------------------------------------

    async def take(self, part: Part, admission: Admission, now: int) -> bool:
        """One write for all limits of a subject; after a wrong guess one more, with what the item really says. False
        if it does not fit, or a budget is cold: `part` tells what there is."""
        asked = Asked(part, admission, now)
        lost = self._lost.get(asked.name, None)
        if lost is None:
            return await self._taking.join(part.pk, asked)
        if lost.mark.lapsed(lost.at_us, now) and not lost.alone:
            raise nobody_can_tell("charged")
        alone = Waiting[Asked, bool](asked)
        await self._take(part.pk, [alone], lost)
        return alone.told.result()

    async def _take(self, pk: str, crowd: Sequence[Waiting[Asked, bool]], earlier: Attempt | None = None) -> None:
        """`earlier`: what an earlier call may have taken for the only one of them."""
        if time.monotonic() < self._shed_until.get(pk, 0.0):
            raise Overloaded(f"DynamoDB: too many writes of {pk}")
        now = max(one.asked.now for one in crowd)
        known = guess = self._known.get(pk, Guess())
        lost = [earlier] if earlier is not None else []
        plan: Plan | None = None
        tries, started = 0, time.monotonic()
        while crowd:
            if tries == MAX_TRIES:
                raise StoreUnavailable(f"DynamoDB: what a subject has left changes faster than {MAX_TRIES} tries")
            if plan is None:
                asked = [one.asked for one in crowd]
                plan = next_plan(asked, guess, self.unknown, now, tries, window_us=self._window_us(guess))
            if not plan.members:
                await self._refuse(asked, guess.item, now)
                crowd = _told(crowd)
                continue
            write = writes.take(plan, guess, self.unknown, now)
            if lost:
                plan.mark.leave_unless(lost[0].mark, lost[0].at_us, write, now)
            elif not plan.alone:
                plan.mark.leave(write, now)
            else:  # its hold tells, until it is settled; it may arrive after a second write, which has left a mark
                plan.mark.ask(write, now)
            try:
                item, done = Item.read(await self._table.update({"pk": pk}, write, returns="ALL_NEW")), True
            except ConditionFailed as failed:
                item, done = Item.read(failed.item), False
            except Unsure:
                self._wary_until = time.monotonic() + WARY_S
                tries += 1
                lost = lost or plan.attempts()
                for one, attempt in zip(plan.members, lost, strict=True):
                    self._lost.put(one.name, attempt)
                if time.monotonic() - started > AGAIN_WITHIN_S or self._too_late(lost[0].mark):
                    raise
                continue
            except Overloaded:
                self._shed_until.put(pk, time.monotonic() + random.uniform(0.5, 1.5) * SHED_S)
                raise
            if done:  # first, so that it is given back whatever goes wrong now
                plan.done(plan.attempts(), item, self.unknown)
            if not tries:
                known.learn(plan.rates, None if done else item, now)
            item = await self._without_expired(pk, item, now)
            if not done:
                tries += 1
                plan.recognise(lost, item, self.unknown)
            if lost:
                for one in plan.members:
                    self._lost.pop(one.name)
            self._known.put(pk, known.after(item, now))
            guess, plan, lost = Guess.right(item, now), None, []
            undecided = _told(crowd)
            if len(undecided) < len(crowd):
                crowd, tries, started = undecided, 1, time.monotonic()

    async def _refuse(self, asked: Sequence[Asked], item: Item, now: int) -> None:
        """By what the item says. Rates that are unknown start with that."""
        for one in asked:
            one.part.look(item, self.unknown, now)
            if (write := writes.start_half(one.part, self.unknown, now)) is not None:
                try:
                    item = await self._mend(one.part.pk, write)
                except ConditionFailed as failed:  # somebody else has started it
                    item = Item.read(failed.item)
            one.decide(False, now)

    # -- settling and giving back --------------------------------------------------------------------------------

    async def move(self, pk: str, move: Move, now: int, id: str, *, undo: bool = False, named: bool = True) -> None:
        """One write for all that moves in an item: settled once per `id`, or (`undo`) what `id` took given back."""
        await self._moving.join(pk, Moving(move, now, id, undo, named))

    async def _move_all(self, pk: str, crowd: Sequence[Waiting[Moving, None]]) -> None:
        while crowd:
            some, names = list[Waiting[Moving, None]](), set[str]()
            for one in crowd:
                names |= one.asked.move.names()
                if some and len(names) > MOST_NAMES:
                    break
                some.append(one)
            await self._move(pk, [one.asked for one in some])
            for one in some:
                one.tell(None)
            crowd = crowd[len(some) :]

    async def _move(self, pk: str, moving: Sequence[Moving]) -> None:
        """Raises `Unsure` where it may have been done, any other `StoreUnavailable` where it certainly was not."""
        now, only = max(one.now for one in moving), moving[0] if len(moving) == 1 else None
        undo, tells = only is not None and only.undo, only is not None and only.move.tells
        moves = [one.move for one in moving]
        known = guess = self._known.get(pk, Guess())
        mark = Mark(only.id if only is not None else os.urandom(8).hex(), self._window_us(guess))
        maybe_done, started = False, time.monotonic()
        try:
            for _ in range(MAX_TRIES):
                write = write_of(moves, guess, now)
                if write is None:
                    return
                if not undo and not tells:
                    if maybe_done:
                        mark.leave_unless(mark, now, write, now)
                    else:
                        mark.leave(write, now)
                forget(write, [one.id for one in moving if one.undo and one.named], now, None if undo else mark)
                try:
                    plain = await self._table.update({"pk": pk}, write, returns="ALL_NEW")
                except ConditionFailed as failed:
                    item = Item.read(failed.item)
                    self._known.put(pk, known.after(item, now))
                    gone = maybe_done and tells and moves[0].single not in item.holds
                    if not undo and (item.has(mark, now) or gone):
                        return
                    if maybe_done and not tells and not item.has_not(mark, now, now):
                        raise nobody_can_tell("settled") from None
                    left = dict[str, int]()
                    moves = [move.possible(item, left) for move in moves]
                    guess, maybe_done = Guess.right(item, now), False
                    continue
                except Unsure:
                    self._wary_until = time.monotonic() + WARY_S
                    if undo or time.monotonic() - started > AGAIN_WITHIN_S or self._too_late(mark):
                        raise
                    maybe_done = True
                    continue
                maybe_done = True
                item = Item.read(plain)
                self._known.put(pk, known.after(item, now))
                # a deep debt must outlive the item's usual life, or it would be forgiven
                rates = {name for move in moves for name in move.rates}
                needed = max((item.numbers.get(name, 0) for name in rates), default=0) // SECOND_US + DAY_S
                if needed > item.numbers.get("ttl", 0):
                    await self._mend(pk, writes.keep_until(needed))
                return
            raise StoreUnavailable(f"DynamoDB: what a subject has left changes faster than {MAX_TRIES} tries")
        except StoreUnavailable as error:
            if maybe_done and not isinstance(error, Unsure):
                raise Unsure(str(error)) from error
            raise

    def _too_late(self, mark: Mark) -> bool:
        """Whether the mark's window may be gone before another write asks for it."""
        return mark.at_us > 0 and mark.lapsed(0, self._clock())

    async def give_back(self, part: Part, id: str, now: int) -> None:
        """Undo what this call took, if it took something."""
        if not part.own:
            return
        part.own = False
        part.values = [value - amount for value, amount in zip(part.values, part.granted, strict=True)]
        await self.move(part.pk, giving_back(part, id), now, id, undo=True, named=part.named)

    # -- mending -------------------------------------------------------------------------------------------------

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
        if writes.seeds(part.takes):
            part.now_us = now
            await self._seeding.join(part.pk, part)

    async def _seed(self, pk: str, crowd: Sequence[Waiting[Part, None]]) -> None:
        parts = [one.asked for one in crowd]
        now, takes = max(part.now_us for part in parts), [take for part in parts for take in part.takes]
        known = writes.seeds(takes)
        item = await self._mend(pk, writes.seed(known, max(part.kept_s(now) for part in parts)))
        self._known.put(pk, self._known.get(pk, Guess()).after(item, now))
        await self.raise_to(pk, known, item)
        if (old := writes.outdated(takes, item)) is not None:
            await self._mend(pk, old)
        for one in crowd:
            one.tell(None)

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


def _told(crowd: Sequence[Waiting[Asked, bool]]) -> list[Waiting[Asked, bool]]:
    """Tell those who are decided; the others."""
    undecided = []
    for one in crowd:
        if one.asked.taken is None:
            undecided.append(one)
        else:
            one.tell(one.asked.taken)
    return undecided
