"""The writes that take from an item and keep it in order: what to write, never writing it. Pure.

A rate has an idle branch (absent or in the past: set it to now + cost) and a busy one (between now and what still fits:
add the cost); each write asks for one of them, by its condition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tollgate.adapters.dynamodb import Write
from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import (
    CROWDED_US,
    SINGLE_CROWD,
    SINGLE_HOLDS,
    Item,
    counter,
    short_name,
    single,
    spent_name,
)
from tollgate.adapters.dynamodb_limit_parts import Part, Unknown
from tollgate.adapters.dynamodb_limit_plans import Plan, Sum
from tollgate.domain.limits import Admission, BudgetTake, RateTake, SlotTake, Take, hold_expiry_us

RELEASED_AT_ONCE = 24
"""Expired holds that one write releases: DynamoDB's expressions are limited."""


def take(plan: Plan, guess: Guess, unknown: Unknown, now: int) -> Write:
    """Take all that is planned, in the branches that `guess` stands for."""
    write = Write()
    for name, of in plan.sums.items():
        if isinstance(of.take, RateTake):
            _take_rate(write, name, of.take, of, guess, unknown, now)
            continue
        attribute = write.name(name)
        room = f"{attribute} <= {write.value(of.room)}"
        if isinstance(of.take, SlotTake):
            write.conditions.append(f"(attribute_not_exists({attribute}) OR {room})")
            write.sets.append(f"{attribute} = if_not_exists({attribute}, {write.value(0)}) + {write.value(of.amount)}")
        else:
            write.conditions.append(room)
            write.sets.append(f"{attribute} = {attribute} + {write.value(of.amount)}")
    if plan.alone:
        _hold_alone(write, plan.members[0].admission, {alias: amount for (alias, _), amount in plan.held.items()}, now)
    elif plan.held:
        for (alias, expiry_s), amount in plan.held.items():
            hold = write.name(f"~{alias}{expiry_s}")
            write.sets.append(f"{hold} = if_not_exists({hold}, {write.value(0)}) + {write.value(amount)}")
        if guess.item.numbers.get("k", 0) >= SINGLE_HOLDS:
            write.sets.append(f"{write.name('q')} = {write.value(now + CROWDED_US)}")
    write.sets.append(f"{write.name('ttl')} = {write.value(max(one.part.kept_s(now) for one in plan.members))}")
    return write


def _hold_alone(write: Write, admission: Admission, held: Mapping[str, int], now: int) -> None:
    """One hold for all that a request holds here; it also tells that the request has written."""
    text = " ".join(
        [str(hold_expiry_us(now, admission.expires_us)), *(f"{alias}={amount}" for alias, amount in held.items())]
    )
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


def _take_rate(write: Write, name: str, take: RateTake, of: Sum, guess: Guess, unknown: Unknown, now: int) -> None:
    tat, amount = write.name(name), of.amount
    value, known = unknown.tat(take, guess.item.numbers.get(name), now)
    if guess.busy(name, now):
        write.conditions.append(f"{tat} BETWEEN {write.value(now)} AND {write.value(of.room)}")
        write.sets.append(f"{tat} = {tat} + {write.value(amount)}")
    elif not known and value <= of.room:
        write.conditions.append(f"(attribute_not_exists({tat}) OR {tat} < {write.value(unknown.since_us)})")
        write.sets.append(f"{tat} = {write.value(value + amount)}")
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


def release(item: Item, now: int) -> Write | None:
    """Free some of the expired holds, each exactly as it was seen; and windows that nobody asks for."""
    write, freed = Write(), dict[str, int]()
    expired = list(item.expired(now).items())[:RELEASED_AT_ONCE]
    outworn = item.outworn(now)[: RELEASED_AT_ONCE - len(expired)]
    for name in outworn:
        write.conditions.append(f"attribute_exists({write.name(name)})")
        write.removes.append(write.name(name))
    for name, hold in expired:
        attribute = write.name(name)
        write.conditions.append(f"{attribute} = {write.value(hold.written)}")
        write.removes.append(attribute)
        for alias, amount in hold.amounts.items():
            freed[alias] = freed.get(alias, 0) + amount
    for name in item.numbers:
        if name[0] in "bc" and not name.endswith(":spent") and (amount := freed.get(short_name(name), 0)):
            write.sets.append(f"{write.name(name)} = {write.name(name)} - {write.value(amount)}")
    if singles := sum(name.startswith("=") for name, _ in expired):
        write.sets.append(f"{write.name('k')} = {write.name('k')} - {write.value(singles)}")
    return write if expired or outworn else None


def seeds(takes: Iterable[Take]) -> dict[str, int]:
    """What is known of rates (TAT) and budgets (spent) elsewhere; the most that anybody knows."""
    found: dict[str, int] = {}
    for take in takes:
        if isinstance(take, SlotTake):
            continue
        known = take.seed_us or None if isinstance(take, RateTake) else take.seed
        if known is not None:
            found[counter(take)] = max(known, found.get(counter(take), 0))
    return found


def seed(known: Mapping[str, int], kept_s: int) -> Write:
    """Create rates and budgets with what is known of them elsewhere."""
    write = Write()
    for name, value in known.items():
        for attribute in (name, spent_name(name)) if name.startswith("b") else (name,):
            short = write.name(attribute)
            write.sets.append(f"{short} = if_not_exists({short}, {write.value(value)})")
    write.sets.append(f"{write.name('ttl')} = {write.value(kept_s)}")
    return write


def outdated(takes: Iterable[Take], item: Item) -> Write | None:
    """Remove the budgets of the windows before the last one; nobody asks for them any more."""
    write, gone = Write(), set[str]()
    for take in takes:
        if not isinstance(take, BudgetTake):
            continue
        what = counter(take).removesuffix(take.label)
        last = take.limit.window.bounds(max(0, take.start_us - 1))[0]
        for name in item.numbers:
            label = name.removeprefix(what).removesuffix(":spent")
            if name.startswith(what) and len(label) == len(last) and label < last:
                gone.add(name)
    write.removes += [write.name(name) for name in sorted(gone)]
    return write if gone else None


def raise_to(item: Item, wanted: Mapping[str, int]) -> Write | None:
    """Raise TATs, and what budgets have spent, to at least `wanted`; from what they are in `item`, none is created."""
    write = Write()
    for name, value in wanted.items():
        key = spent_name(name) if name.startswith("b") else name
        known = item.numbers.get(key)
        if known is None or known >= value:
            continue
        attribute = write.name(key)
        write.conditions.append(f"{attribute} = {write.value(known)}")
        write.sets.append(f"{attribute} = {write.value(value)}")
        if key != name:
            write.sets.append(f"{write.name(name)} = {write.name(name)} + {write.value(value - known)}")
    return write if write.sets else None


def keep_until(ttl_s: int) -> Write:
    write = Write()
    write.sets.append(f"{write.name('ttl')} = {write.value(ttl_s)}")
    return write
