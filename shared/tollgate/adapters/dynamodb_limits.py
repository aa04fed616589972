"""`dynamodb://table`: the limit store on DynamoDB, by conditional writes; also what decides while Redis is away.

DynamoDB has no script and no clock, and its conditions know neither `max()` nor arithmetic. So:

- now is this machine's clock, corrected by the `Date` header of DynamoDB's answers (good to 1 s).
- Everything that counts one subject is one item, and taken by one UpdateItem: rates, budgets and slots. A rate has an
  idle branch (absent or in the past: set it to now + cost) and a busy one (between now and what still fits: add the
  cost). The branch is guessed from what this container saw last; where the guess is wrong, the failed condition
  returns the item, which either refuses, exactly, or gives the right branches for one more try.
- A write carries a mark of the request's id, which the item keeps for some seconds: where the reply is lost, the same
  write is made again and either finds its mark or takes effect now. Where an item has no room for marks (a subject
  with very many requests), a lost reply is a `StoreUnavailable`: charged once at most, never twice.
- Subjects are taken narrowest first, so that a flood from one address does not touch its tenant. A refusal gives back
  what was taken. The request's marker is written last: it commits, and settling claims it.
- Whoever meets expired holds releases them; nothing else has to look for them.
- Subjects that everyone shares are spread over several items where their rates are high (`dynamodb_shards`).
- Versions of the policy and of tenants are read at most every 5 s, beside an admission and not before it.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tollgate.adapters import dynamodb_limit_items as items
from tollgate.adapters.dynamodb import Client, ConditionFailed, Expression, Key, Plain, Table, Unsure, Write
from tollgate.adapters.dynamodb_limit_items import DAY_S, Item, Marker, Move, Part, Place, Unknown
from tollgate.adapters.dynamodb_shards import pick, shards, share, whole, whole_tat
from tollgate.adapters.lru import Lru
from tollgate.domain.limits import (
    SECOND_US,
    Admission,
    BudgetTake,
    Decision,
    RateTake,
    Scope,
    Settlement,
    State,
    Status,
    Take,
    fits,
)
from tollgate.ports import Overloaded, StoreUnavailable

VERSIONS_FRESH_S = 5.0
"""How old the versions that admissions are compared with may be."""
MAX_TRIES = 8
KNOWN_ITEMS = 10_000
AGAIN_WITHIN_S = 1.0
"""How soon a reply must be lost for the write to be made again: nobody waits twice for a timeout."""
PAGE = 500
"""Budgets that are told at once to who asks for all of them."""
SHED_S = 0.1
"""How long a subject is turned away, on average, after DynamoDB could not take all its writes."""
T = TypeVar("T")
_SCOPES = {scope: i for i, scope in enumerate(Scope)}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A taking write whose reply is lost: when it was made (µs), what it takes, and whether its hold stands alone."""

    at_us: int
    granted: list[int]
    expiry_s: int
    alone: bool


