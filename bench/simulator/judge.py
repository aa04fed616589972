"""What was admitted beyond the rules: recomputed from the fleet's own actions, whatever any store believes.

A rate obeys its limit when no interval t has charged more than burst + rate * t. The largest charge of all intervals
that end now follows from one number (Lindley's recursion, which is a TAT): ``tat = max(tat, now) + charge``, and a take
is beyond the rule by ``tat - now - burst``. Budgets and slots are sums. Nothing is assumed about which store decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tollgate.domain.limits import Limit, Rate, Settlement, Take


@dataclass(slots=True)
class Verdict:
    """One kind of limit. `worst`: the farthest beyond, as a share of the burst, the budget, or the slots."""

    takes: int = 0
    beyond: int = 0
    worst: float = 0.0
    worst_limit: str = ""
    worst_at_s: float = 0.0

    def count(self, excess: int, whole: int, limit: Limit, at_us: int) -> None:
        self.takes += 1
        if excess <= 0:
            return
        self.beyond += 1
        if excess / whole > self.worst:
            self.worst, self.worst_limit, self.worst_at_s = excess / whole, limit.id, at_us / 1e6

    def as_dict(self) -> dict[str, object]:
        worst = {"share": round(self.worst, 6), "limit": self.worst_limit, "at_s": round(self.worst_at_s, 3)}
        return {"takes": self.takes, "beyond": self.beyond, "worst": worst}


Event = tuple[int, int, int, Limit | None]
"""When (true µs), its place in the run, what it adds (µs of TAT, or units), and the limit if it is a take."""


@dataclass(slots=True)
class Judge:
    """Collects what happened; `verdicts` judges it in the order of true time."""

    origin_us: int
    _events: dict[str, list[Event]] = field(default_factory=dict)
    _granted: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    _count: int = 0

    def admitted(self, id: str, store: str, at_us: int, takes: Sequence[Take], granted: Sequence[int]) -> None:
        """The fleet admitted a request that took this of `store`, at a true moment."""
        self._granted[id, store] = list(granted)
        for take, amount in zip(takes, granted, strict=True):
            self._note(take.key, at_us, amount, take.limit)

    def ended(self, settlement: Settlement, at_us: int) -> None:
        """A request of the fleet is over: its slots are free, and its budgets have spent what it used."""
        granted = self._granted.get((settlement.id, settlement.store), [])
        for take, held, used in zip(settlement.takes, granted, settlement.used, strict=True):
            if not isinstance(take.limit, Rate):
                self._note(take.key, at_us, (used or 0) - held, None)

    def settled(self, settlement: Settlement, started_us: int, done_us: int) -> None:
        """A store has moved its rates. (Giving back what the fleet never used is no event.) Where that took some time,
        both ends of it are read in the store's favour: milliseconds on DynamoDB, nothing on Redis."""
        granted = self._granted.pop((settlement.id, settlement.store), [])
        for take, held, used in zip(settlement.takes, granted, settlement.used, strict=bool(granted)):
            if isinstance(take.limit, Rate) and used is not None:
                delta = take.limit.inc_us(used) - held
                self._note(take.key, started_us if delta < 0 else done_us, delta, None)

    def verdicts(self) -> dict[str, Verdict]:
        """For rates, budgets and slots."""
        found = {"rates": Verdict(), "budgets": Verdict(), "slots": Verdict()}
        for events in self._events.values():
            events.sort(key=lambda event: event[:2])
            limit = next(event[3] for event in events if event[3] is not None)
            if isinstance(limit, Rate):
                self._judge_rate(events, found["rates"])
            else:
                kind = "slots" if limit.unit == "slots" else "budgets"
                self._judge_sum(events, found[kind])
        return found

    def _note(self, key: str, at_us: int, amount: int, limit: Limit | None) -> None:
        self._count += 1
        self._events.setdefault(key, []).append((at_us, self._count, amount, limit))

    def _judge_rate(self, events: Iterable[Event], verdict: Verdict) -> None:
        tat = 0
        for now, _, amount, limit in events:
            tat = tat + amount if amount < 0 else max(tat, now) + amount
            if isinstance(limit, Rate):
                verdict.count(tat - now - limit.burst_us, limit.burst_us, limit, now - self.origin_us)

    def _judge_sum(self, events: Iterable[Event], verdict: Verdict) -> None:
        total = 0
        for now, _, amount, limit in events:
            total += amount
            if limit is not None and not isinstance(limit, Rate):
                verdict.count(total - limit.amount, max(1, limit.amount), limit, now - self.origin_us)
