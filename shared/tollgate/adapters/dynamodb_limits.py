"""`dynamodb://table`: the limit store on DynamoDB, by conditional writes; also what decides while Redis is away.

DynamoDB has no script and no clock, and its conditions know neither `max()` nor arithmetic. So:

- now is this machine's clock, corrected by the `Date` header of DynamoDB's answers (good to 1 s).
- Everything that counts one subject is one item (`dynamodb_limit_items`), and taken by one conditional write
  (`dynamodb_limit_subjects`): rates, budgets and slots.
- Subjects are taken narrowest first, so that a flood from one address does not touch its tenant. A refusal gives back
  what was taken. The request's marker (`dynamodb_limit_markers`) is written last: it commits, and settling claims it.
- Whoever meets expired holds releases them; nothing else has to look for them.
- Subjects that everyone shares are spread over several items where their rates are high (`dynamodb_shards`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Literal, TypeVar

from tollgate.adapters.dynamodb import Client, Table, Unsure, together
from tollgate.adapters.dynamodb_limit_crowds import Reads
from tollgate.adapters.dynamodb_limit_items import Item, budget_counter, budget_keys, counter, spent_name, subject_key
from tollgate.adapters.dynamodb_limit_markers import Marker, Markers, Place, marker_key
from tollgate.adapters.dynamodb_limit_moves import settling
from tollgate.adapters.dynamodb_limit_parts import Part, Unknown
from tollgate.adapters.dynamodb_limit_subjects import SubjectItems
from tollgate.adapters.dynamodb_limit_versions import Versions
from tollgate.adapters.dynamodb_shards import pick, shards, share, whole, whole_tat
from tollgate.domain.limits import (
    Admission,
    BudgetTake,
    Decision,
    Scope,
    Settlement,
    Status,
    Take,
    fits,
    hold_expiry_us,
)
from tollgate.domain.takes import Takes
from tollgate.ports import StoreUnavailable

PAGE = 500
"""Budgets that are told at once to who asks for all of them."""
T = TypeVar("T")
_SCOPES = {scope: i for i, scope in enumerate(Scope)}


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
        self._clock = clock
        self._table = Table(client, table, patient=False)
        self._reads = Reads(self._table, consistent=True)
        self._subjects = SubjectItems(self._table, Unknown(half=unknown == "half"), self._now)
        self._markers = Markers(self._table)
        self._versions = Versions(self._table)

    def outage_begins(self) -> None:
        """From now on this store decides for another: a rate that was last taken from before is unknown here."""
        self._subjects.unknown = Unknown(half=self._subjects.unknown.half, since_us=self._now())

    async def warm(self) -> None:
        """Connect, find credentials and learn the time now, so that no admission has to. Raises `StoreUnavailable`."""
        await self.ping()

    # -- admission -----------------------------------------------------------------------------------------------

    async def admit(self, admission: Admission) -> Decision:
        takes = Takes.of(admission.takes)
        if not admission.expires_us:
            return await self.look(admission)
        if self._clock is None and not self._client.clock_known:
            await self.warm()  # with a clock that is ahead, one take would leave buckets empty until then
        now = self._now()
        parts = [_part(admission, places) for places in _subjects(takes)]
        reading = asyncio.ensure_future(self._versions.newest(admission))
        try:
            wrong_day = _wrong_day(takes, now)
            taken = False if wrong_day else await self._take_all(admission, parts, now)
            policy, tenant = await reading
            answer = Decision(Status.ADMITTED, now, policy_version=policy, tenant_version=tenant, store=self.name)
            if _stale(admission, answer):
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
        answer.now_us = _decided(parts, now)
        _, first = await asyncio.gather(
            self._give_back(admission.id, parts, now), self._look(admission, parts, answer.now_us)
        )
        return _refused(admission, parts, first, answer)

    async def look(self, admission: Admission) -> Decision:
        if self._clock is None and not self._client.clock_known:
            await self.warm()
        now, takes = self._now(), Takes.of(admission.takes)
        parts = [_part(admission, places) for places in _subjects(takes)]
        wrong_day = _wrong_day(takes, now)
        if not wrong_day:
            await together(self._subjects.seed(part, now) for part in parts)
        first, (policy, mine) = await asyncio.gather(
            self._look(admission, parts, now), self._versions.now(admission.tenant)
        )
        answer = Decision(Status.REFUSED, now, policy_version=policy, tenant_version=mine, store=self.name)
        if _stale(admission, answer):
            answer.status = Status.STALE
        elif wrong_day:
            answer.status = Status.WINDOW
        else:
            answer = _refused(admission, parts, first, answer)
            refused = answer.status is Status.REFUSED
            if refused and all(fits(t, v, now) for t, v in zip(takes, answer.values, strict=True)):
                answer.status = Status.ADMITTED
        return answer

    async def _take_all(self, admission: Admission, parts: list[Part], now: int) -> bool:
        """Take everything; False as soon as one limit refuses or a budget is cold."""
        await together(self._subjects.seed(part, now) for part in parts)
        if any(not fits(take, 0, now) for part in parts for take in part.takes):  # above the burst or budget
            return False
        for i, part in enumerate(parts):
            if await self._subjects.take(part, admission, now):
                continue
            if part.shards == 1:
                return False
            parts[i] = _part(admission, part.places, other_shard=True)
            if not await self._subjects.take(parts[i], admission, now):
                return False
        return True

    async def _commit(self, admission: Admission, parts: Sequence[Part], answer: Decision) -> Decision:
        """Write the marker. If it is there already, this id was admitted before: give the same answer, and give back
        what both calls have taken. (What the first call found taken, it counts on.)"""
        now, granted = answer.now_us, _in_order(parts, [part.granted for part in parts])
        places = [Place(part.pk, part.shards, part.expiry_s, part.own) for part in parts]
        marker = Marker(hold_expiry_us(now, admission.expires_us), granted, places, os.urandom(8).hex())
        if (first := await self._markers.put(admission.id, marker, now)) is not None:
            twice = [part for part, place in zip(parts, first.places, strict=False) if place is None or place.own]
            await self._give_back(admission.id, twice, now)
            granted = first.granted
        answer.now_us = _decided(parts, now)
        _show(answer, admission, parts, answer.now_us, granted)
        return answer

    async def _look(self, admission: Admission, parts: Sequence[Part], now: int) -> Marker | None:
        """Look at everything that was not looked at, so that the answer can say what remains of each limit; and for the
        request's marker: a repeated request may be refused by what it took itself the first time."""
        marker = marker_key(admission.id)
        unseen = [part for part in parts if part.seen is None]
        found = await self._reads.get([marker, *(part.pk for part in unseen)])
        for part in unseen:
            part.look(Item.read(found.get(part.pk, {})), self._subjects.unknown, now)
        return Marker.read(found[marker]) if marker in found else None

    async def _give_back(self, id: str, parts: Iterable[Part], now: int) -> None:
        """Undo what this call took. A write that fails is not tried again: a rate refills, and a hold expires."""
        undo = [self._subjects.give_back(part, id, now) for part in parts]
        await asyncio.gather(*undo, return_exceptions=True)

    # -- settlement ----------------------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        now = self._now()
        marker = await self._markers.claim(settlement.id, now)
        if marker is None:
            return False
        work = [
            self._settle_part(settlement, places, place, marker, now)
            for places, place in zip(_subjects(settlement.takes), marker.places, strict=True)
        ]
        failures = await asyncio.gather(*work, return_exceptions=True)
        left = [isinstance(failure, StoreUnavailable) and not isinstance(failure, Unsure) for failure in failures]
        if any(left):
            await self._markers.unclaim(settlement.id, marker, left)
        for failure in failures:
            if failure is not None:
                raise failure
        return True

    async def _settle_part(
        self, settlement: Settlement, places: list[int], place: Place | None, marker: Marker, now: int
    ) -> None:
        """Raises `Unsure` where it may have been done, any other `StoreUnavailable` where it certainly was not."""
        if place is None:
            return
        places = [i for i in places if i < len(marker.granted)]  # a repeated id may have asked for more
        part = Part(place.pk, places, [settlement.takes[i] for i in places], place.shards, expiry_s=place.expiry_s)
        part.granted = [marker.granted[i] for i in places]
        move = settling(part, settlement.id, [settlement.used[i] for i in places])
        await self._subjects.move(place.pk, move, now, f"{settlement.id} settled")

    async def replay(self, settlements: Sequence[Settlement]) -> int:
        now = self._now()
        by_id = {each.id: each for each in settlements}
        settled = 0
        for id, marker in (await self._markers.find(by_id)).items():
            each = by_id[id]
            told = len(each.takes) == len(marker.granted) and len(_subjects(each.takes)) == len(marker.places)
            if told and not marker.settler and marker.expiry_us > now:
                settled += await self.settle(each)  # few: one after the other is soon enough
        return settled

    # -- what other stores know ----------------------------------------------------------------------------------

    async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
        wanted = [_items_of(takes[i], takes) for i in cold]
        found = await self._subjects.find(pk for pks in wanted for pk in pks)
        now = self._now()
        return [
            whole_tat((found.get(pk, Item()).numbers.get(counter(takes[i])) for pk in pks), len(pks), now)
            for i, pks in zip(cold, wanted, strict=True)
        ]

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        floors: dict[str, dict[str, int]] = {}
        for key, amount in spent.items():
            pk, name = budget_counter(key)
            floors.setdefault(pk, {})[name] = amount
        found = await self._subjects.find(floors)
        await together(self._subjects.raise_to(pk, floors[pk], item) for pk, item in found.items())

    async def budget_keys(self) -> AsyncIterator[Sequence[str]]:
        found: list[str] = []
        async for item in self._table.scan():
            found += budget_keys(item)
            if len(found) >= PAGE:
                yield found
                found = []
        yield found

    async def known_spent(self, budgets: Sequence[str]) -> dict[str, int]:
        places = {key: budget_counter(key) for key in budgets}
        found = await self._subjects.find(pk for pk, _ in places.values())
        spent = {key: found.get(pk, Item()).numbers.get(spent_name(name)) for key, (pk, name) in places.items()}
        return {key: amount for key, amount in spent.items() if amount is not None}

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        await self._versions.publish(policy, tenants or {})

    async def ping(self) -> None:
        await self._versions.ping()

    async def aclose(self) -> None:
        """The client is its owner's."""

    def _now(self) -> int:
        if self._clock is not None:
            return self._clock()
        return time.time_ns() // 1000 + self._client.clock_offset_us


