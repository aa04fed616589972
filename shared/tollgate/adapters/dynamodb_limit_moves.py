"""What a settlement, or giving back, moves in one item. Pure."""

from __future__ import annotations

from dataclasses import field

from tollgate.adapters.dynamodb import Write
from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import Item, counter, short_name, single, spent_name
from tollgate.adapters.dynamodb_limit_parts import Part
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import BudgetTake, RateTake


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

    def possible(self, item: Item) -> Move:
        """What of it can be done: rates and holds that are gone stay gone."""
        rates = {name: delta for name, delta in self.rates.items() if name in item.numbers}
        holds = {n: pair for n, pair in self.holds.items() if n in item.numbers and self.hold(n) in item.holds}
        return Move(self.single, self.expiry_s, rates, holds)

    def write(self, guess: Guess, now: int) -> Write | None:
        """A give-back is taken off as it is, a debt is taken from now on. No rate is created."""
        write = Write()
        for name, delta in self.rates.items():
            tat = write.name(name)
            if delta < 0:
                write.conditions.append(f"attribute_exists({tat})")
                write.sets.append(f"{tat} = {tat} + {write.value(delta)}")
            elif delta and guess.busy(name, now):
                write.conditions.append(f"{tat} >= {write.value(now)}")
                write.sets.append(f"{tat} = {tat} + {write.value(delta)}")
            elif delta:
                write.conditions.append(f"{tat} <= {write.value(now)}")
                write.sets.append(f"{tat} = {write.value(now + delta)}")
        for name, (held, used) in self.holds.items():
            n, hold = write.name(name), write.name(self.hold(name))
            write.sets.append(f"{n} = {n} + {write.value(used - held)}")
            if name.startswith("b") and used:
                write.sets.append(
                    f"{write.name(spent_name(name))} = {write.name(spent_name(name))} + {write.value(used)}"
                )
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
