"""A settlement made again from its usage record, for a store that the first one never reached.

The record knows keys and what was used, not the limits. So the takes here are as much as settling needs: whose they
are, and in which scope; a rate in which a microsecond is a unit, because the record tells what was used in those.
"""

from __future__ import annotations

import re
from functools import lru_cache

from tollgate.domain.limits import (
    FOREVER_US,
    Budget,
    BudgetTake,
    Concurrency,
    Rate,
    RateTake,
    Scope,
    Settlement,
    SlotTake,
    Take,
    Unit,
    Window,
)
from tollgate.domain.records import UsageClose

_SUBJECT = re.compile(r"\{(?P<tag>[^{}]*)\}(?P<member>[ukt]?)[\w-]*(?=:)", re.ASCII)
_MEMBERS = {"u": Scope.USER, "k": Scope.KEY, "t": Scope.TEAM}


def settlement_of(close: UsageClose) -> Settlement | None:
    """The settlement that `close` tells of; None where there is none, where an older proxy did not tell all of it, or
    where it is not in a store's order."""
    if "".join([kind for kind, _, _ in close.settle]).lstrip("r").lstrip("b").lstrip("c"):
        return None
    takes: list[Take] = []
    used: list[int | None] = []
    rates = iter(close.rates_us)
    for kind, key, amount in close.settle:
        take = _take(kind, key)
        if take is None:
            return None
        if kind == "r" and amount is not None:
            amount = next(rates, None)
            if amount is None:
                return None
        takes.append(take)
        used.append(amount)
    return Settlement(close.id, takes, used, close.tenant, close.store, late=True) if takes else None


def _scope(subject: re.Match[str]) -> Scope:
    tag = subject["tag"]
    if tag == "g":
        return Scope.GLOBAL
    if tag == "iunknown" or "." in tag or ":" in tag:  # the others are digests
        return Scope.IP
    return _MEMBERS.get(subject["member"], Scope.TENANT)


@lru_cache(maxsize=4096)
def _take(kind: str, key: str) -> Take | None:
    """None for a key that cannot be read. (Settling changes no take, so all settlements of a bucket share one.)"""
    found = _SUBJECT.match(key)
    if found is None:
        return None
    subject, scope = found[0], _scope(found)
    if kind == "r":
        return RateTake(subject, key, Rate(scope, Unit.TOKENS, 1, 1, 1, ""), 0, 0)
    if kind == "b":
        limit = Budget(scope, Unit.TOKENS, 0, Window.LIFE, "")
        return BudgetTake(subject, key, limit, 0, 0, "", 0, FOREVER_US)
    return SlotTake(subject, key, Concurrency(scope, 0, ""))
