"""`dynamodb://table`: the limit store on DynamoDB, by conditional writes; also what decides while Redis is away.

DynamoDB has no script and no clock, and its conditions know neither `max()` nor arithmetic. So:

- now is this machine's clock, corrected by the `Date` header of DynamoDB's answers (good to 1 s).
- The rates of one subject are attributes (TATs) of one item, and taken by one UpdateItem. Each has an idle branch
  (absent or in the past: set it to now + cost) and a busy one (between now and what still fits: add the cost). The
  branch is guessed from what this container saw last; where the guess is wrong, the failed condition returns the item,
  which either refuses, exactly, or gives the right branches for one more try.
- A budget is an item of its own, and so are the slots of a concurrency limit. Both carry their holds as attributes,
  each with its amount and expiry, beside the sum `n` that the condition looks at. One write therefore takes or frees a
  hold and moves the sum; repeating it changes nothing, a crash leaves a hold that expires, and whoever meets an expired
  hold releases it. (As items of their own the holds would need transactions, which conflict under load.)
- Subjects are taken narrowest first, so that a flood from one address does not touch its tenant; then budgets and
  slots, together. A refusal gives back what was taken. The request's marker is written last: it commits.

Items (`ttl` in epoch seconds, everywhere but in budgets for life and versions):

    r#<subject>       one TAT (µs) per rate
    b#<key>           n: committed = spent + holds; spent; h:<id>: "<amount>:<expiry µs>" per hold
    c#<key>           n: slots in use; h:<id> likewise
    h#<id>            marker of an admitted request: e: expiry (µs); g: what each take was granted
    v#policy, v#<tenant>   v: newest version; read at most every 5 s
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tollgate.adapters.dynamodb import Client, ConditionFailed, Expression, Key, Plain, Table
from tollgate.adapters.lru import Lru
from tollgate.domain.keys import digest
from tollgate.domain.limits import (
    SECOND_US,
    Admission,
    BudgetTake,
    Decision,
    RateTake,
    Scope,
    Settlement,
    SlotTake,
    State,
    Status,
    Take,
    Window,
    fits,
    grant,
)
from tollgate.ports import StoreUnavailable

DAY_S = 86_400
BUDGET_KEPT_S = 40 * DAY_S
"""How long a budget outlives its window: until no settlement and no floor can ask for it any more."""
VERSIONS_FRESH_S = 5.0
"""How old the versions that admissions are compared with may be."""
EXACT_TRIES = 3
"""Tries that grant as much as fits; from then on only the least that is needed, which others disturb less."""
MAX_TRIES = 8
KNOWN_ITEMS = 10_000
RELEASE_AT_ONCE = 20
"""Expired holds released by one write."""

_SCOPES = {scope: i for i, scope in enumerate(Scope)}
_HOLD = "h:"
HoldTake = BudgetTake | SlotTake


@dataclass(slots=True)
class _Progress:
    """How far one admission has come. The lists are parallel to its takes."""

    takes: Sequence[Take]
    now: int
    expiry: int
    hold: str
    """The attribute that holds this request in budgets and slots."""
    before: list[int | None]
    """TAT, committed or slots before this admission took anything; None: not looked at."""
    granted: list[int]
    own: list[bool]
    """Whether this call took it. (A hold may be there already, from a call whose answer was lost.)"""
    cold: set[int]

    @classmethod
    def of(cls, admission: Admission, now: int) -> _Progress:
        n = len(admission.takes)
        hold = _HOLD + digest(admission.id)
        return cls(admission.takes, now, now + admission.expires_us, hold, [None] * n, [0] * n, [False] * n, set())

    def states(self, *, taken: bool) -> list[State]:
        """As they stand before the admission, or (`taken`) after it."""
        found: list[State] = []
        for take, before, granted in zip(self.takes, self.before, self.granted, strict=True):
            value = before or 0
            if not taken:
                found.append(State(value))
            elif isinstance(take, RateTake):
                found.append(State(max(value, self.now) + granted, granted))
            else:
                found.append(State(value + granted, granted))
        return found


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
        progress = _Progress.of(admission, now)
        try:
            wrong_day = any(not t.start_us <= now < t.end_us for t in admission.takes if isinstance(t, BudgetTake))
            taken = False if wrong_day else await self._take_all(progress)
            policy, tenant = await reading
            answer = Decision(Status.ADMITTED, now, [], (), policy, tenant, self.name)
            if 0 < admission.policy_version < policy or 0 < admission.tenant_version < tenant:
                answer.status = Status.STALE
                await self._give_back(progress)
                return answer
            if wrong_day:
                answer.status = Status.WINDOW
                return answer
            if taken:
                return await self._commit(admission, progress, answer)
        except BaseException:
            await self._give_back(progress)
            reading.cancel()
            with suppress(asyncio.CancelledError, StoreUnavailable):
                await reading
            raise
        _, marker = await asyncio.gather(self._give_back(progress), self._look(admission.id, progress))
        return _refused(progress, marker, answer)

    async def _take_all(self, progress: _Progress) -> bool:
        """Take everything; False as soon as one limit refuses or a budget is cold."""
        takes = progress.takes
        await asyncio.gather(*(self._seed(t) for t in takes if isinstance(t, BudgetTake) and t.seed is not None))
        if any(not fits(take, State(0), progress.now) for take in takes):  # more than the whole burst or budget
            return False
        for subject, indexes in _by_subject(takes).items():
            if not await self._take_rates(subject, indexes, progress):
                return False
        holds = [self._take_hold(i, t, progress) for i, t in enumerate(takes) if isinstance(t, BudgetTake | SlotTake)]
        return all(await _all(holds))

    async def _take_rates(self, subject: str, indexes: list[int], progress: _Progress) -> bool:
        """One write for all rates of a subject; after a wrong guess one more, with what the item really says."""
        now, pk = progress.now, f"r#{subject}"
        takes = {i: take for i in indexes if isinstance(take := progress.takes[i], RateTake)}
        tats = self._known.get(pk, {})
        for attempt in range(MAX_TRIES):
            states = {i: State(tats.get(_attribute(take), 0)) for i, take in takes.items()}
            granted: dict[int, int] = {}
            for i, take in takes.items():
                possible = fits(take, states[i], now)
                if attempt and not possible:
                    for j, state in states.items():
                        progress.before[j] = state.value
                    return False
                exact = possible and attempt < EXACT_TRIES
                granted[i] = grant(take, states[i], now) if exact else take.floor_us
            sets, conditions, ex = [], [], Expression()
            for i, take in takes.items():
                tat = ex.name(_attribute(take))
                if states[i].value > now:
                    latest = now + take.limit.burst_us - granted[i]
                    conditions.append(f"{tat} BETWEEN {ex.value(now)} AND {ex.value(latest)}")
                    sets.append(f"{tat} = {tat} + {ex.value(granted[i])}")
                else:
                    conditions.append(f"(attribute_not_exists({tat}) OR {tat} <= {ex.value(now)})")
                    sets.append(f"{tat} = {ex.value(now + granted[i])}")
            kept = (now + max(take.limit.burst_us for take in takes.values())) // SECOND_US + DAY_S
            sets.append(f"{ex.name('ttl')} = {ex.value(kept)}")
            update, condition = "SET " + ", ".join(sets), " AND ".join(conditions)
            try:
                old = await self._table.update({"pk": pk}, update, ex, condition=condition, returns="UPDATED_OLD")
            except ConditionFailed as failed:
                tats = _numbers(failed.item)
                self._known.put(pk, tats)
                continue
            seen = _numbers(old)
            for i, take in takes.items():
                before = progress.before[i] = seen.get(_attribute(take), 0)
                progress.granted[i], progress.own[i] = granted[i], True
                seen[_attribute(take)] = max(before, now) + granted[i]
            self._known.put(pk, seen)
            return True
        raise StoreUnavailable(f"DynamoDB: the rates of one subject change faster than {MAX_TRIES} tries")

    async def _take_hold(self, i: int, take: HoldTake, progress: _Progress) -> bool:
        """Hold part of a budget, or a slot. False if it does not fit, or the budget is cold."""
        now, pk = progress.now, _pk(take)
        value = self._known.get(pk, {}).get("n", 0)
        for attempt in range(MAX_TRIES):
            possible = fits(take, State(value), now)
            least = 1 if isinstance(take, SlotTake) else take.floor
            granted = grant(take, State(value), now) if possible and attempt < EXACT_TRIES else least
            ex = Expression()
            n, hold = ex.name("n"), ex.name(progress.hold)
            room = f"{n} <= {ex.value(take.limit.amount - granted)}"
            if isinstance(take, SlotTake):
                room = f"(attribute_not_exists({n}) OR {room})"
            sets = [f"{n} = if_not_exists({n}, {ex.value(0)}) + {ex.value(granted)}"]
            sets.append(f"{hold} = {ex.value(f'{granted}:{progress.expiry}')}")
            if (kept := _kept_until(take, progress.expiry)) is not None:
                sets.append(f"{ex.name('ttl')} = {ex.value(kept)}")
            condition = f"{room} AND attribute_not_exists({hold})"
            try:
                item = await self._table.update(
                    {"pk": pk}, "SET " + ", ".join(sets), ex, condition=condition, returns="ALL_OLD"
                )
            except ConditionFailed as failed:
                item = failed.item
                if not item and isinstance(take, BudgetTake):
                    progress.cold.add(i)
                    return False
                mine = item.get(progress.hold)
                value = await self._without_expired(pk, item, now)
                if mine is not None and _hold(mine)[1] > now:
                    progress.granted[i] = _hold(mine)[0]
                    progress.before[i] = value - progress.granted[i]
                    return True
                if not fits(take, State(value), now):
                    progress.before[i] = value
                    return False
                self._known.put(pk, {"n": value})
                continue
            progress.granted[i], progress.own[i] = granted, True
            progress.before[i] = before = await self._without_expired(pk, item, now)
            self._known.put(pk, {"n": before + granted})
            return True
        raise StoreUnavailable(f"DynamoDB: a budget changes faster than {MAX_TRIES} tries")

    async def _commit(self, admission: Admission, progress: _Progress, answer: Decision) -> Decision:
        """Write the marker. If it is there already, this id was admitted before: give the same answer, and keep what
        is held (it is the id's), but not a second helping of the rates."""
        ex = Expression()
        condition = f"attribute_not_exists({ex.name('pk')}) OR {ex.name('e')} <= {ex.value(progress.now)}"
        marker = {
            "pk": _marker(admission.id),
            "e": progress.expiry,
            "g": json.dumps(progress.granted, separators=(",", ":")),
            "ttl": progress.expiry // SECOND_US + DAY_S,
        }
        try:
            await self._table.put(marker, condition=condition, expression=ex)
        except ConditionFailed as failed:
            await self._give_back(progress, only=RateTake)
            return _repeated(progress, failed.item, answer)
        answer.states = progress.states(taken=True)
        return answer

    async def _give_back(self, progress: _Progress, only: type[Take] | None = None) -> None:
        """Undo what this call took. A write that fails is not tried again: a rate refills, and a hold expires."""
        undo: list[Awaitable[object]] = []
        for subject, indexes in _by_subject(progress.takes).items():
            if progress.own[indexes[0]]:
                undo.append(self._restore_rates(f"r#{subject}", indexes, progress))
        if only is None:
            for i, take in enumerate(progress.takes):
                if progress.own[i] and not isinstance(take, RateTake):
                    held = f"{progress.granted[i]}:{progress.expiry}"
                    undo.append(self._release(_pk(take), {progress.hold: held}))
        await asyncio.gather(*undo, return_exceptions=True)

    async def _restore_rates(self, pk: str, indexes: list[int], progress: _Progress) -> None:
        """Put a subject's TATs back to what they were; if they have moved since, take off what was added."""
        ex, sets, removes, conditions, moves = Expression(), [], [], [], {}
        for i in indexes:
            before, granted = progress.before[i] or 0, progress.granted[i]
            attribute = _attribute(progress.takes[i])
            tat, moves[attribute] = ex.name(attribute), -granted
            conditions.append(f"{tat} = {ex.value(max(before, progress.now) + granted)}")
            if before:
                sets.append(f"{tat} = {ex.value(before)}")
            else:
                removes.append(tat)
        update = " ".join(part for part in (_clause("SET", sets), _clause("REMOVE", removes)) if part)
        try:
            item = await self._table.update(
                {"pk": pk}, update, ex, condition=" AND ".join(conditions), returns="ALL_NEW"
            )
        except ConditionFailed:
            await self._move_rates(pk, moves, progress.now)
        else:
            self._known.put(pk, _numbers(item))

    async def _look(self, id: str, progress: _Progress) -> Plain:
        """Look at everything that was not looked at, so that the answer can say what remains of each limit. Returns
        the request's marker: a repeated request may be refused by what it took itself the first time."""
        marker = _marker(id)
        unknown = [i for i, before in enumerate(progress.before) if before is None and i not in progress.cold]
        wanted = {_pk(progress.takes[i]) for i in unknown} | {marker}
        items = {item["pk"]: item for item in await self._table.get_many([{"pk": pk} for pk in sorted(wanted)])}
        for i in unknown:
            take = progress.takes[i]
            item = items.get(_pk(take))
            if isinstance(take, RateTake):
                progress.before[i] = (item or {}).get(_attribute(take), 0)
            elif item is not None:
                progress.before[i] = item["n"] - sum(a for a, _ in map(_hold, _expired(item, progress.now).values()))
            elif isinstance(take, BudgetTake):
                progress.cold.add(i)
        return items.get(marker, {})

    async def _seed(self, take: BudgetTake) -> None:
        """Create the budget with what the ledger knows to be spent, or raise it to that."""
        seed = take.seed or 0
        item: Plain = {"pk": _pk(take), "n": seed, "spent": seed}
        if (kept := _kept_until(take, 0)) is not None:
            item["ttl"] = kept
        ex = Expression()
        try:
            await self._table.put(item, condition=f"attribute_not_exists({ex.name('pk')})", expression=ex)
        except ConditionFailed as failed:
            await self._raise_one(take.key, seed, failed.item)

    # -- settlement ----------------------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        now = self._now()
        marker = await self._table.delete({"pk": _marker(settlement.id)})
        if not marker or marker["e"] <= now:
            return False
        granted: list[int] = json.loads(marker["g"])
        hold = _HOLD + digest(settlement.id)
        work: list[Awaitable[object]] = []
        rates: dict[str, dict[str, int]] = {}
        for take, held, used in zip(settlement.takes, granted, settlement.used, strict=True):
            if isinstance(take, RateTake):
                if used is not None:
                    rates.setdefault(_pk(take), {})[_attribute(take)] = take.limit.inc_us(used) - held
            elif isinstance(take, BudgetTake):
                work.append(self._spend(take, hold, held, used or 0))
            else:
                work.append(self._release(_pk(take), {hold: f"{held}:{marker['e']}"}))
        work += [self._move_rates(pk, moves, now) for pk, moves in rates.items()]
        await _all(work)
        return True

    async def _move_rates(self, pk: str, moves: Mapping[str, int], now: int) -> None:
        """Add to the TATs of a subject: a give-back (negative) as it is, a debt from now on. None is created."""
        moves = {attribute: delta for attribute, delta in moves.items() if delta}
        tats = self._known.get(pk, {})
        for _ in range(MAX_TRIES):
            if not moves:
                return
            sets, conditions, ex = [], [], Expression()
            for attribute, delta in moves.items():
                tat = ex.name(attribute)
                if delta < 0:
                    conditions.append(f"attribute_exists({tat})")
                    sets.append(f"{tat} = {tat} + {ex.value(delta)}")
                elif tats.get(attribute, 0) > now:
                    conditions.append(f"{tat} >= {ex.value(now)}")
                    sets.append(f"{tat} = {tat} + {ex.value(delta)}")
                else:
                    conditions.append(f"{tat} <= {ex.value(now)}")
                    sets.append(f"{tat} = {ex.value(now + delta)}")
            update, condition = "SET " + ", ".join(sets), " AND ".join(conditions)
            try:
                item = await self._table.update({"pk": pk}, update, ex, condition=condition, returns="ALL_NEW")
            except ConditionFailed as failed:
                tats = _numbers(failed.item)
                moves = {attribute: delta for attribute, delta in moves.items() if attribute in tats}
                continue
            self._known.put(pk, _numbers(item))
            await self._keep_debt(pk, item)
            return
        raise StoreUnavailable(f"DynamoDB: the rates of one subject change faster than {MAX_TRIES} tries")

    async def _keep_debt(self, pk: str, item: Plain) -> None:
        """A deep debt must outlive the item's usual life, or it would be forgiven."""
        needed = max(_numbers(item).values(), default=0) // SECOND_US + DAY_S
        if needed > item.get("ttl", needed):
            ex = Expression()
            await self._table.update({"pk": pk}, f"SET {ex.name('ttl')} = {ex.value(needed)}", ex)

    async def _spend(self, take: BudgetTake, hold: str, held: int, used: int) -> None:
        """Replace a hold by what was used; nothing if the hold has been released (metering brings the use)."""
        ex = Expression()
        n, spent, name = ex.name("n"), ex.name("spent"), ex.name(hold)
        update = f"SET {n} = {n} + {ex.value(used - held)}, {spent} = {spent} + {ex.value(used)} REMOVE {name}"
        with suppress(ConditionFailed):
            await self._table.update({"pk": _pk(take)}, update, ex, condition=f"attribute_exists({name})")

    async def _without_expired(self, pk: str, item: Plain, now: int) -> int:
        """The item's sum without the holds whose holders died; those are released."""
        if expired := _expired(item, now):
            await self._release(pk, expired)
        return int(item.get("n", 0)) - sum(amount for amount, _ in map(_hold, expired.values()))

    async def _release(self, pk: str, holds: Mapping[str, str]) -> int:
        """Free holds, each exactly as it was seen; how many this call freed."""
        freed, waiting = 0, list(holds.items())
        for at in range(0, len(waiting), RELEASE_AT_ONCE):
            some = waiting[at : at + RELEASE_AT_ONCE]
            ex = Expression()
            n = ex.name("n")
            total = sum(_hold(value)[0] for _, value in some)
            update = f"SET {n} = {n} - {ex.value(total)} REMOVE " + ", ".join(ex.name(name) for name, _ in some)
            condition = " AND ".join(f"{ex.name(name)} = {ex.value(value)}" for name, value in some)
            with suppress(ConditionFailed):  # someone else has met them, too
                await self._table.update({"pk": pk}, update, ex, condition=condition)
                freed += len(some)
        return freed

    async def sweep(self) -> int:
        """Release every expired hold in the table; how many there were. Admissions do it for what they meet, so this
        is for what nobody asks for any more. It reads the whole table."""
        freed, now = 0, self._now()
        async for item in self._table.scan():
            if item["pk"][:2] in ("b#", "c#") and (expired := _expired(item, now)):
                freed += await self._release(item["pk"], expired)
        return freed

    # -- floors and versions -------------------------------------------------------------------------------------

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        items = await self._table.get_many([{"pk": f"b#{key}"} for key in spent])
        await _all([self._raise_one(item["pk"][2:], spent[item["pk"][2:]], item) for item in items])

    async def _raise_one(self, key: str, spent: int, item: Plain) -> None:
        for _ in range(MAX_TRIES):
            if not item or item["spent"] >= spent:
                return
            ex = Expression()
            n, name = ex.name("n"), ex.name("spent")
            update = f"SET {n} = {n} + {ex.value(spent - item['spent'])}, {name} = {ex.value(spent)}"
            try:
                await self._table.update(
                    {"pk": f"b#{key}"}, update, ex, condition=f"{name} = {ex.value(item['spent'])}"
                )
            except ConditionFailed as failed:
                item = failed.item
                continue
            return
        raise StoreUnavailable(f"DynamoDB: a budget changes faster than {MAX_TRIES} tries")

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        wanted = {_tenant_version(tenant): version for tenant, version in (tenants or {}).items()}
        if policy:
            wanted[_POLICY_VERSION] = policy
        await _all([self._publish_one(pk, version) for pk, version in wanted.items()])

    async def _publish_one(self, pk: str, version: int) -> None:
        ex = Expression()
        v, new = ex.name("v"), ex.value(version)
        try:
            condition = f"attribute_not_exists({v}) OR {v} < {new}"
            await self._table.update({"pk": pk}, f"SET {v} = {new}", ex, condition=condition)
        except ConditionFailed as failed:
            version = failed.item["v"]
        self._versions.put(pk, (version, time.monotonic()))

    async def _newest(self, admission: Admission) -> tuple[int, int]:
        """The newest versions of the policy and of the tenant's record, as they were at most 5 s ago. Usually no IO;
        else it happens beside the admission, not before it."""
        wanted: list[str] = []
        if admission.policy_version:
            wanted.append(_POLICY_VERSION)
        if admission.tenant_version:
            wanted.append(_tenant_version(admission.tenant))
        now_s = time.monotonic()
        stale: list[Key] = [
            {"pk": pk} for pk in wanted if self._versions.get(pk, (0, -1e9))[1] < now_s - VERSIONS_FRESH_S
        ]
        if stale:
            found = {item["pk"]: item["v"] for item in await self._table.get_many(stale, consistent=False)}
            for key in stale:
                known = self._versions.get(key["pk"], (0, 0.0))[0]
                self._versions.put(key["pk"], (max(known, found.get(key["pk"], 0)), now_s))
        policy = self._versions.get(_POLICY_VERSION, (0, 0.0))[0]
        return policy, self._versions.get(_tenant_version(admission.tenant), (0, 0.0))[0]

    async def ping(self) -> None:
        await self._table.get({"pk": _POLICY_VERSION})

    async def aclose(self) -> None:
        """The client is its owner's."""

    def _now(self) -> int:
        if self._clock is not None:
            return self._clock()
        return time.time_ns() // 1000 + self._client.clock_offset_us


# -- names and shapes --------------------------------------------------------------------------------------------

_POLICY_VERSION = "v#policy"


def _tenant_version(tenant: str) -> str:
    return f"v#{digest(tenant)}"


def _marker(id: str) -> str:
    return f"h#{digest(id)}"


def _pk(take: Take) -> str:
    """The key of the item that counts `take`."""
    if isinstance(take, RateTake):
        return f"r#{take.subject}"
    return f"{'b' if isinstance(take, BudgetTake) else 'c'}#{take.key}"


def _attribute(take: Take) -> str:
    """The attribute of its subject's item that is this rate's TAT: ``:tokens.minute``, what the key adds to it."""
    return take.key.removeprefix(take.subject)


def _by_subject(takes: Sequence[Take]) -> dict[str, list[int]]:
    """Positions of the rates of each subject, narrowest scope first."""
    found: dict[str, list[int]] = {}
    rates = [i for i, take in enumerate(takes) if isinstance(take, RateTake)]
    for i in sorted(rates, key=lambda i: _SCOPES[takes[i].limit.scope]):
        found.setdefault(takes[i].subject, []).append(i)
    return found


def _kept_until(take: HoldTake, expiry_us: int) -> int | None:
    """Epoch seconds until which the take's item is of use; None: for ever."""
    if isinstance(take, SlotTake):
        return expiry_us // SECOND_US + DAY_S
    return None if take.limit.window is Window.LIFE else take.end_us // SECOND_US + BUDGET_KEPT_S


def _numbers(item: Plain) -> dict[str, int]:
    """The TATs of a subject's item."""
    return {name: value for name, value in item.items() if name not in ("pk", "ttl")}


def _clause(verb: str, terms: Sequence[str]) -> str:
    return f"{verb} {', '.join(terms)}" if terms else ""


def _hold(value: str) -> tuple[int, int]:
    """A hold's amount, and its expiry (µs)."""
    amount, _, expiry = value.partition(":")
    return int(amount), int(expiry)


def _expired(item: Plain, now: int) -> dict[str, str]:
    return {name: value for name, value in item.items() if name.startswith(_HOLD) and _hold(value)[1] <= now}


def _repeated(progress: _Progress, marker: Plain, answer: Decision) -> Decision:
    """The answer to an id that was admitted before: what it was granted then, and the limits as they are now."""
    granted: list[int] = json.loads(marker["g"])
    values = [
        (before or 0) + (0 if isinstance(take, RateTake) else held)
        for take, before, held in zip(progress.takes, progress.before, progress.granted, strict=True)
    ]
    answer.states = [State(value, amount) for value, amount in zip(values, granted, strict=True)]
    return answer


def _refused(progress: _Progress, marker: Plain, answer: Decision) -> Decision:
    """The answer when not everything was taken."""
    if marker and marker["e"] > progress.now:
        return _repeated(progress, marker, answer)
    if progress.cold:
        answer.status, answer.cold = Status.COLD, tuple(sorted(progress.cold))
    else:
        answer.status, answer.states = Status.REFUSED, progress.states(taken=False)
    return answer


async def _all(work: Iterable[Awaitable[Any]]) -> list[Any]:
    """Everything at once. All of it is over when this returns, or raises the first failure."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
