"""What one admission takes, as columns: for each question that a store asks, one number per limit.

A caller's next call meets the limits that the last one met; only what it costs differs. So the limits are laid out once
(`Footprint`), and a call is a column of costs beside them (`Takes`). It still is a sequence of `Take`, for those who
look at one limit after the other (refusals, stores that work by subject): they are made when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import le
from typing import Any, overload

from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import (
    FOREVER_US,
    Budget,
    BudgetTake,
    Concurrency,
    Limit,
    Rate,
    RateTake,
    SlotTake,
    Take,
    Unit,
    Window,
)

_KINDS: dict[type[Limit], str] = {Rate: RateTake.kind, Budget: BudgetTake.kind, Concurrency: SlotTake.kind}
"""In the order in which stores take them."""
Span = tuple[str, int, int]
"""A budget's window: its label, start and end (µs), as `Window.bounds` gives it."""


@dataclass(slots=True)
class Cost:
    """What one request is expected to use, before it is sent. `least_*` is what it needs when its answer's length
    is only a guess (which may shrink); equal to the whole where the caller gave a maximum."""

    tokens: int
    least_tokens: int
    microusd: int
    least_microusd: int


class Footprint:
    """The buckets that calls of one kind touch, in the order in which stores take them: rates, then budgets, then
    concurrency limits. `subjects`, `keys` and `limits` are parallel; `spans` are the budgets' windows."""

    __slots__ = (
        "buckets", "budgets", "ceilings", "keys", "kinds", "limits", "maxima", "memo", "models", "rates", "slots",
        "spans", "subjects",
    )  # fmt: skip

    def __init__(
        self, subjects: Sequence[str], keys: Sequence[str], limits: Sequence[Limit], spans: Sequence[Span]
    ) -> None:
        """Raises TypeError for what is no limit, ValueError for another order."""
        self.subjects, self.keys, self.limits, self.spans = subjects, keys, limits, spans
        if strange := [limit for limit in limits if type(limit) not in _KINDS]:
            raise TypeError(f"a limit is a Rate, a Budget or a Concurrency, not {strange[0]!r:.80}")
        self.kinds = [_KINDS[type(limit)] for limit in limits]
        """Of each take, as usage records call it."""
        self.rates, self.budgets, self.slots = (self.kinds.count(kind) for kind in _KINDS.values())
        if self.kinds != [k for k in _KINDS.values() for _ in range(self.kinds.count(k))]:
            raise ValueError("an admission's takes are rates, then budgets, then slots")
        self.buckets = [limit for limit in limits if isinstance(limit, Rate)]
        """The rates' limits."""
        self.maxima = [limit.burst_us if isinstance(limit, Rate) else limit.amount for limit in limits]
        """What each holds at most: its burst in µs of TAT, units, slots."""
        self.ceilings = [
            FOREVER_US if isinstance(x, Concurrency) or (isinstance(x, Budget) and x.window is Window.LIFE) else most
            for x, most in zip(limits, self.maxima, strict=True)
        ]
        """Above which a call can never be admitted, however long it waits (credit may be topped up)."""
        self.models = [
            (key, sorted(x.models))
            for key, x in zip(keys, limits, strict=True)
            if isinstance(x, Budget) and x.models is not None
        ]
        """Keys of the budgets of some models only, and these."""
        self.memo: dict[Any, Any] = {}
        """What a store has made of it for all calls; its own business."""

    def part(self, places: Sequence[int]) -> Footprint:
        """The limits at these places."""
        spans = [self.spans[i - self.rates] for i in places if self.rates <= i < self.rates + self.budgets]
        subjects, keys = [self.subjects[i] for i in places], [self.keys[i] for i in places]
        return Footprint(subjects, keys, [self.limits[i] for i in places], spans)