class DynamoLimitStore:
    """`clock` (µs) replaces this machine's clock, in tests. `unknown`: how a rate starts that is not in the table;
    half empty where another store usually decides and has been lost."""

    name = "dynamodb"

    def __init__(
        self,
        client: Client,
        table: str,
        clock: Callable[[], int] | None = None,
        *,
        unknown: Literal["full", "half"] = "full",
    ) -> None:
        self._client = client
        self._table = Table(client, table, patient=False)
        self._clock = clock
        self._unknown = Unknown(half=unknown == "half")
        self._known: Lru[Item] = Lru(KNOWN_ITEMS)
        """What this container last saw of an item's numbers: good for guesses only."""
        self._versions: Lru[tuple[int, float]] = Lru(KNOWN_ITEMS)
        """Version, and when it was read (s, monotonic)."""
        self._lost: Lru[Attempt | None] = Lru(KNOWN_ITEMS)
        """Writes that may or may not have been done, by request and item."""
        self._shed_until: Lru[float] = Lru(KNOWN_ITEMS)
        """Items that were throttled a moment ago (s, monotonic)."""

    def outage_begins(self) -> None:
        """From now on this store decides for another: a rate that was last taken from before is unknown here."""
        self._unknown = Unknown(half=self._unknown.half, since_us=self._now())

    async def warm(self) -> None:
        """Connect, find credentials and learn the time now, so that no admission has to. Raises `StoreUnavailable`."""
        await self.ping()

    # -- admission -----------------------------------------------------------------------------------------------

    async def admit(self, admission: Admission) -> Decision:
        if self._clock is None and not self._client.clock_known:
            await self.warm()  # with a clock that is ahead, one take would leave buckets empty until then
        now = self._now()
        parts = [_part(admission, places) for places in _subjects(admission.takes)]
        reading = asyncio.ensure_future(self._newest(admission))
        try:
            wrong_day = any(not t.start_us <= now < t.end_us for t in admission.takes if isinstance(t, BudgetTake))
            taken = False if wrong_day else await self._take_all(admission, parts, now)
            policy, tenant = await reading
            answer = Decision(Status.ADMITTED, now, [], (), policy, tenant, self.name)
            if 0 < admission.policy_version < policy or 0 < admission.tenant_version < tenant:
                answer.status = Status.STALE
            elif wrong_day:
                answer.status = Status.WINDOW
            elif taken:
                return await self._commit(admission, parts, answer)
            else:
                answer.status = Status.REFUSED
        except BaseException:
            await self._give_back(admission.id, parts, now)
            reading.cancel()
            with suppress(asyncio.CancelledError, StoreUnavailable):
                await reading
            raise
        if answer.status is not Status.REFUSED:
            await self._give_back(admission.id, parts, now)
            return answer
        _, marker = await asyncio.gather(self._give_back(admission.id, parts, now), self._look(admission, parts, now))
        return _refused(admission, parts, marker, answer)

    async def look(self, admission: Admission) -> Decision:
        if self._clock is None and not self._client.clock_known:
            await self.warm()
        now, takes = self._now(), admission.takes
        parts = [_part(admission, places) for places in _subjects(takes)]
        _, (policy, mine) = await asyncio.gather(
            self._look(admission, parts, now), self._versions_now(admission.tenant)
        )
        answer = Decision(Status.ADMITTED, now, [], (), policy, mine, self.name)
        if any(not t.start_us <= now < t.end_us for t in takes if isinstance(t, BudgetTake)):
            answer.status = Status.WINDOW
        elif cold := sorted(i for part in parts for i in part.cold()):
            answer.status, answer.cold = Status.COLD, tuple(cold)
        else:
            answer.states = _states(admission, parts, now, [0] * len(takes))
            if not all(fits(t, s, now) for t, s in zip(takes, answer.states, strict=True)):
                answer.status = Status.REFUSED
        return answer

    async def _versions_now(self, tenant: str) -> tuple[int, int]:
        """Of the policy and the tenant's record, as they were announced."""
        pks = items.POLICY_VERSION, items.tenant_version(tenant)
        found = {item["pk"]: items.version(item) for item in await self._table.get_many([{"pk": pk} for pk in pks])}
        return found.get(pks[0], 0), found.get(pks[1], 0)

    async def _take_all(self, admission: Admission, parts: list[Part], now: int) -> bool:
        """Take everything; False as soon as one limit refuses or a budget is cold."""
        await _all(self._seed(part, now) for part in parts)
        if any(not fits(take, State(0), now) for part in parts for take in part.takes):  # above the burst or budget
            return False
        for i, part in enumerate(parts):
            if await self._take(part, admission, now):
                continue
            if part.shards == 1:
                return False
            parts[i] = _part(admission, part.places, other_shard=True)
            if not await self._take(parts[i], admission, now):
                return False
        return True

    async def _take(self, part: Part, admission: Admission, now: int) -> bool:
        """One write for all limits of a subject; after a wrong guess one more, with what the item really says. False
        if it does not fit, or a budget is cold: `part` tells what there is."""
        name = f"{admission.id} {part.pk}"
        if time.monotonic() < self._shed_until.get(part.pk, 0.0):
            raise Overloaded(f"DynamoDB: too many writes of {part.pk}")
        lost, started = self._lost.get(name, None), time.monotonic()
        guess = self._known.get(part.pk, Item())
        for tries in range(MAX_TRIES):
            part.look(guess, self._unknown, now)
            if tries and not lost and (part.cold() or not part.fits(now)):
                await self._start_half(part, now)
                return False
            granted = part.grants(now, tries)
            alone = part.holding and guess.lonely(now)
            part.expiry_s = items.shared(admission, now) if part.holding and not alone else 0
            write = items.take_part(part, admission, guess, granted, self._unknown, now)
            if lost or not alone:
                items.mark(write, admission.id, now, lost.at_us if lost else None)
            try:
                item = Item.read(await self._table.update({"pk": part.pk}, write, returns="ALL_NEW"))
            except ConditionFailed as failed:
                guess = await self._without_expired(part.pk, Item.read(failed.item), now)
                if guess.has(admission.id, now):
                    self._lost.pop(name)
                    part.found_taken(admission.id, guess, self._unknown, now)
                    if lost:
                        part.own, part.granted, part.expiry_s = True, lost.granted, lost.expiry_s
                    return True
                if lost and not lost.alone and not guess.has_not(admission.id, lost.at_us):
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
                part.own, part.granted = True, granted
                item = await self._without_expired(part.pk, item, now)
                self._known.put(part.pk, item.gist())
                part.look(item, self._unknown, now)
                return True
        raise StoreUnavailable(f"DynamoDB: what a subject has left changes faster than {MAX_TRIES} tries")

    async def _start_half(self, part: Part, now: int) -> None:
        if (write := items.start_half(part, self._unknown, now)) is not None:
            with suppress(ConditionFailed):  # somebody else has started it
                await self._table.update({"pk": part.pk}, write)

    async def _commit(self, admission: Admission, parts: Sequence[Part], answer: Decision) -> Decision:
        """Write the marker. If it is there already, this id was admitted before: give the same answer, and give back
        what both calls have taken. (What the first call found taken, it counts on.)"""
        pk, now, call = items.marker_key(admission.id), answer.now_us, os.urandom(8).hex()
        granted = _in_order(parts, [part.granted for part in parts])
        places = [Place(part.pk, part.shards, part.expiry_s, part.own) for part in parts]
        marker = Marker(now + admission.expires_us, granted, places, call)
        try:
            await self._put_marker(marker.plain(pk), now)
        except ConditionFailed as failed:
            first = Marker.read(failed.item)
            if first.call != call:  # else only the reply was lost
                twice = [part for part, place in zip(parts, first.places, strict=False) if place.own]
                await self._give_back(admission.id, twice, now)
                granted = first.granted
        except StoreUnavailable:  # it may have been written all the same
            ex = Expression()
            with suppress(ConditionFailed, StoreUnavailable):
                condition = f"{ex.name('n')} = {ex.value(call)}"
                await self._table.delete({"pk": pk}, condition=condition, expression=ex)
            raise
        answer.states = _states(admission, parts, now, granted)
        return answer

    async def _put_marker(self, marker: Plain, now: int) -> None:
        ex = Expression()
        pk, expiry, settler = ex.name("pk"), ex.name("e"), ex.name("s")
        condition = f"attribute_not_exists({pk}) OR {expiry} <= {ex.value(now)} OR attribute_exists({settler})"
        await _again(lambda: self._table.put(marker, condition=condition, expression=ex))

    async def _give_back(self, id: str, parts: Iterable[Part], now: int) -> None:
        """Undo what this call took. A write that fails is not tried again: a rate refills, and a hold expires."""
        undo: list[Awaitable[None]] = []
        for part in parts:
            if part.own:
                part.own = False
                undo.append(self._move(part.pk, items.giving_back(part, id), now, id, undo=True))
                part.values = [value - amount for value, amount in zip(part.values, part.granted, strict=True)]
        await asyncio.gather(*undo, return_exceptions=True)

    async def _look(self, admission: Admission, parts: Sequence[Part], now: int) -> Plain:
        """Look at everything that was not looked at, so that the answer can say what remains of each limit. Returns
        the request's marker: a repeated request may be refused by what it took itself the first time."""
        marker = items.marker_key(admission.id)
        unseen = [part for part in parts if part.seen is None]
        wanted = {part.pk for part in unseen} | {marker}
        found = {item["pk"]: item for item in await self._table.get_many([{"pk": pk} for pk in sorted(wanted)])}
        for part in unseen:
            part.look(Item.read(found.get(part.pk, {})), self._unknown, now)
        return found.get(marker, {})

    async def _seed(self, part: Part, now: int) -> None:
        """Create budgets and rates with what is known of them elsewhere, or raise them to that."""
        write = items.seed(part, now)
        if write is None:
            return
        item = Item.read(await self._table.update({"pk": part.pk}, write, returns="ALL_NEW"))
        await self._raise(part.pk, items.seeds(part), item)
        if (old := items.outdated(part, item)) is not None:
            await self._table.update({"pk": part.pk}, old)

    # -- settlement ----------------------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        now = self._now()
        marker = await self._claim(items.marker_key(settlement.id), now)
        if marker is None:
            return False
        work: list[Awaitable[None]] = []
        for places, place in zip(_subjects(settlement.takes), marker.places, strict=True):
            part = Part(place.pk, places, [settlement.takes[i] for i in places], place.shards, expiry_s=place.expiry_s)
            part.granted = [marker.granted[i] for i in places]
            move = items.settling(part, settlement.id, [settlement.used[i] for i in places])
            work.append(self._move(place.pk, move, now, f"{settlement.id} settled"))
        await _all(work)
        return True

    async def replay(self, settlements: Sequence[Settlement]) -> int:
        now = self._now()
        by_marker = {items.marker_key(each.id): each for each in settlements}
        settled = 0
        for found in await self._table.get_many([{"pk": pk} for pk in by_marker]):
            marker = Marker.read(found)
            each = by_marker[found["pk"]]
            told = len(each.takes) == len(marker.granted) and len(_subjects(each.takes)) == len(marker.places)
            if told and not marker.settler and marker.expiry_us > now:
                settled += await self.settle(each)  # few: one after the other is soon enough
        return settled

    async def _claim(self, pk: str, now: int) -> Marker | None:
        """The marker of an admission that nobody has settled and whose holds live; from now on it is settled."""
        call, write = os.urandom(8).hex(), Write()
        settler = write.name("s")
        write.conditions += [f"{write.name('e')} > {write.value(now)}", f"attribute_not_exists({settler})"]
        write.sets.append(f"{settler} = {write.value(call)}")
        try:
            return Marker.read(await _again(lambda: self._table.update({"pk": pk}, write, returns="ALL_NEW")))
        except ConditionFailed as failed:
            found = Marker.read(failed.item) if failed.item else None
            return found if found is not None and found.settler == call else None

    async def _move(self, pk: str, move: Move, now: int, id: str, *, undo: bool = False) -> None:
        """One write for all that moves in an item: settled once per `id`, or (`undo`) what `id` took given back."""
        guess, lost, started = self._known.get(pk, Item()), False, time.monotonic()
        for _ in range(MAX_TRIES):
            write = move.write(guess, now)
            if write is None:
                return
            if undo:
                items.forget(write, id, now)
            elif not move.tells:
                items.mark(write, id, now, now if lost else None)
            try:
                item = Item.read(await self._table.update({"pk": pk}, write, returns="ALL_NEW"))
            except ConditionFailed as failed:
                guess = Item.read(failed.item)
                if guess.has(id, now) or (lost and move.tells and move.single not in guess.holds):
                    return
                if lost and not move.tells and not guess.has_not(id, now):
                    raise StoreUnavailable("DynamoDB: nobody can tell whether this request has been settled") from None
                move, lost = move.possible(guess), False
                continue
            except Unsure:
                if undo or time.monotonic() - started > AGAIN_WITHIN_S:
                    raise
                lost = True
                continue
            self._known.put(pk, item.gist())
            # a deep debt must outlive the item's usual life, or it would be forgiven
            needed = max((item.numbers.get(name, 0) for name in move.rates), default=0) // SECOND_US + DAY_S
            if needed > item.numbers.get("ttl", 0):
                await self._table.update({"pk": pk}, items.keep_until(needed))
            return
        raise StoreUnavailable(f"DynamoDB: what a subject has left changes faster than {MAX_TRIES} tries")

    async def _without_expired(self, pk: str, item: Item, now: int) -> Item:
        """The item after the holds whose holders died are released."""
        while (write := items.release(item, now)) is not None:
            try:
                item = Item.read(await self._table.update({"pk": pk}, write, returns="ALL_NEW"))
            except ConditionFailed as failed:  # someone else has met them, too
                item = Item.read(failed.item)
        return item

    # -- what other stores know ----------------------------------------------------------------------------------

    async def recall(self, takes: Sequence[RateTake]) -> list[int | None]:
        wanted = [_items_of(take, takes) for take in takes]
        keys: list[Key] = [{"pk": pk} for pk in sorted({pk for pks in wanted for pk in pks})]
        found = {item["pk"]: Item.read(item).numbers for item in await self._table.get_many(keys)}
        now = self._now()
        return [
            whole_tat((found.get(pk, {}).get(items.counter(take)) for pk in pks), len(pks), now)
            for take, pks in zip(takes, wanted, strict=True)
        ]

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        floors: dict[str, dict[str, int]] = {}
        for key, amount in spent.items():
            pk, name = items.budget_counter(key)
            floors.setdefault(pk, {})[name] = amount
        found = await self._table.get_many([{"pk": pk} for pk in floors])
        await _all(self._raise(item["pk"], floors[item["pk"]], Item.read(item)) for item in found)

    async def budget_keys(self) -> AsyncIterator[Sequence[str]]:
        found: list[str] = []
        async for item in self._table.scan():
            found += items.budget_keys(item)
            if len(found) >= PAGE:
                yield found
                found = []
        yield found

    async def known_spent(self, budgets: Sequence[str]) -> dict[str, int]:
        places = {key: items.budget_counter(key) for key in budgets}
        pks = sorted({pk for pk, _ in places.values()})
        found = {item["pk"]: item for item in await self._table.get_many([{"pk": pk} for pk in pks])}
        spent = {key: found.get(pk, {}).get(f"{name}:spent") for key, (pk, name) in places.items()}
        return {key: amount for key, amount in spent.items() if isinstance(amount, int)}

    async def _raise(self, pk: str, floors: Mapping[str, int], item: Item) -> None:
        """Raise TATs, and what budgets have spent, to `floors`, as far as they exist."""
        for _ in range(MAX_TRIES):
            write = items.raise_to(item, floors)
            if write is None:
                return
            try:
                await self._table.update({"pk": pk}, write)
            except ConditionFailed as failed:
                item = Item.read(failed.item)
                continue
            return
        raise StoreUnavailable(f"DynamoDB: what a subject has spent changes faster than {MAX_TRIES} tries")

    # -- versions ------------------------------------------------------------------------------------------------

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        wanted = {items.tenant_version(tenant): version for tenant, version in (tenants or {}).items()}
        if policy:
            wanted[items.POLICY_VERSION] = policy
        await _all(self._publish_one(pk, version) for pk, version in wanted.items())

    async def _publish_one(self, pk: str, version: int) -> None:
        try:
            await self._table.update({"pk": pk}, items.newer_version(version))
        except ConditionFailed as failed:
            version = items.version(failed.item)
        self._versions.put(pk, (version, time.monotonic()))

    async def _newest(self, admission: Admission) -> tuple[int, int]:
        """The newest versions of the policy and of the tenant's record, as they were at most 5 s ago."""
        policy, tenant = items.POLICY_VERSION, items.tenant_version(admission.tenant)
        asked = [policy] if admission.policy_version else []
        asked += [tenant] if admission.tenant_version else []
        now_s = time.monotonic()
        unknown = (0, float("-inf"))
        old: list[Key] = [{"pk": pk} for pk in asked if self._versions.get(pk, unknown)[1] < now_s - VERSIONS_FRESH_S]
        if old:
            read = await self._table.get_many(old, consistent=False)
            found = {item["pk"]: items.version(item) for item in read}
            for key in old:
                version = max(self._versions.get(key["pk"], unknown)[0], found.get(key["pk"], 0))
                self._versions.put(key["pk"], (version, now_s))
        return self._versions.get(policy, unknown)[0], self._versions.get(tenant, unknown)[0]

    async def ping(self) -> None:
        await self._table.get({"pk": items.POLICY_VERSION})

    async def aclose(self) -> None:
        """The client is its owner's."""

    def _now(self) -> int:
        if self._clock is not None:
            return self._clock()
        return time.time_ns() // 1000 + self._client.clock_offset_us


