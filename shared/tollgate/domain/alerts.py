"""Alerts: what operators are told once. Events with a stable id and a versioned schema; they hold no content.

A budget's threshold is crossed once per window. A budget for life has one window, which begins anew with its amount:
a top-up arms its thresholds again. Usage that arrives late alerts for the window that it belongs to, for a day; older
windows are history, and a replay of old records tells nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from tollgate.domain.dataclass import dataclass
from tollgate.domain.identity import Identity
from tollgate.domain.keys import digest
from tollgate.domain.limits import DAY_US, SECOND_US, Budget, Scope, Unit, Window
from tollgate.domain.terms import Bound

SCHEMA = 1
LATE_US = DAY_US
"""How long after its end a window still alerts."""
MILLION = 1_000_000

Kind = Literal["budget.threshold", "usage.anomaly"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One event. `id` is the same however often it is raised or delivered; `facts` depend on the kind."""

    id: str
    kind: Kind
    tenant: str
    raised_us: int
    text: str
    """For people, in one line."""
    facts: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The event's detail (docs/alerts.md)."""
        return {
            "text": self.text, "v": SCHEMA, "id": self.id, "kind": self.kind, "tenant": self.tenant,
            "raised_at": moment(self.raised_us), **self.facts,
        }  # fmt: skip


def crossed(bound: Bound, spent: int, who: Identity, plan: str, used_us: int, now_us: int) -> list[Alert]:
    """The thresholds that a budget has reached in the window that `used_us` is in, when `spent` of it is used."""
    limit = bound.limit
    if not isinstance(limit, Budget):
        return []
    amount, used = limit.amount - limit.before, spent - limit.before
    reached = [at for at in limit.alert_at if used * MILLION >= round(at * MILLION) * amount]
    if not reached or amount <= 0:
        return []
    label, _, end_us = limit.window.bounds(used_us)
    if now_us >= end_us + LATE_US:
        return []
    for_life = limit.window is Window.LIFE
    found: list[Alert] = []
    for at in sorted(set(reached)):
        about = f"{bound.key}:{label}|{at:g}" + (f"|{limit.amount}" if for_life else "")
        facts = {
            "scope": limit.scope.value,
            "name": _name(limit.scope, who),
            "plan": plan,
            "budget": limit.id,
            "unit": limit.unit.value,
            "window": label,
            "ends_at": None if for_life else moment(end_us),
            "threshold": at,
            "amount": amount,
            "used": used,
            "late": now_us >= end_us,
        }
        found.append(Alert(digest(about), "budget.threshold", who.tenant, now_us, _said(facts, who.tenant), facts))
    return found


def anomaly(tenant: str, hour_us: int, used: int, usual: int, most: int, now_us: int) -> Alert:
    """An hour that cost a tenant far more than its history: `usual` and `most` are the median and the highest of its
    dearest hours of each day (micro-dollars). Once per tenant and UTC day."""
    day, hour = Window.DAY.bounds(hour_us)[0], moment(hour_us)
    text = f"{tenant}: {shown(used, Unit.MICROUSD)} in the hour from {hour}; its dearest hour of a day is usually "
    text += f"{shown(usual, Unit.MICROUSD)}"
    facts = {"hour": hour, "unit": Unit.MICROUSD.value, "used": used, "usual": usual, "most": most}
    return Alert(digest(f"anomaly|{tenant}|{day}"), "usage.anomaly", tenant, now_us, text, facts)


def moment(us: int) -> str:
    return datetime.fromtimestamp(us // SECOND_US, UTC).isoformat().replace("+00:00", "Z")


def shown(amount: int, unit: Unit) -> str:
    """``$25.00``, ``1,000 tokens``."""
    if unit is Unit.MICROUSD:
        return f"${amount / MILLION:,.2f}" if amount >= 10_000 else f"${amount / MILLION:.6f}"
    return f"{amount:,} {unit}"


def _name(scope: Scope, who: Identity) -> str:
    return {Scope.USER: who.user, Scope.KEY: who.key, Scope.TEAM: who.team}.get(scope, "")


def _said(facts: Mapping[str, Any], tenant: str) -> str:
    unit, name = Unit(facts["unit"]), facts["name"]
    whose = f"{facts['scope']} {name}'s" if name else "the tenant's"
    for_life = "credit" if unit is Unit.MICROUSD else "budget for life"
    what = for_life if facts["ends_at"] is None else f"budget for {facts['window']}"
    share = f"{shown(facts['used'], unit)} of {shown(facts['amount'], unit)}"
    return f"{tenant}: {whose} {what} has reached {facts['threshold']:.0%} ({share} used)"