class Takes(Sequence[Take]):
    """What one call takes of a footprint: `costs` are wanted, `floors` needed; µs of TAT, units, or 1. `seeds` are what
    is known elsewhere of each (None: nobody was asked), as in `RateTake` and `BudgetTake`."""

    __slots__ = ("_cost", "_items", "costs", "floors", "footprint", "seeds")

    def __init__(
        self,
        footprint: Footprint,
        costs: list[int],
        floors: list[int],
        seeds: list[int | None] | None = None,
        *,
        cost: Cost | None = None,
        items: Sequence[Take] | None = None,
    ) -> None:
        """Of a `cost`, or of `items` that are there already. Raises ValueError for costs that would give something
        away: below 0, or below their floors."""
        if (floors and min(floors) < 0) or (floors is not costs and not all(map(le, floors, costs))):
            raise ValueError(f"a take costs 0 or more, and as much as it needs: not {costs} where {floors} are needed")
        self.footprint, self.costs, self.floors, self.seeds = footprint, costs, floors, seeds
        self._cost, self._items = cost, items

    @classmethod
    def of(cls, takes: Sequence[Take]) -> Takes:
        """The columns of these takes: every store begins with this. Raises ValueError where they are not in a store's
        order, or take or know less than nothing, and TypeError where they are not takes."""
        if isinstance(takes, Takes):
            return takes
        spans = [(take.label, take.start_us, take.end_us) for take in takes if isinstance(take, BudgetTake)]
        footprint = Footprint([t.subject for t in takes], [t.key for t in takes], [t.limit for t in takes], spans)
        costs, floors, seeds = list[int](), list[int](), list[int | None]()
        for take in takes:
            if isinstance(take, RateTake):
                cost, floor, seed = take.inc_us, take.floor_us, take.seed_us
            elif isinstance(take, BudgetTake):
                cost, floor, seed = take.cost, take.floor, take.seed
            else:
                cost, floor, seed = 1, 1, None
            costs.append(cost)
            floors.append(floor)
            seeds.append(seed)
        told = [seed for seed in seeds if seed is not None]
        if min(told, default=0) < 0:
            raise ValueError(f"what is known of a limit is 0 or more, not {min(told)}")
        known = seeds if told else None
        return cls(footprint, costs, costs if costs == floors else floors, known, items=takes)

    def at(self, footprint: Footprint, places: Sequence[int]) -> Takes:
        """Those at these places, which `footprint` is of."""
        costs = [self.costs[i] for i in places]
        floors = costs if self.floors is self.costs else [self.floors[i] for i in places]
        seeds = self.seeds and [self.seeds[i] for i in places]
        return Takes(footprint, costs, floors, seeds, cost=self._cost, items=self._items and [self[i] for i in places])

    def seeded(self, known: Mapping[str, int]) -> Takes:
        """These, with what was loaded of some of them: by their keys, µs of TAT or units."""

        def seeded(take: Take) -> Take:  # a copy: takes may be shared between requests
            seed = known.get(take.key)
            if seed is None or isinstance(take, SlotTake):
                return take
            return replace(take, seed_us=seed) if isinstance(take, RateTake) else replace(take, seed=seed)

        seeds = [known.get(key) for key in self.footprint.keys]
        items = [seeded(take) for take in self]
        return Takes(self.footprint, self.costs, self.floors, seeds, cost=self._cost, items=items)

    @property
    def possible(self) -> bool:
        """Whether each limit, when nobody else has taken anything, has as much as is needed."""
        return all(map(le, self.floors, self.footprint.ceilings))

    def settled_us(self, used: Sequence[int | None]) -> list[int]:
        """What each rate that moves is settled with, in µs of TAT, where all takes have used this (`Settlement`)."""
        rates = zip(self.footprint.buckets, used, strict=False)
        return [min(rate.inc_us(amount), FOREVER_US) for rate, amount in rates if amount is not None]

    def _made(self) -> Sequence[Take]:
        if self._items is None:
            footprint, cost = self.footprint, self._cost
            assert cost is not None
            amounts = {
                Unit.TOKENS: (cost.tokens, cost.least_tokens),
                Unit.MICROUSD: (cost.microusd, cost.least_microusd),
            }
            spans = iter(footprint.spans)
            found: list[Take] = []
            for subject, key, limit in zip(footprint.subjects, footprint.keys, footprint.limits, strict=True):
                if isinstance(limit, Rate):
                    found.append(RateTake(subject, key, limit, *amounts.get(limit.unit, (1, 1))))
                elif isinstance(limit, Budget):
                    wanted, needed = amounts.get(limit.unit, (1, 1))
                    found.append(BudgetTake(subject, key, limit, wanted, needed, *next(spans)))
                else:
                    found.append(SlotTake(subject, key, limit))
            self._items = found
        return self._items

    def __len__(self) -> int:
        return len(self.costs)

    def __iter__(self) -> Iterator[Take]:
        return iter(self._made())

    @overload
    def __getitem__(self, place: int) -> Take: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Take]: ...
    def __getitem__(self, place: int | slice) -> Take | Sequence[Take]:
        return self._made()[place]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented
