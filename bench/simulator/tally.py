"""What happened to every request, added up; and the figures that follow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from bench.simulator.costs import Costs

BINS = 150
"""Points of a figure's time axis."""


@dataclass(slots=True)
class Group:
    """Some of the callers: what became of their requests, by request and by tenant."""

    outcomes: Counter[str] = field(default_factory=Counter)
    costs: Costs = field(default_factory=Costs)
    ideal: Counter[int] = field(default_factory=Counter)
    admitted: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Of what was falsely refused: status, and the limit that refused."""
    calls_by_second: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Store calls by container and second."""

    @property
    def false(self) -> int:
        """Refused or failed, although the ideal limiter admits that very request."""
        return self.outcomes["falsely refused"]

    @property
    def missing(self) -> int:
        """By how much each tenant got less than the ideal limiter gives, in all: without those refusals for which
        another request of the tenant was admitted instead."""
        return sum(max(0, count - self.admitted[tenant]) for tenant, count in self.ideal.items())

    def as_dict(self) -> dict[str, object]:
        offered, ideal = self.outcomes["offered"], self.outcomes["ideal"]
        refused = self.outcomes["refused by the store"] + self.outcomes["refused locally"]
        costs = self.costs
        return {
            "requests": offered,
            "ideal_admits": ideal,
            "admitted": self.outcomes["admitted"],
            "refused": refused,
            "failed": self.outcomes["failed"],
            "served_of_ideal": ratio(ideal - self.false, ideal, 1.0),
            "falsely_refused": self.false,
            "falsely_refused_share": ratio(self.false, ideal),
            "falsely_refused_by": dict(self.reasons.most_common(6)),
            "missing": self.missing,
            "missing_share": ratio(self.missing, ideal),
            "refused_locally_share": ratio(self.outcomes["refused locally"], refused),
            "per_request": {
                "redis_calls": ratio(costs.redis, offered),
                "dynamodb_writes": ratio(costs.writes, offered),
                "dynamodb_reads": ratio(costs.reads, offered),
                "throttled": ratio(costs.throttled, offered),
                "budgets_loaded": ratio(costs.loads, offered),
                "records_read": ratio(costs.records, offered),
            },
            "most_calls_per_container_second": max(self.calls_by_second.values(), default=0),
            "mean_calls_per_container_second": ratio(sum(self.calls_by_second.values()), len(self.calls_by_second)),
        }


@dataclass(slots=True)
class Tally:
    seconds: float
    """How long the load lasts."""
    groups: dict[str, Group] = field(default_factory=dict)
    series: dict[str, list[int]] = field(default_factory=dict)
    holds: dict[str, list[float]] = field(default_factory=lambda: {"guessed": [], "given": []})
    """Held / used tokens, where the answer's length was guessed and where the caller gave a maximum."""
    waits: list[float] = field(default_factory=list)
    """Seconds that admissions took."""
    late: list[float] = field(default_factory=list)
    """Seconds after Redis was back at which DynamoDB still decided."""
    outdated: list[float] = field(default_factory=list)
    """Seconds after an operator's change at which the old record was still used."""
    turned_away: int = 0
    """Requests for which there was no container: nobody decided them."""

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group())

    def count(self, group: str, what: str, at_s: float) -> None:
        """One request more of which `what` is true."""
        self.group(group).outcomes[what] += 1
        self.point(what, at_s)

    def span(self, values: list[float]) -> dict[str, float]:
        """How many, and for how long (seconds)."""
        return {"count": len(values), "p50_s": quantile(values, 0.5), "max_s": quantile(values, 1.0)}

    def point(self, what: str, at_s: float, amount: int = 1) -> None:
        line = self.series.setdefault(what, [0] * BINS)
        line[min(BINS - 1, int(at_s / self.seconds * BINS))] += amount

    def hold_error(self) -> dict[str, object]:
        both = self.holds["guessed"] + self.holds["given"]
        return {
            kind: {
                "requests": len(found),
                "p50": quantile(found, 0.5),
                "p95": quantile(found, 0.95),
                "curve": [quantile(found, i / 100) for i in range(1, 100)],
            }
            for kind, found in (("all", both), *self.holds.items())
        }

    def admission_ms(self) -> dict[str, float]:
        return {name: round(1000 * quantile(self.waits, q), 2) for name, q in (("p50", 0.5), ("p99", 0.99))}


def ratio(part: float, whole: float, empty: float = 0.0) -> float:
    return round(part / whole, 6) if whole else empty


def quantile(values: list[float], q: float) -> float:
    found = sorted(values)
    return round(found[min(len(found) - 1, int(q * len(found)))], 4) if found else 0.0
