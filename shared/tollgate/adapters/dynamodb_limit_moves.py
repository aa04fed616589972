"""What settlements, or giving back, move in one item. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field

from tollgate.adapters.dynamodb import Write
from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import Item, counter, short_name, single, spent_name
from tollgate.adapters.dynamodb_limit_parts import Part
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import BudgetTake, RateTake

MOST_NAMES = 64
"""Counters and shared holds that one write moves for several: DynamoDB's expressions are limited."""


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
        return f"~{short_name(name)}{self.expiry_s}" if self.expiry_s else self.single

    def names(self) -> set[str]:
        return self.rates.keys() | self.holds.keys() | {self.hold(name) for name in self.holds}

    def possible(self, item: Item, left: dict[str, int]) -> Move:
        """What of it can be done: rates and holds that are gone stay gone. `left`: what those before it have left of
        the shared holds."""
        rates = {name: delta for name, delta in self.rates.items() if name in item.numbers}
        holds = {}
        for name, (held, used) in self.holds.items():
            hold = self.hold(name)
            if name not in item.numbers or hold not in item.holds:
                continue
            if self.expiry_s:
                remains = left.get(hold, sum(item.holds[hold].amounts.values())) - held
                if remains < 0:
                    continue
                left[hold] = remains
            holds[name] = held, used
        return Move(self.single, self.expiry_s, rates, holds)


def write_of(moves: Iterable[Move], guess: Guess, now: int) -> Write | None:
    """All of them at once. A give-back is taken off as it is, a debt is taken from now on. No rate is created."""
    back, debt, more, shared = dict[str, int](), dict[str, int](), dict[str, int](), dict[str, int]()
    singles: list[str] = []
    for move in moves:
        for name, delta in move.rates.items():
            if delta:  # DynamoDB refuses a name that nothing is done with
                _add(debt if delta > 0 else back, name, delta)
        for name, (held, used) in move.holds.items():
            _add(more, name, used - held)
            if name.startswith("b") and used:
                _add(more, spent_name(name), used)
            if move.expiry_s:
                _add(shared, move.hold(name), held)
        if move.tells:
            singles.append(move.single)
    write = Write()
    for name in back | debt:
        _move_rate(write, name, back.get(name, 0), debt.get(name, 0), guess, now)
    for name, delta in more.items():
        write.sets.append(f"{write.name(name)} = {write.name(name)} + {write.value(delta)}")
    for name, held in shared.items():
        hold = write.name(name)
        write.conditions.append(f"{hold} >= {write.value(held)}")
        write.sets.append(f"{hold} = {hold} - {write.value(held)}")
    for name in singles:
        hold = write.name(name)
        write.conditions.append(f"attribute_exists({hold})")
        write.removes.append(hold)
    if singles:
        write.sets.append(f"{write.name('k')} = {write.name('k')} - {write.value(len(singles))}")
    return write if write.sets else None


def _add(sums: dict[str, int], name: str, amount: int) -> None:
    sums[name] = sums.get(name, 0) + amount


def _move_rate(write: Write, name: str, back: int, debt: int, guess: Guess, now: int) -> None:
    """By `back`, which is negative, and `debt`."""
    tat = write.name(name)
    if not debt:
        write.conditions.append(f"attribute_exists({tat})")
        write.sets.append(f"{tat} = {tat} + {write.value(back)}")
    elif guess.busy(name, now):
        write.conditions.append(f"{tat} >= {write.value(now)}")
        write.sets.append(f"{tat} = {tat} + {write.value(back + debt)}")
    else:
        write.conditions.append(f"{tat} <= {write.value(now)}")
        write.sets.append(f"{tat} = {write.value(now + back + debt)}")


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
