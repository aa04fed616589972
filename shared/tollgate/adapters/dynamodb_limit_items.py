"""The items of the limits table, and the writes that move them. Pure: what to write, never writing it.

`ttl` in epoch seconds, everywhere but in budgets for life and in versions:

    r#<subject>       one TAT (µs) per rate
    b#<key>           n: committed = spent + holds; spent; h:<id>: "<amount>:<expiry µs>" per hold
    c#<key>           n: slots in use; h:<id> likewise
    h#<id>            marker of an admitted request: e: expiry (µs); g: what each take was granted
    v#policy, v#<tenant>   v: newest version
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tollgate.adapters.dynamodb import Plain, Write
from tollgate.domain.keys import digest
from tollgate.domain.limits import (
    SECOND_US,
    Admission,
    BudgetTake,
    RateTake,
    Scope,
    SlotTake,
    State,
    Take,
    Window,
)

DAY_S = 86_400
BUDGET_KEPT_S = 40 * DAY_S
"""How long a budget outlives its window: until no settlement and no floor can ask for it any more."""

POLICY_VERSION = "v#policy"
HoldTake = BudgetTake | SlotTake
_HOLD = "h:"
_SCOPES = {scope: i for i, scope in enumerate(Scope)}


# -- names -------------------------------------------------------------------------------------------------------


def tenant_version(tenant: str) -> str:
    return f"v#{digest(tenant)}"


def marker_key(id: str) -> str:
    return f"h#{digest(id)}"


def hold_name(id: str) -> str:
    """The attribute that holds a request in budgets and slots."""
    return _HOLD + digest(id)


def item_key(take: Take) -> str:
    """The key of the item that counts `take`."""
    if isinstance(take, RateTake):
        return f"r#{take.subject}"
    return f"{'b' if isinstance(take, BudgetTake) else 'c'}#{take.key}"


def tat_name(take: Take) -> str:
    """The attribute of its subject's item that is this rate's TAT: what its key adds to the subject's."""
    return take.key.removeprefix(take.subject)


# -- reading -----------------------------------------------------------------------------------------------------


def tats(item: Plain) -> dict[str, int]:
    """The TATs in a subject's item."""
    return {name: value for name, value in item.items() if name not in ("pk", "ttl")}


def hold(value: str) -> tuple[int, int]:
    """A hold's amount, and its expiry (µs)."""
    amount, _, expiry = value.partition(":")
    return int(amount), int(expiry)


def expired_holds(item: Plain, now: int) -> dict[str, str]:
    """The holds whose holders died, as they are written."""
    return {name: value for name, value in item.items() if name.startswith(_HOLD) and hold(value)[1] <= now}


def in_use(item: Plain, now: int) -> int:
    """Committed units, or slots in use, without what has expired."""
    return int(item.get("n", 0)) - sum(hold(value)[0] for value in expired_holds(item, now).values())


def kept_until(take: HoldTake, expiry_us: int) -> int | None:
    """Epoch seconds until which the take's item is of use; None: for ever."""
    if isinstance(take, SlotTake):
        return expiry_us // SECOND_US + DAY_S
    return None if take.limit.window is Window.LIFE else take.end_us // SECOND_US + BUDGET_KEPT_S


# -- one admission -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Progress:
    """How far one admission has come. The lists are parallel to its takes."""

    takes: Sequence[Take]
    now: int
    expiry: int
    hold: str
    before: list[int | None]
    """TAT, committed or slots before this admission took anything; None: not looked at."""
    granted: list[int]
    own: list[bool]
    """Whether this call took it. (A hold may be there already, from a call whose answer was lost.)"""
    cold: set[int]

    @classmethod
    def of(cls, admission: Admission, now: int) -> Progress:
        n = len(admission.takes)
        expiry = now + admission.expires_us
        return cls(admission.takes, now, expiry, hold_name(admission.id), [None] * n, [0] * n, [False] * n, set())

    def rates(self) -> dict[str, dict[int, RateTake]]:
        """The rates of each subject by their position, narrowest scope first."""
        found: dict[str, dict[int, RateTake]] = {}
        for i, take in sorted(enumerate(self.takes), key=lambda pair: _SCOPES[pair[1].limit.scope]):
            if isinstance(take, RateTake):
                found.setdefault(item_key(take), {})[i] = take
        return found

    def after(self, i: int) -> int:
        """TAT, committed or slots once this admission has taken."""
        before = self.before[i] or 0
        return (max(before, self.now) if isinstance(self.takes[i], RateTake) else before) + self.granted[i]

    def taken(self) -> list[State]:
        return [State(self.after(i), granted) for i, granted in enumerate(self.granted)]

    def untouched(self) -> list[State]:
        return [State(before or 0) for before in self.before]

    def repeated(self, granted: Sequence[int]) -> list[State]:
        """For an id that was admitted before: what it was granted then, and the limits as they are now."""
        values = [
            (before or 0) if isinstance(take, RateTake) else self.after(i)
            for i, (take, before) in enumerate(zip(self.takes, self.before, strict=True))
        ]
        return [State(value, amount) for value, amount in zip(values, granted, strict=True)]


