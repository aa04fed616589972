"""The items of the limits table, and the writes that move them. Pure: what to write, never writing it.

    s#<subject>         everything that is counted for one subject (a hot global one: `#<shard>/<shards>` more)
        r<rate>         a rate's TAT (µs)
        b<budget>       a budget's committed units (spent and held), in the window that its name ends with
        b<budget>:spent what of it is spent
        c<limit>        concurrency slots in use
        =<id>           what one request holds: "<expiry µs> <counter>=<amount> ..."
        ~<counter><s>   what requests hold together of a counter that expires at that epoch second
        k, q            how many `=` there are; until when (µs) there should be no more
        i0 .. if        the last writes of all ids that hash to there: when, and whose
    h#<id>              marker of an admitted request: e: expiry (µs), g: granted, w: where, n: which call, s: settler
    v#policy, v#<tenant>   v: newest version

Everything but the versions has a `ttl` in epoch seconds. What DynamoDB deletes then is unknown again: a rate is full
or half full, and a budget is loaded from the ledger.

An item must stay small, because a write costs its whole size, and an item gets 1,000 units (of 1 KB) a second. So a
request's hold stands alone only while there are few; after that it joins those that expire at about the same time,
and an item is about 1 KB however many requests are in flight.

Whose write it was is told by the request's own hold, or by its entry in `i0` to `if`. A lost reply is thereby found to
have been a charge, or found to have been none: the entry is older than the write. Where somebody else has taken the
entry meanwhile, nobody can tell, and it is not charged again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from tollgate.adapters.dynamodb import Plain, Write
from tollgate.domain.keys import digest
from tollgate.domain.limits import SECOND_US, Admission, BudgetTake, RateTake, SlotTake, State, Take, fits, grant
from tollgate.ports import StoreUnavailable

DAY_S = 86_400
BUDGET_KEPT_S = 40 * DAY_S
"""How long an item with budgets outlives its last write: longer than any window but a life's."""
SINGLE_HOLDS, SINGLE_CROWD = 16, 48
"""Requests of one subject whose holds stand alone, each until its own expiry. Who knows of the first number shares an
expiry with others instead; from the second on, nobody's hold stands alone for a while."""
CROWDED_US = 60 * SECOND_US
"""That while."""
IDS = 16
"""Entries for whose writes an item has seen."""
IDS_COUNT_US = 10 * SECOND_US
"""For how long an entry means that its id need not be charged again."""
CLOCKS_DIFFER_US = 2 * SECOND_US
"""By how much two containers may disagree on the time of DynamoDB."""
EXACT_TRIES = 3
"""Tries of a write that take as much as fits."""
RELEASED_AT_ONCE = 24
"""Expired holds that one write releases: DynamoDB's expressions are limited."""

POLICY_VERSION = "v#policy"
HoldTake = BudgetTake | SlotTake


# -- names -------------------------------------------------------------------------------------------------------


def tenant_version(tenant: str) -> str:
    return f"v#{digest(tenant)}"


def marker_key(id: str) -> str:
    return f"h#{digest(id)}"


def subject_key(subject: str, shard: int = 0, shards: int = 1) -> str:
    return f"s#{subject}#{shard}/{shards}" if shards > 1 else f"s#{subject}"


def counter(take: Take) -> str:
    """The attribute of its subject's item that counts `take`."""
    return take.kind + take.key.removeprefix(take.subject)


def budget_counter(key: str) -> tuple[str, str]:
    """The item and the attribute of a budget's key, ``{…}u…:b:tokens.day:2026-11-21``."""
    subject, _, what = key.rpartition(":b:")
    return subject_key(subject), f"b:b:{what}"


def budget_keys(item: Plain) -> list[str]:
    """The keys of the budgets that an item of the table has loaded."""
    subject = item["pk"].removeprefix("s#") if str(item.get("pk", "")).startswith("s#") else ""
    names = [name for name in item if name.startswith("b:b:") and name.endswith(":spent")] if subject else []
    return [subject + name[1:].removesuffix(":spent") for name in names]


def _spent(name: str) -> str:
    return f"{name}:spent"


def _alias(name: str) -> str:
    """A counter in the names of its holds: short, because there are many."""
    return _short(name, 5)


def _short(text: str, length: int) -> str:
    return digest(text)[:length]