def _stale(admission: Admission, known: Decision) -> bool:
    """Whether newer versions are known than those that the takes were made from."""
    policy, tenant = admission.policy_version, admission.tenant_version
    return 0 < policy < known.policy_version or 0 < tenant < known.tenant_version


def _wrong_day(takes: Iterable[Take], now: int) -> bool:
    """Whether a budget's window does not contain `now`."""
    return any(not take.start_us <= now < take.end_us for take in takes if isinstance(take, BudgetTake))


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
    pk = subject_key(takes[0].subject, shard)
    return Part(pk, places, [share(take, shard, count) for take in takes], count)


def _items_of(take: Take, takes: Iterable[Take]) -> list[str]:
    """All items that count the subject of `take`, which is one of an admission's `takes`."""
    count = shards([other for other in takes if other.subject == take.subject])
    return [subject_key(take.subject, shard) for shard in range(count)]


def _decided(parts: Iterable[Part], now: int) -> int:
    """When all that was asked had been decided: later than it was asked, where a crowd had to wait."""
    return max([now, *(part.now_us for part in parts)])


def _in_order(parts: Sequence[Part], of_each: Sequence[Sequence[T]]) -> list[T]:
    """What each part has for each of its takes, in the order of the admission's takes."""
    found: dict[int, T] = {}
    for part, some in zip(parts, of_each, strict=True):
        found.update(zip(part.places, some, strict=True))
    return [found[i] for i in range(len(found))]