def _subjects(takes: Sequence[Take]) -> list[list[int]]:
    """The positions of the takes of each subject, narrowest scope first."""
    found: dict[str, list[int]] = {}
    for i, take in sorted(enumerate(takes), key=lambda pair: _SCOPES[pair[1].limit.scope]):
        found.setdefault(take.subject, []).append(i)
    return list(found.values())


def _part(admission: Admission, places: list[int], *, other_shard: bool = False) -> Part:
    """What an admission takes of one subject, whose takes are at `places`."""
    takes = [admission.takes[i] for i in places]
    count = shards(takes)
    shard = pick(admission.id, count)[other_shard]
    pk = items.subject_key(takes[0].subject, shard, count)
    return Part(pk, places, [share(take, shard, count) for take in takes], count)


def _items_of(take: RateTake, takes: Iterable[Take]) -> list[str]:
    """All items that count the subject of `take`, which is one of `takes`."""
    count = shards([other for other in takes if other.subject == take.subject])
    return [items.subject_key(take.subject, shard, count) for shard in range(count)]


def _in_order(parts: Sequence[Part], of_each: Sequence[Sequence[T]]) -> list[T]:
    """What each part has for each of its takes, in the order of the admission's takes."""
    found: dict[int, T] = {}
    for part, some in zip(parts, of_each, strict=True):
        found.update(zip(part.places, some, strict=True))
    return [found[i] for i in range(len(found))]


