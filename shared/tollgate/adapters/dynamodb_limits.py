"""`dynamodb://table`: the limit store on DynamoDB, by conditional writes; also what decides while Redis is away.

DynamoDB has no script and no clock, and its conditions know neither `max()` nor arithmetic. So:

- now is this machine's clock, corrected by the `Date` header of DynamoDB's answers (good to 1 s).
- The rates of one subject are attributes (TATs) of one item, and taken by one UpdateItem. Each has an idle branch
  (absent or in the past: set it to now + cost) and a busy one (between now and what still fits: add the cost). The
  branch is guessed from what this container saw last; where the guess is wrong, the failed condition returns the item,
  which either refuses, exactly, or gives the right branches for one more try.
- A budget is an item of its own, and so are the slots of a concurrency limit. Both carry their holds as attributes,
  each with its amount and expiry, beside the sum that the condition looks at. One write therefore takes or frees a
  hold and moves the sum; repeating it changes nothing, a crash leaves a hold that expires, and whoever meets an expired
  hold releases it. (As items of their own the holds would need transactions, which conflict under load.)
- Subjects are taken narrowest first, so that a flood from one address does not touch its tenant; then budgets and
  slots, together. A refusal gives back what was taken. The request's marker is written last: it commits.
- Versions of the policy and of tenants are read at most every 5 s, beside an admission and not before it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tollgate.adapters import dynamodb_limit_items as items
from tollgate.adapters.dynamodb import Client, ConditionFailed, Expression, Key, Plain, Table
from tollgate.adapters.dynamodb_limit_items import DAY_S, HoldTake, Progress, item_key, tat_name
from tollgate.adapters.lru import Lru
from tollgate.domain.limits import (
    SECOND_US,
    Admission,
    BudgetTake,
    Decision,
    RateTake,
    Settlement,
    SlotTake,
    State,
    Status,
    fits,
    grant,
)
from tollgate.ports import StoreUnavailable

VERSIONS_FRESH_S = 5.0
"""How old the versions that admissions are compared with may be."""
EXACT_TRIES = 3
"""Tries that grant as much as fits; from then on only the least that is needed, which others disturb less."""
MAX_TRIES = 8
KNOWN_ITEMS = 10_000
RELEASE_AT_ONCE = 20
"""Expired holds released by one write."""


class DynamoLimitStore:
    """`clock` (µs) replaces this machine's clock, in tests."""

    name = "dynamodb"

    def __init__(self, client: Client, table: str, clock: Callable[[], int] | None = None) -> None:
        self._client = client
        self._table = Table(client, table, patient=False)
        self._clock = clock
        self._known: Lru[dict[str, int]] = Lru(KNOWN_ITEMS)
        """What this container last saw of an item's numbers: good for guesses only."""
        self._versions: Lru[tuple[int, float]] = Lru(KNOWN_ITEMS)
        """Version, and when it was read (s, monotonic)."""

    # -- admission -----------------------------------------------------------------------------------------------

    async def admit(self, admission: Admission) -> Decision:
        now = self._now()
        reading = asyncio.ensure_future(self._newest(admission))
        progress = Progress.of(admission, now)
        try:
            wrong_day = any(not t.start_us <= now < t.end_us for t in admission.takes if isinstance(t, BudgetTake))
            taken = False if wrong_day else await self._take_all(progress)
            policy, tenant = await reading
            answer = Decision(Status.ADMITTED, now, [], (), policy, tenant, self.name)
            if 0 < admission.policy_version < policy or 0 < admission.tenant_version < tenant:
                answer.status = Status.STALE
            elif wrong_day:
                answer.status = Status.WINDOW
            elif taken:
                return await self._commit(admission.id, progress, answer)
            else:
                answer.status = Status.REFUSED
        except BaseException:
            await self._give_back(progress)
            reading.cancel()
            with suppress(asyncio.CancelledError, StoreUnavailable):
                await reading
            raise
        if answer.status is not Status.REFUSED:
            await self._give_back(progress)
            return answer
        _, marker = await asyncio.gather(self._give_back(progress), self._look(admission.id, progress))
        return _refused(progress, marker, answer)

    async def _take_all(self, progress: Progress) -> bool:
        """Take everything; False as soon as one limit refuses or a budget is cold."""
        takes = progress.takes
        await _all(self._seed(take) for take in takes if isinstance(take, BudgetTake) and take.seed is not None)
        if any(not fits(take, State(0), progress.now) for take in takes):  # more than the whole burst or budget
            return False
        for pk, rates in progress.rates().items():
            if not await self._take_rates(pk, rates, progress):
                return False
        holds = [(i, take) for i, take in enumerate(takes) if isinstance(take, BudgetTake | SlotTake)]
        return all(await _all(self._take_hold(i, take, progress) for i, take in holds))

    async def _take_rates(self, pk: str, takes: Mapping[int, RateTake], progress: Progress) -> bool:
        """One write for all rates of a subject; after a wrong guess one more, with what the item really says."""
        now, known = progress.now, self._known.get(pk, {})
        for attempt in range(MAX_TRIES):
            seen = {i: known.get(tat_name(take), 0) for i, take in takes.items()}
            granted: dict[int, int] = {}
            for i, take in takes.items():
                possible = fits(take, State(seen[i]), now)
                if attempt and not possible:
                    for j, tat in seen.items():
                        progress.before[j] = tat
                    return False
                exact = possible and attempt < EXACT_TRIES
                granted[i] = grant(take, State(seen[i]), now) if exact else take.floor_us
            write = items.take_rates(takes, seen, granted, now)
            try:
                old = await self._table.update({"pk": pk}, write, returns="UPDATED_OLD")
            except ConditionFailed as failed:
                known = items.tats(failed.item)
                continue
            for i, take in takes.items():
                progress.before[i] = old.get(tat_name(take), 0)
                progress.granted[i], progress.own[i] = granted[i], True
            self._known.put(pk, {**known, **{tat_name(take): progress.after(i) for i, take in takes.items()}})
            return True
        raise StoreUnavailable(f"DynamoDB: the rates of one subject change faster than {MAX_TRIES} tries")

    async def _take_hold(self, i: int, take: HoldTake, progress: Progress) -> bool:
        """Hold part of a budget, or a slot. False if it does not fit, or the budget is cold."""
        now, pk = progress.now, item_key(take)
        least = 1 if isinstance(take, SlotTake) else take.floor
        value = self._known.get(pk, {}).get("n", 0)
        for attempt in range(MAX_TRIES):
            exact = fits(take, State(value), now) and attempt < EXACT_TRIES
            granted = grant(take, State(value), now) if exact else least
            write = items.take_hold(take, granted, progress.hold, progress.expiry)
            try:
                old = await self._table.update({"pk": pk}, write, returns="ALL_OLD")
            except ConditionFailed as failed:
                if not failed.item and isinstance(take, BudgetTake):
                    progress.cold.add(i)
                    return False
                value = await self._without_expired(pk, failed.item, now)
                mine, expiry = items.hold(failed.item.get(progress.hold, "0:0"))
                if expiry > now:  # an earlier call of the same id has taken it
                    progress.granted[i], progress.before[i] = mine, value - mine
                    return True
                if not fits(take, State(value), now):
                    progress.before[i] = value
                    self._known.put(pk, {"n": value})
                    return False
                continue
            progress.granted[i], progress.own[i] = granted, True
            progress.before[i] = await self._without_expired(pk, old, now)
            self._known.put(pk, {"n": progress.after(i)})
            return True
        raise StoreUnavailable(f"DynamoDB: a budget changes faster than {MAX_TRIES} tries")

    async def _commit(self, id: str, progress: Progress, answer: Decision) -> Decision:
        """Write the marker. If it is there already, this id was admitted before: give the same answer, and keep what
        is held (it is the id's), but not a second helping of the rates."""
        key = {"pk": items.marker_key(id)}
        granted = json.dumps(progress.granted, separators=(",", ":"))
        ttl = progress.expiry // SECOND_US + DAY_S
        ex = Expression()
        condition = f"attribute_not_exists({ex.name('pk')}) OR {ex.name('e')} <= {ex.value(progress.now)}"
        try:
            marker = {**key, "e": progress.expiry, "g": granted, "ttl": ttl}
            await self._table.put(marker, condition=condition, expression=ex)
        except ConditionFailed as failed:
            await self._give_back(progress, holds=False)
            answer.states = progress.repeated(json.loads(failed.item["g"]))
            return answer
        except StoreUnavailable:  # it may have been written all the same
            mine = Expression()
            with suppress(ConditionFailed, StoreUnavailable):
                await self._table.delete(
                    key, condition=f"{mine.name('e')} = {mine.value(progress.expiry)}", expression=mine
                )
            raise
        answer.states = progress.taken()
        return answer

    async def _give_back(self, progress: Progress, *, holds: bool = True) -> None:
        """Undo what this call took. A write that fails is not tried again: a rate refills, and a hold expires."""
        undo: list[Awaitable[object]] = []
        for pk, takes in progress.rates().items():
            if all(progress.own[i] for i in takes):
                undo.append(self._restore_rates(pk, takes, progress))
        for i, take in enumerate(progress.takes):
            if holds and progress.own[i] and not isinstance(take, RateTake):
                undo.append(self._release(item_key(take), {progress.hold: f"{progress.granted[i]}:{progress.expiry}"}))
        await asyncio.gather(*undo, return_exceptions=True)

    async def _restore_rates(self, pk: str, takes: Mapping[int, RateTake], progress: Progress) -> None:
        """Put a subject's TATs back to what they were; if they have moved since, take off what was added."""
        try:
            item = await self._table.update({"pk": pk}, items.restore_rates(progress, takes), returns="ALL_NEW")
        except ConditionFailed:
            moves = {tat_name(take): -progress.granted[i] for i, take in takes.items()}
            await self._move_rates(pk, moves, progress.now)
        else:
            self._known.put(pk, items.tats(item))

    async def _look(self, id: str, progress: Progress) -> Plain:
        """Look at everything that was not looked at, so that the answer can say what remains of each limit. Returns
        the request's marker: a repeated request may be refused by what it took itself the first time."""
        marker = items.marker_key(id)
        unknown = [i for i, before in enumerate(progress.before) if before is None and i not in progress.cold]
        wanted = {item_key(progress.takes[i]) for i in unknown} | {marker}
        found = {item["pk"]: item for item in await self._table.get_many([{"pk": pk} for pk in sorted(wanted)])}
        for i in unknown:
            take = progress.takes[i]
            item = found.get(item_key(take), {})
            if isinstance(take, RateTake):
                progress.before[i] = item.get(tat_name(take), 0)
            elif item or isinstance(take, SlotTake):
                progress.before[i] = items.in_use(item, progress.now)
            else:
                progress.cold.add(i)
        return found.get(marker, {})

    async def _seed(self, take: BudgetTake) -> None:
        """Create the budget with what the ledger knows to be spent, or raise it to that."""
        seed, kept = take.seed or 0, items.kept_until(take, 0)
        item: Plain = {"pk": item_key(take), "n": seed, "spent": seed}
        ex = Expression()
        try:
            await self._table.put(
                item if kept is None else item | {"ttl": kept},
                condition=f"attribute_not_exists({ex.name('pk')})",
                expression=ex,
            )
        except ConditionFailed as failed:
            await self._raise_one(seed, failed.item)

    # -- settlement ----------------------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        now = self._now()
        marker = await self._table.delete({"pk": items.marker_key(settlement.id)})
        if not marker or marker["e"] <= now:
            return False
        granted: list[int] = json.loads(marker["g"])
        name = items.hold_name(settlement.id)
        work: list[Awaitable[object]] = []
        rates: dict[str, dict[str, int]] = {}
        for take, held, used in zip(settlement.takes, granted, settlement.used, strict=True):
            if isinstance(take, RateTake):
                if used is not None:
                    rates.setdefault(item_key(take), {})[tat_name(take)] = take.limit.inc_us(used) - held
            elif isinstance(take, BudgetTake):
                work.append(self._spend(take, name, held, used or 0))
            else:
                work.append(self._release(item_key(take), {name: f"{held}:{marker['e']}"}))
        work += [self._move_rates(pk, moves, now) for pk, moves in rates.items()]
        await _all(work)
        return True

    async def _move_rates(self, pk: str, moves: Mapping[str, int], now: int) -> None:
        """Add to the TATs of a subject, as far as they exist."""
        moves = {name: delta for name, delta in moves.items() if delta}
        known = self._known.get(pk, {})
        for _ in range(MAX_TRIES):
            if not moves:
                return
            try:
                item = await self._table.update({"pk": pk}, items.move_rates(moves, known, now), returns="ALL_NEW")
            except ConditionFailed as failed:
                known = items.tats(failed.item)
                moves = {name: delta for name, delta in moves.items() if name in known}
                continue
            self._known.put(pk, items.tats(item))
            # a deep debt must outlive the item's usual life, or it would be forgiven
            needed = max(items.tats(item).values()) // SECOND_US + DAY_S
            if needed > item["ttl"]:
                await self._table.update({"pk": pk}, items.keep_until(needed))
            return
        raise StoreUnavailable(f"DynamoDB: the rates of one subject change faster than {MAX_TRIES} tries")

    async def _spend(self, take: BudgetTake, name: str, held: int, used: int) -> None:
        """Replace a hold by what was used; nothing if it has been released (metering brings the use)."""
        with suppress(ConditionFailed):
            await self._table.update({"pk": item_key(take)}, items.spend(name, held, used))

    async def _without_expired(self, pk: str, item: Plain, now: int) -> int:
        """The item's sum without the holds whose holders died; those are released."""
        if expired := items.expired_holds(item, now):
            await self._release(pk, expired)
        return items.in_use(item, now)

    async def _release(self, pk: str, holds: Mapping[str, str]) -> int:
        """Free holds; how many this call freed."""
        freed, waiting = 0, list(holds.items())
        for at in range(0, len(waiting), RELEASE_AT_ONCE):
            some = dict(waiting[at : at + RELEASE_AT_ONCE])
            with suppress(ConditionFailed):  # someone else has met them, too
                await self._table.update({"pk": pk}, items.release(some))
                freed += len(some)
        return freed

    async def sweep(self) -> int:
        """Release every expired hold in the table; how many there were. Admissions do it for what they meet, so this
        is for what nobody asks for any more. It reads the whole table."""
        freed, now = 0, self._now()
        async for item in self._table.scan():
            if item["pk"][:2] in ("b#", "c#") and (expired := items.expired_holds(item, now)):
                freed += await self._release(item["pk"], expired)
        return freed

    # -- floors and versions -------------------------------------------------------------------------------------

    async def recall(self, takes: Sequence[RateTake]) -> list[int | None]:
        found = await self._table.get_many([{"pk": pk} for pk in dict.fromkeys(map(items.item_key, takes))])
        known = {str(item["pk"]): items.tats(item) for item in found}
        return [known.get(items.item_key(take), {}).get(items.tat_name(take)) for take in takes]

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        floors = {f"b#{key}": amount for key, amount in spent.items()}
        found = await self._table.get_many([{"pk": pk} for pk in floors])
        await _all(self._raise_one(floors[item["pk"]], item) for item in found)

    async def _raise_one(self, spent: int, item: Plain) -> None:
        for _ in range(MAX_TRIES):
            if not item or item["spent"] >= spent:
                return
            try:
                await self._table.update({"pk": item["pk"]}, items.raise_spent(item, spent))
            except ConditionFailed as failed:
                item = failed.item
                continue
            return
        raise StoreUnavailable(f"DynamoDB: a budget changes faster than {MAX_TRIES} tries")

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        wanted = {items.tenant_version(tenant): version for tenant, version in (tenants or {}).items()}
        if policy:
            wanted[items.POLICY_VERSION] = policy
        await _all(self._publish_one(pk, version) for pk, version in wanted.items())

    async def _publish_one(self, pk: str, version: int) -> None:
        try:
            await self._table.update({"pk": pk}, items.newer_version(version))
        except ConditionFailed as failed:
            version = failed.item["v"]
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
            found = {item["pk"]: item["v"] for item in await self._table.get_many(old, consistent=False)}
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


def _refused(progress: Progress, marker: Plain, answer: Decision) -> Decision:
    """The answer when not everything was taken: a repeated one, which budgets are cold, or the limits as they are."""
    if marker and marker["e"] > progress.now:
        answer.status, answer.states = Status.ADMITTED, progress.repeated(json.loads(marker["g"]))
    elif progress.cold:
        answer.status, answer.cold = Status.COLD, tuple(sorted(progress.cold))
    else:
        answer.states = progress.untouched()
    return answer


async def _all(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """Everything at once. All of it is over when this returns, or raises the first failure."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