def single(id: str) -> str:
    """The hold of one request."""
    return f"={_short(id, 8)}"


def shared(admission: Admission, now: int) -> int:
    """When a shared hold expires (epoch seconds): never before the request's own, and a quarter of its life (and
    a second) later at most."""
    grain_s = 1 << (admission.expires_us // (8 * SECOND_US)).bit_length()
    return -(-(now + admission.expires_us) // (grain_s * SECOND_US)) * grain_s


# -- reading -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Item:
    """A subject's item as somebody saw it. Raises `StoreUnavailable` for what nobody of us can have written."""

    numbers: dict[str, int] = field(default_factory=dict)
    """TATs, counters, `k`, `q` and `ttl`."""
    holds: dict[str, Hold] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, plain: Plain) -> Item:
        item = cls()
        for name, value in plain.items():
            if name[:1] in _HOLD:
                item.holds[name] = Hold.read(name, value)
            elif type(value) is int:
                item.numbers[name] = value
            elif isinstance(value, str) and name[0] == "i":
                item.ids[name] = value
            elif name != "pk":
                raise _foreign(name)
        return item

    def expired(self, now: int) -> dict[str, Hold]:
        """The holds whose holders died."""
        return {name: hold for name, hold in self.holds.items() if hold.expiry_us <= now}

    def gist(self) -> Item:
        """What the next guess needs; without what makes items large."""
        return Item(self.numbers)

    def lonely(self, now: int) -> bool:
        """Whether a hold may stand alone."""
        return self.numbers.get("k", 0) < SINGLE_HOLDS and self.numbers.get("q", 0) <= now

    def has(self, id: str, now: int) -> bool:
        """Whether `id` has written here."""
        entry = self.ids.get(_entry(id), "")
        return single(id) in self.holds or (entry.endswith(_mark(id)) and entry >= _moment(now - IDS_COUNT_US))

    def has_not(self, id: str, since_us: int) -> bool:
        """Whether `id`, not found here, has certainly not written since `since_us` (but a hold of its own)."""
        return self.ids.get(_entry(id), "") < _moment(since_us - CLOCKS_DIFFER_US)


_HOLD = ("=", "~")


@dataclass(frozen=True, slots=True)
class Hold:
    """Amounts of some counters (by their short names), until they are settled or expire."""

    written: int | str
    expiry_us: int
    amounts: Mapping[str, int]

    @classmethod
    def read(cls, name: str, value: object) -> Hold:
        try:
            if name[0] == "=" and isinstance(value, str):
                expiry, *amounts = value.split(" ")
                pairs = (amount.rpartition("=") for amount in amounts)
                return cls(value, int(expiry), {alias: int(amount) for alias, _, amount in pairs})
            if name[0] == "~" and type(value) is int:
                return cls(value, int(name[6:]) * SECOND_US, {name[1:6]: value})
        except ValueError:
            pass
        raise _foreign(name)


def _foreign(name: str) -> StoreUnavailable:
    return StoreUnavailable(f"DynamoDB: an item's {name!r} is not what Tollgate writes there")


@dataclass(frozen=True, slots=True)
class Unknown:
    """How a rate starts that the store does not know: full, or (`half`) half empty. Unknown is also what was last
    taken from before `since_us`: the store has not been asked since."""

    half: bool = False
    since_us: int = 0

    def tat(self, take: RateTake, stored: int | None, now: int) -> tuple[int, bool]:
        """The TAT that decides, and whether it is known."""
        if not self.half:
            return stored or 0, True
        if stored is None or stored < self.since_us:
            return now + take.limit.burst_us // 2, False
        return stored, True


# -- one subject's part of one admission -------------------------------------------------------------------------


@dataclass(slots=True)
class Part:
    """What one admission takes from one item, in one write. The lists are parallel."""

    pk: str
    places: list[int]
    """Positions among the admission's takes."""
    takes: list[Take]
    shards: int = 1
    seen: Item | None = None
    """The item without what this admission takes; None: not looked at."""
    values: list[int] = field(default_factory=list)
    """TATs, committed units and slots in use, as `seen` or after taking."""
    granted: list[int] = field(default_factory=list)
    """What is taken; empty: nothing."""
    own: bool = False
    """Whether this call took it; an earlier one may have, whose reply was lost."""
    expiry_s: int = 0
    """When the holds expire that it shares; 0: its hold is its own."""

    @property
    def holding(self) -> bool:
        return any(not isinstance(take, RateTake) for take in self.takes)

    def value(self, take: Take, item: Item, unknown: Unknown, now: int) -> int:
        """TAT, committed units or slots in use; expired holds do not count."""
        stored = item.numbers.get(counter(take))
        if isinstance(take, RateTake):
            return unknown.tat(take, stored, now)[0]
        alias = _alias(counter(take))
        return (stored or 0) - sum(hold.amounts.get(alias, 0) for hold in item.expired(now).values())

    def look(self, item: Item, unknown: Unknown, now: int) -> None:
        self.seen = item
        self.values = [self.value(take, item, unknown, now) for take in self.takes]

    def found_taken(self, id: str, item: Item, unknown: Unknown, now: int) -> None:
        """Another call of the same id has taken this part: what its hold says, and the least of the rest."""
        self.look(item, unknown, now)
        self.granted = [least(take) for take in self.takes]
        if hold := item.holds.get(single(id)):
            self.expiry_s = 0
            pairs = zip(self.takes, self.granted, strict=True)
            self.granted = [hold.amounts.get(_alias(counter(take)), amount) for take, amount in pairs]

    def cold(self) -> list[int]:
        """The budgets that nobody has loaded, by their positions in the admission; only after `look`."""
        numbers = self.seen.numbers if self.seen is not None else {}
        return [
            i
            for i, take in zip(self.places, self.takes, strict=True)
            if isinstance(take, BudgetTake) and counter(take) not in numbers
        ]

    def fits(self, now: int) -> bool:
        return all(fits(t, State(v), now) for t, v in zip(self.takes, self.values, strict=True))

    def grants(self, now: int, tries: int) -> list[int]:
        """What to take of each limit: at first all that can ever fit (no cost shrinks for what is only guessed), then
        what fits the item as it was seen, and at last the least that is needed, which others disturb less."""
        if not tries:
            return [grant(take, State(0), now) for take in self.takes]
        pairs = zip(self.takes, self.values, strict=True)
        return [grant(t, State(v), now) if tries < EXACT_TRIES else least(t) for t, v in pairs]

    def kept_s(self, now: int) -> int:
        """Epoch seconds until which the item is of use once this is taken."""
        if any(isinstance(take, BudgetTake) for take in self.takes):
            return now // SECOND_US + BUDGET_KEPT_S
        refilled_us = now + max((take.limit.burst_us for take in self.takes if isinstance(take, RateTake)), default=0)
        return refilled_us // SECOND_US + 2 * DAY_S


def least(take: Take) -> int:
    """The least that a take needs: microseconds of TAT, units, or one slot."""
    if isinstance(take, RateTake):
        return take.floor_us
    return take.floor if isinstance(take, BudgetTake) else 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where one part of an admitted request was taken."""

    pk: str
    shards: int
    expiry_s: int
    own: bool
    """Whether the admission took it itself, rather than finding it taken by a call of the same id."""


@dataclass(frozen=True, slots=True)
class Marker:
    """An admitted request. Raises `StoreUnavailable` for what nobody of us can have written."""

    expiry_us: int
    granted: list[int]
    places: list[Place]
    call: str
    """Which call admitted it."""
    settler: str = ""
    """Which call has settled it, if one has."""

    @classmethod
    def read(cls, plain: Plain) -> Marker:
        try:
            granted, places = json.loads(plain["g"]), [Place(*place) for place in json.loads(plain["w"])]
            return cls(int(plain["e"]), [int(amount) for amount in granted], places, plain["n"], plain.get("s", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreUnavailable(f"DynamoDB: {plain.get('pk')} is not a marker that Tollgate wrote") from error

    def plain(self, pk: str) -> Plain:
        places = [[place.pk, place.shards, place.expiry_s, place.own] for place in self.places]
        return {
            "pk": pk,
            "e": self.expiry_us,
            "g": json.dumps(self.granted, separators=(",", ":")),
            "w": json.dumps(places, separators=(",", ":")),
            "n": self.call,
            "ttl": self.expiry_us // SECOND_US + DAY_S,
        }


# -- whose write it was ------------------------------------------------------------------------------------------


def _entry(id: str) -> str:
    return f"i{blake2b(id.encode('utf-8', 'surrogatepass'), digest_size=1).digest()[0] % IDS:x}"


def _mark(id: str) -> str:
    return _short(id, 6)


def _moment(us: int) -> str:
    """Milliseconds, as text in the order of time."""
    return f"{us // 1000:011x}"


def mark(write: Write, id: str, now: int, since_us: int | None) -> None:
    """Have the item remember that `id` has written, and refuse the second time. `since_us`: since when it may have
    written, with the reply lost: now it only may if it certainly has not."""
    entry = write.name(_entry(id))
    if since_us is None:
        mine, old = write.value(_mark(id)), write.value(_moment(now - IDS_COUNT_US))
        write.conditions.append(f"(NOT contains({entry}, {mine}) OR {entry} < {old})")
    else:
        before = write.value(_moment(since_us - CLOCKS_DIFFER_US))
        write.conditions.append(f"(attribute_not_exists({entry}) OR {entry} < {before})")
        write.conditions.append(f"attribute_not_exists({write.name(single(id))})")
    write.sets.append(f"{entry} = {write.value(_moment(now) + _mark(id))}")


def forget(write: Write, id: str, now: int) -> None:
    """What `id` took is given back, and may be taken again. (Others find the entry taken, not free.)"""
    write.sets.append(f"{write.name(_entry(id))} = {write.value(_moment(now))}")


# -- writes ------------------------------------------------------------------------------------------------------


def take_part(part: Part, admission: Admission, guess: Item, granted: list[int], unknown: Unknown, now: int) -> Write:
    """Take `granted` of all limits of a subject, in the branches that the TATs of `guess` stand for."""
    write, held = Write(), dict[str, int]()
    for take, amount in zip(part.takes, granted, strict=True):
        name = counter(take)
        attribute = write.name(name)
        if isinstance(take, RateTake):
            _take_rate(write, attribute, take, amount, guess.numbers.get(name), unknown, now)
            continue
        room = f"{attribute} <= {write.value(take.limit.amount - amount)}"
        if isinstance(take, SlotTake):
            write.conditions.append(f"(attribute_not_exists({attribute}) OR {room})")
            write.sets.append(f"{attribute} = if_not_exists({attribute}, {write.value(0)}) + {write.value(amount)}")
        else:
            write.conditions.append(room)
            write.sets.append(f"{attribute} = {attribute} + {write.value(amount)}")
        held[_alias(name)] = amount
    if held and part.expiry_s:
        for alias, amount in held.items():
            hold = write.name(f"~{alias}{part.expiry_s}")
            write.sets.append(f"{hold} = if_not_exists({hold}, {write.value(0)}) + {write.value(amount)}")
        if guess.numbers.get("k", 0) >= SINGLE_CROWD:
            write.sets.append(f"{write.name('q')} = {write.value(now + CROWDED_US)}")
    elif held:
        _hold_alone(write, admission, held, now)
    write.sets.append(f"{write.name('ttl')} = {write.value(part.kept_s(now))}")
    return write


def _hold_alone(write: Write, admission: Admission, held: Mapping[str, int], now: int) -> None:
    """One hold for all that a request holds here; it also tells that the request has written."""
    text = " ".join([str(now + admission.expires_us), *(f"{alias}={amount}" for alias, amount in held.items())])
    hold, k, q = write.name(single(admission.id)), write.name("k"), write.name("q")
    write.conditions += [
        f"attribute_not_exists({hold})",
        f"(attribute_not_exists({k}) OR {k} < {write.value(SINGLE_CROWD)})",
        f"(attribute_not_exists({q}) OR {q} <= {write.value(now)})",
    ]
    write.sets += [
        f"{hold} = {write.value(text)}",
        f"{k} = if_not_exists({k}, {write.value(0)}) + {write.value(1)}",
    ]


def _take_rate(
    write: Write, tat: str, take: RateTake, amount: int, stored: int | None, unknown: Unknown, now: int
) -> None:
    value, known = unknown.tat(take, stored, now)
    if not known and value + amount <= now + take.limit.burst_us:
        write.conditions.append(f"(attribute_not_exists({tat}) OR {tat} < {write.value(unknown.since_us)})")
        write.sets.append(f"{tat} = {write.value(value + amount)}")
    elif known and value > now:
        write.conditions.append(
            f"{tat} BETWEEN {write.value(now)} AND {write.value(now + take.limit.burst_us - amount)}"
        )
        write.sets.append(f"{tat} = {tat} + {write.value(amount)}")
    elif unknown.half:
        write.conditions.append(f"{tat} BETWEEN {write.value(min(unknown.since_us, now))} AND {write.value(now)}")
        write.sets.append(f"{tat} = {write.value(now + amount)}")
    else:
        write.conditions.append(f"(attribute_not_exists({tat}) OR {tat} <= {write.value(now)})")
        write.sets.append(f"{tat} = {write.value(now + amount)}")


def start_half(part: Part, unknown: Unknown, now: int) -> Write | None:
    """Have unknown rates start now: a refusal that left them unknown would keep them half empty for ever."""
    write, numbers = Write(), part.seen.numbers if part.seen is not None else {}
    for take in part.takes:
        if not isinstance(take, RateTake):
            continue
        value, known = unknown.tat(take, numbers.get(counter(take)), now)
        if not known:
            tat = write.name(counter(take))
            write.conditions.append(f"(attribute_not_exists({tat}) OR {tat} < {write.value(unknown.since_us)})")
            write.sets.append(f"{tat} = {write.value(value)}")
    if not write.sets:
        return None
    write.sets.append(f"{write.name('ttl')} = {write.value(part.kept_s(now))}")
    return write


@dataclass(slots=True)
class Move:
    """What a settlement, or giving back, moves in one item."""

    single: str
    """The request's own hold, if it has one."""
    expiry_s: int
    """When its shared holds expire; 0: it has its own."""
    rates: dict[str, int] = field(default_factory=dict)
    """By how much each TAT moves (µs): negative gives back, positive is debt."""
    holds: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Counter -> (held, used)."""

    @property
    def tells(self) -> bool:
        """Whether it shows in the item that it was done: by the request's own hold, which is gone then."""
        return bool(self.holds) and not self.expiry_s

    def hold(self, name: str) -> str:
        return f"~{_alias(name)}{self.expiry_s}" if self.expiry_s else self.single

    def possible(self, item: Item) -> Move:
        """What of it can be done: rates and holds that are gone stay gone."""
        rates = {name: delta for name, delta in self.rates.items() if name in item.numbers}
        holds = {n: pair for n, pair in self.holds.items() if n in item.numbers and self.hold(n) in item.holds}
        return Move(self.single, self.expiry_s, rates, holds)

    def write(self, guess: Item, now: int) -> Write | None:
        """A give-back is taken off as it is, a debt is taken from now on. No rate is created."""
        write = Write()
        for name, delta in self.rates.items():
            tat = write.name(name)
            if delta < 0:
                write.conditions.append(f"attribute_exists({tat})")
                write.sets.append(f"{tat} = {tat} + {write.value(delta)}")
            elif delta and guess.numbers.get(name, 0) > now:
                write.conditions.append(f"{tat} >= {write.value(now)}")
                write.sets.append(f"{tat} = {tat} + {write.value(delta)}")
            elif delta:
                write.conditions.append(f"{tat} <= {write.value(now)}")
                write.sets.append(f"{tat} = {write.value(now + delta)}")
        for name, (held, used) in self.holds.items():
            n, hold = write.name(name), write.name(self.hold(name))
            write.sets.append(f"{n} = {n} + {write.value(used - held)}")
            if name.startswith("b") and used:
                write.sets.append(f"{write.name(_spent(name))} = {write.name(_spent(name))} + {write.value(used)}")
            if self.expiry_s:
                write.conditions.append(f"{hold} >= {write.value(held)}")
                write.sets.append(f"{hold} = {hold} - {write.value(held)}")
        if self.tells:
            hold = write.name(self.single)
            write.conditions.append(f"attribute_exists({hold})")
            write.removes.append(hold)
            write.sets.append(f"{write.name('k')} = {write.name('k')} - {write.value(1)}")
        return write if write.sets else None


def settling(part: Part, id: str, used: list[int | None]) -> Move:
    """Replace what a part holds by what was used; its takes are those of the whole limits."""
    move = Move(single(id), part.expiry_s)
    for take, held, amount in zip(part.takes, part.granted, used, strict=True):
        if not isinstance(take, RateTake):
            move.holds[counter(take)] = (held, amount or 0 if isinstance(take, BudgetTake) else 0)
        elif amount is not None:
            move.rates[counter(take)] = take.limit.inc_us(amount) * part.shards - held
    return move


def giving_back(part: Part, id: str) -> Move:
    move = settling(part, id, [None if isinstance(take, RateTake) else 0 for take in part.takes])
    for take, held in zip(part.takes, part.granted, strict=True):
        if isinstance(take, RateTake):
            move.rates[counter(take)] = -held
    return move


def release(item: Item, now: int) -> Write | None:
    """Free some of the expired holds, each exactly as it was seen."""
    write, freed = Write(), dict[str, int]()
    expired = list(item.expired(now).items())[:RELEASED_AT_ONCE]
    for name, hold in expired:
        attribute = write.name(name)
        write.conditions.append(f"{attribute} = {write.value(hold.written)}")
        write.removes.append(attribute)
        for alias, amount in hold.amounts.items():
            freed[alias] = freed.get(alias, 0) + amount
    for name in item.numbers:
        if name[0] in "bc" and not name.endswith(":spent") and (amount := freed.get(_alias(name), 0)):
            write.sets.append(f"{write.name(name)} = {write.name(name)} - {write.value(amount)}")
    if singles := sum(name.startswith("=") for name, _ in expired):
        write.sets.append(f"{write.name('k')} = {write.name('k')} - {write.value(singles)}")
    return write if expired else None


def seeds(part: Part) -> dict[str, int]:
    """What is known of its rates (TAT) and budgets (spent) elsewhere."""
    found: dict[str, int] = {}
    for take in part.takes:
        if isinstance(take, RateTake) and take.seed_us:
            found[counter(take)] = take.seed_us
        elif isinstance(take, BudgetTake) and take.seed is not None:
            found[counter(take)] = take.seed
    return found


def seed(part: Part, now: int) -> Write | None:
    """Create rates and budgets with what is known of them elsewhere."""
    write = Write()
    for name, value in seeds(part).items():
        for attribute in (name, _spent(name)) if name.startswith("b") else (name,):
            short = write.name(attribute)
            write.sets.append(f"{short} = if_not_exists({short}, {write.value(value)})")
    if not write.sets:
        return None
    write.sets.append(f"{write.name('ttl')} = {write.value(part.kept_s(now))}")
    return write


def outdated(part: Part, item: Item) -> Write | None:
    """Remove the budgets of the windows before the last one; nobody asks for them any more."""
    write = Write()
    for take in part.takes:
        if not isinstance(take, BudgetTake):
            continue
        what = counter(take).removesuffix(take.label)
        last = take.limit.window.bounds(max(0, take.start_us - 1))[0]
        for name in item.numbers:
            label = name.removeprefix(what).removesuffix(":spent")
            if name.startswith(what) and len(label) == len(last) and label < last:
                write.removes.append(write.name(name))
    return write if write.removes else None


def raise_to(item: Item, wanted: Mapping[str, int]) -> Write | None:
    """Raise TATs, and what budgets have spent, to at least `wanted`; from what they are in `item`, none is created."""
    write = Write()
    for name, value in wanted.items():
        key = _spent(name) if name.startswith("b") else name
        known = item.numbers.get(key)
        if known is None or known >= value:
            continue
        attribute = write.name(key)
        write.conditions.append(f"{attribute} = {write.value(known)}")
        write.sets.append(f"{attribute} = {write.value(value)}")
        if key != name:
            write.sets.append(f"{write.name(name)} = {write.name(name)} + {write.value(value - known)}")
    return write if write.sets else None


def version(plain: Plain) -> int:
    found = plain.get("v")
    if type(found) is not int:
        raise StoreUnavailable(f"DynamoDB: {plain.get('pk')} has no version")
    return found


def newer_version(version: int) -> Write:
    write = Write()
    v, new = write.name("v"), write.value(version)
    write.conditions.append(f"(attribute_not_exists({v}) OR {v} < {new})")
    write.sets.append(f"{v} = {new}")
    return write


def keep_until(ttl_s: int) -> Write:
    write = Write()
    write.sets.append(f"{write.name('ttl')} = {write.value(ttl_s)}")
    return write