def _states(admission: Admission, parts: Sequence[Part], now: int, granted: Sequence[int]) -> list[State]:
    """What each limit was left with; `granted` is parallel to the admission's takes."""
    states: list[list[State]] = []
    for part in parts:
        shown = zip(part.places, part.takes, part.values, strict=True)
        states.append(
            [whole(admission.takes[i], take, State(value, granted[i]), part.shards, now) for i, take, value in shown]
        )
    return _in_order(parts, states)


def _refused(admission: Admission, parts: Sequence[Part], marker: Plain, answer: Decision) -> Decision:
    """The answer when not everything was taken: a repeated one, which budgets are cold, or the limits as they are."""
    now, first = answer.now_us, Marker.read(marker) if marker else None
    cold = sorted(i for part in parts for i in part.cold())
    if first is not None and first.expiry_us > now and not first.settler:
        answer.status, answer.states = Status.ADMITTED, _states(admission, parts, now, first.granted)
    elif cold:
        answer.status, answer.cold = Status.COLD, tuple(cold)
    else:
        answer.states = _states(admission, parts, now, [0] * len(admission.takes))
    return answer


async def _again(call: Callable[[], Awaitable[T]]) -> T:
    """A call that may be made twice, made again if its reply is soon lost."""
    started = time.monotonic()
    try:
        return await call()
    except Unsure:
        if time.monotonic() - started > AGAIN_WITHIN_S:
            raise
        return await call()


async def _all(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """Everything at once. All of it is over when this returns, or raises the first failure."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
