"""The items of the limits table, and the writes that move them. Pure: what to write, never writing it.

    s#<subject>         everything that is counted for one subject (what everyone shares, if hot: and `#1`, `#2` ...)
        r<rate>         a rate's TAT (µs)
        b<budget>       a budget's committed units (spent and held), in the window that its name ends with
        b<budget>:spent what of it is spent
        c<limit>        concurrency slots in use
        =<id>           what one request holds: "<expiry µs> <counter>=<amount> ..."
        ~<counter><s>   what requests hold together of a counter that expires at that epoch second
        k, q            how many `=` there are; until when (µs) there should be no more
        i0 .. if        the last writes of all ids that hash to there: when, and whose
        j<window>       whose writes there were in those seconds, of containers that have just lost a reply
    h#<id>              marker of an admitted request: e: expiry (µs), g: granted, w: where, n: which call, s: settler
    v#policy, v#<tenant>   v: newest version

Everything but the versions has a `ttl` in epoch seconds. What DynamoDB deletes then is unknown again: a rate is full
or half full, and a budget is loaded from the ledger.

An item must stay small, because a write costs its whole size, and an item gets 1,000 units (of 1 KB) a second. So a
request's hold stands alone only while there are few; after that it joins those that expire at about the same time,
and an item is about 1 KB however many requests are in flight.

Whose write it was is told by the request's own hold, or by its entry in `i0` to `if`. A lost reply is thereby found to
have been a charge, or found to have been none: the entry is older than the write. Where somebody else has taken the
entry meanwhile, nobody can tell, and it is not charged again. Who has lost a reply expects to lose more, and for a
while is told among those of the same seconds, whose place nobody takes. Some seconds later they are removed; but a busy
item has a few KB of them, so nobody else is told there.

Not told is a write that arrives only after it was made again, if it takes rates only and somebody else has taken its
entry in between: it charges twice. (A hold of its own tells, and when that is settled the entry of the second write.)
For that a connection has to break while its request is still on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from hashlib import blake2b

from tollgate.adapters.dynamodb import Plain, Unsure, Write
from tollgate.domain.dataclass import dataclass
from tollgate.domain.keys import digest
from tollgate.domain.limits import SECOND_US, Admission, Take, hold_expiry_us
from tollgate.ports import StoreUnavailable

DAY_S = 86_400
SINGLE_HOLDS, SINGLE_CROWD = 16, 48
"""Requests of one subject whose holds stand alone, each until its own expiry. Who knows of the first number shares an
expiry with others instead, and has others do so for a while; from the second on, no further hold stands alone."""
CROWDED_US = 60 * SECOND_US
"""That while."""
IDS = 16
"""Entries for whose writes an item has seen."""
WINDOW_US = 2 * SECOND_US
"""How long the writes go on that are told together."""
WINDOW_TELLS_US, WINDOW_KEPT_US = 3 * SECOND_US, 10 * SECOND_US
"""How long after a write another may begin that asks for it there; and for how long they are kept: until that has timed
out, by whichever clock."""
MOST_IN_WINDOWS = 512
"""Of one item, some 4 KB; who sees as many leaves no more."""
TELLS_US = 30 * SECOND_US
"""For how long after a write its entry, or that there is none, tells whether it was done."""
IDS_COUNT_US = 10 * SECOND_US
"""For how long an entry means that its id need not be charged again."""
CLOCKS_DIFFER_US = 2 * SECOND_US
"""By how much two containers may disagree on the time of DynamoDB."""


# -- names -------------------------------------------------------------------------------------------------------


def subject_key(subject: str, shard: int = 0) -> str:
    return f"s#{subject}#{shard}" if shard else f"s#{subject}"


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


def spent_name(name: str) -> str:
    return f"{name}:spent"


def short_name(name: str) -> str:
    """A counter in the names of its holds: short, because there are many."""
    return _short(name, 5)


def _short(text: str, length: int) -> str:
    return digest(text)[:length]


def single(id: str) -> str:
    """The hold of one request."""
    return f"={_short(id, 8)}"


def shared(admission: Admission, now: int) -> int:
    """When a shared hold expires (epoch seconds): never before one that stands alone, and three eighths of its life
    (and a second) later at most."""
    grain_s = 1 << (admission.expires_us // (8 * SECOND_US)).bit_length()
    return -(-hold_expiry_us(now, admission.expires_us) // (grain_s * SECOND_US)) * grain_s


# -- reading -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Item:
    """A subject's item as somebody saw it. Raises `StoreUnavailable` for what nobody of us can have written."""

    numbers: dict[str, int] = field(default_factory=dict)
    """TATs, counters, `k`, `q` and `ttl`."""
    holds: dict[str, Hold] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    windows: dict[str, frozenset[str]] = field(default_factory=dict)

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
            elif isinstance(value, frozenset) and _WINDOW.fullmatch(name):
                item.windows[name] = value
            elif name != "pk":
                raise _foreign(name)
        return item

    def expired(self, now: int) -> dict[str, Hold]:
        """The holds whose holders died."""
        return {name: hold for name, hold in self.holds.items() if hold.expiry_us <= now}

    def crowded(self, now: int) -> bool:
        """Whether a further hold should not stand alone."""
        return self.numbers.get("k", 0) >= SINGLE_HOLDS or self.numbers.get("q", 0) > now

    def has(self, mark: Mark, now: int) -> bool:
        """Whether whose mark it is has written here."""
        if mark.text in self.windows.get(mark.entry, ()):
            return True
        entry = self.ids.get(mark.entry, "")
        return single(mark.id) in self.holds or (entry.endswith(mark.text) and entry >= _moment(now - IDS_COUNT_US))

    def has_not(self, mark: Mark, since_us: int, now: int) -> bool:
        """Whether whose mark it is, not found here, has certainly not written since `since_us` (but a hold of its
        own)."""
        if mark.at_us:  # the write that brought the item here was not made too late
            return True
        if since_us < now - TELLS_US:
            return False
        return self.ids.get(mark.entry, "") < _moment(since_us - CLOCKS_DIFFER_US)

    @property
    def in_windows(self) -> int:
        """How many writes are told by their windows."""
        return sum(map(len, self.windows.values()))

    def outworn(self, now: int) -> list[str]:
        """Windows that nobody asks for any more."""
        last = _window(now - WINDOW_KEPT_US - WINDOW_US)
        return [name for name in self.windows if name < last]