def _show(answer: Decision, admission: Admission, parts: Sequence[Part], now: int, granted: Sequence[int]) -> None:
    """Let the answer say what each limit was left with, and granted (parallel to the admission's takes). A repeated id
    was granted nothing of what it did not ask for before."""
    granted = [*granted, *[0] * (len(admission.takes) - len(granted))]
    found: list[list[tuple[int, int]]] = []
    for part in parts:
        shown = zip(part.places, part.takes, part.values, strict=True)
        found.append([whole(admission.takes[i], take, value, granted[i], part.shards, now) for i, take, value in shown])
    pairs = _in_order(parts, found)
    answer.values, answer.granted = [value for value, _ in pairs], [amount for _, amount in pairs]


def _refused(admission: Admission, parts: Sequence[Part], first: Marker | None, answer: Decision) -> Decision:
    """The answer when not everything was taken: a repeated one, which budgets are cold, or the limits as they are."""
    now = answer.now_us
    cold = sorted(i for part in parts for i in part.cold())
    if first is not None and first.expiry_us > now and not first.settler:
        answer.status = Status.ADMITTED
        _show(answer, admission, parts, now, first.granted)
    elif cold:
        answer.status, answer.cold = Status.COLD, tuple(cold)
    else:
        _show(answer, admission, parts, now, [0] * len(admission.takes))
        if any(part.shards > 1 and part.refuses(now) for part in parts):
            answer.firm_us = 0  # others may have room in another shard, or need less of this one
    return answer