# -- writes ------------------------------------------------------------------------------------------------------


def take_rates(takes: Mapping[int, RateTake], seen: Mapping[int, int], granted: Mapping[int, int], now: int) -> Write:
    """Take from all rates of a subject, in the branches that the TATs `seen` stand for."""
    write = Write()
    for i, take in takes.items():
        tat = write.name(tat_name(take))
        if seen[i] > now:
            latest = now + take.limit.burst_us - granted[i]
            write.conditions.append(f"{tat} BETWEEN {write.value(now)} AND {write.value(latest)}")
            write.sets.append(f"{tat} = {tat} + {write.value(granted[i])}")
        else:
            write.conditions.append(f"(attribute_not_exists({tat}) OR {tat} <= {write.value(now)})")
            write.sets.append(f"{tat} = {write.value(now + granted[i])}")
    kept = (now + max(take.limit.burst_us for take in takes.values())) // SECOND_US + DAY_S
    write.sets.append(f"{write.name('ttl')} = {write.value(kept)}")
    return write


def restore_rates(progress: Progress, indexes: Iterable[int]) -> Write:
    """Put a subject's TATs back to what they were, if nobody has moved them since."""
    write = Write()
    for i in indexes:
        tat = write.name(tat_name(progress.takes[i]))
        write.conditions.append(f"{tat} = {write.value(progress.after(i))}")
        if before := progress.before[i]:
            write.sets.append(f"{tat} = {write.value(before)}")
        else:
            write.removes.append(tat)
    return write


def move_rates(moves: Mapping[str, int], seen: Mapping[str, int], now: int) -> Write:
    """Add to TATs: a give-back (negative) as it is, a debt from now on. None is created."""
    write = Write()
    for name, delta in moves.items():
        tat = write.name(name)
        if delta < 0:
            write.conditions.append(f"attribute_exists({tat})")
            write.sets.append(f"{tat} = {tat} + {write.value(delta)}")
        elif seen.get(name, 0) > now:
            write.conditions.append(f"{tat} >= {write.value(now)}")
            write.sets.append(f"{tat} = {tat} + {write.value(delta)}")
        else:
            write.conditions.append(f"{tat} <= {write.value(now)}")
            write.sets.append(f"{tat} = {write.value(now + delta)}")
    return write


def take_hold(take: HoldTake, granted: int, name: str, expiry_us: int) -> Write:
    """Hold `granted` of a budget that exists, or a slot; once per name."""
    write = Write()
    n, held = write.name("n"), write.name(name)
    room = f"{n} <= {write.value(take.limit.amount - granted)}"
    write.conditions += [
        f"(attribute_not_exists({n}) OR {room})" if isinstance(take, SlotTake) else room,
        f"attribute_not_exists({held})",
    ]
    write.sets.append(f"{n} = if_not_exists({n}, {write.value(0)}) + {write.value(granted)}")
    write.sets.append(f"{held} = {write.value(f'{granted}:{expiry_us}')}")
    if (kept := kept_until(take, expiry_us)) is not None:
        write.sets.append(f"{write.name('ttl')} = {write.value(kept)}")
    return write


def release(holds: Mapping[str, str]) -> Write:
    """Free holds, each exactly as it was seen."""
    write = Write()
    n = write.name("n")
    write.sets.append(f"{n} = {n} - {write.value(sum(hold(value)[0] for value in holds.values()))}")
    for name, value in holds.items():
        write.removes.append(write.name(name))
        write.conditions.append(f"{write.name(name)} = {write.value(value)}")
    return write


def spend(name: str, held: int, used: int) -> Write:
    """Replace a hold by what was used."""
    write = Write()
    n, spent = write.name("n"), write.name("spent")
    write.conditions.append(f"attribute_exists({write.name(name)})")
    write.sets += [f"{n} = {n} + {write.value(used - held)}", f"{spent} = {spent} + {write.value(used)}"]
    write.removes.append(write.name(name))
    return write


def raise_spent(item: Plain, spent: int) -> Write:
    """Raise what is spent from what it is in `item`."""
    write = Write()
    n, name = write.name("n"), write.name("spent")
    write.conditions.append(f"{name} = {write.value(item['spent'])}")
    write.sets += [f"{n} = {n} + {write.value(spent - item['spent'])}", f"{name} = {write.value(spent)}"]
    return write


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