_HOLD = ("=", "~")
_WINDOW = re.compile(r"j[0-9a-f]{9}")


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


# -- whose write it was ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """Who has written."""

    id: str
    at_us: int = 0
    """When it is left in a window; 0: in an entry."""

    @property
    def entry(self) -> str:
        if self.at_us:
            return _window(self.at_us)
        chance = blake2b(self.id.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0]
        return f"i{chance % IDS:x}"

    @property
    def text(self) -> str:
        return _short(self.id, 6)

    def leave(self, write: Write, now: int) -> None:
        """Have the item remember who has written, and refuse the second time."""
        self.ask(write, now)
        self._set(write, now)

    def ask(self, write: Write, now: int) -> None:
        """Refuse whose mark is there."""
        entry, mine = write.name(self.entry), write.value(self.text)
        if self.at_us:
            write.conditions.append(f"NOT contains({entry}, {mine})")
        else:
            old = write.value(_moment(now - IDS_COUNT_US))
            write.conditions.append(f"(NOT contains({entry}, {mine}) OR {entry} < {old})")

    def leave_unless(self, lost: Mark, since_us: int, write: Write, now: int) -> None:
        """The same, only if `lost`, whose reply was lost, has certainly not written since `since_us`."""
        entry = write.name(lost.entry)
        if lost.at_us:
            write.conditions.append(f"NOT contains({entry}, {write.value(lost.text)})")
        else:
            before = write.value(_moment(since_us - CLOCKS_DIFFER_US))
            write.conditions.append(f"(attribute_not_exists({entry}) OR {entry} < {before})")
        write.conditions.append(f"attribute_not_exists({write.name(single(lost.id))})")
        self._set(write, now)

    def _set(self, write: Write, now: int) -> None:
        if self.at_us:
            write.adds.append(f"{write.name(self.entry)} {write.value(frozenset({self.text}))}")
        else:
            write.sets.append(f"{write.name(self.entry)} = {write.value(_moment(now) + self.text)}")

    def lapsed(self, since_us: int, now: int) -> bool:
        """Whether a write that begins now would come too late to tell whether another did at `since_us`."""
        return self.at_us < now - WINDOW_TELLS_US if self.at_us else since_us < now - TELLS_US


def nobody_can_tell(what: str) -> Unsure:
    """`what`: charged or settled."""
    return Unsure(f"DynamoDB: nobody can tell whether this request has been {what}")


def _moment(us: int) -> str:
    """Milliseconds, as text in the order of time."""
    return f"{us // 1000:011x}"


def _window(us: int) -> str:
    """In the order of time."""
    return f"j{us // WINDOW_US:09x}"


def forget(write: Write, ids: Iterable[str], now: int, but: Mark | None = None) -> None:
    """What `ids` took is given back, and may be taken again. (Others find their entries taken, not free.) `but`: who
    marks this very write."""
    kept = {but.entry} if but is not None else set()
    for entry in sorted({Mark(id).entry for id in ids} - kept):
        write.sets.append(f"{write.name(entry)} = {write.value(_moment(now))}")
