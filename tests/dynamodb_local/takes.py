"""What the processes of these tests take: one limit of each kind, on one key."""

from __future__ import annotations

import time

from tollgate.domain import keys
from tollgate.domain.limits import (
    DAY_US,
    Budget,
    BudgetTake,
    Concurrency,
    Rate,
    RateTake,
    Scope,
    SlotTake,
    Take,
    Unit,
    Window,
)

SUBJECT = keys.tenant_subject("acme")
PLACES = 300
"""How many requests fit into each of the limits."""
COST = 7
KINDS = ("requests", "tokens", "budget", "slots")


def requests(places: int = PLACES, period_us: int = DAY_US) -> RateTake:
    limit = Rate(Scope.TENANT, Unit.REQUESTS, places, period_us, places, "tenant.requests.day")
    return RateTake(SUBJECT, f"{SUBJECT}:requests.day", limit, 1, 1)


def tokens(cost: int = COST, amount: int = PLACES * COST, period_us: int = DAY_US) -> RateTake:
    limit = Rate(Scope.TENANT, Unit.TOKENS, amount, period_us, amount, "tenant.tokens.day")
    return RateTake(SUBJECT, f"{SUBJECT}:tokens.day", limit, cost, cost)


def budget(cost: int = COST, amount: int = PLACES * COST, seed: int | None = None) -> BudgetTake:
    label, start, end = Window.MONTH.bounds(time.time_ns() // 1000)
    limit = Budget(Scope.TENANT, Unit.TOKENS, amount, Window.MONTH, "tenant.tokens.month")
    return BudgetTake(SUBJECT, f"{SUBJECT}:b:tokens.month:{label}", limit, cost, cost, label, start, end, seed)


def slot(amount: int = PLACES) -> SlotTake:
    return SlotTake(SUBJECT, f"{SUBJECT}:slots", Concurrency(Scope.TENANT, amount, "tenant.slots"))


def one(kind: str) -> Take:
    makers = {"requests": requests, "tokens": tokens, "budget": budget, "slots": slot}
    return makers[kind]()
