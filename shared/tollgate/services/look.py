"""What limits are left, without taking anything."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tollgate.domain.limits import Admission, Decision, Status, Take, fits
from tollgate.ports import LimitStore, Spending
from tollgate.services.cold import known_elsewhere


async def look(takes: Sequence[Take], tenant: str, store: LimitStore, ledger: Spending) -> Decision:
    """What an admission of these takes would be told. What the store has not loaded is read where the next call would
    load it from: budgets in the ledger, rates in the other store. Raises `StoreUnavailable`."""
    decision = await store.look(_admission(takes, tenant))
    if decision.status is not Status.COLD:
        return decision
    cold, values = set(decision.cold), await known_elsewhere(takes, decision.cold, store, ledger)
    warm = [take for i, take in enumerate(takes) if i not in cold]
    decision = await store.look(_admission(warm, tenant))
    seen = iter(decision.values)
    decision.values = [values[take.key] if i in cold else next(seen) for i, take in enumerate(takes)]
    decision.granted = [0] * len(takes)
    if not all(fits(t, v, decision.now_us) for t, v in zip(takes, decision.values, strict=True)):
        decision.status = Status.REFUSED
    return decision


def _admission(takes: Sequence[Take], tenant: str) -> Admission:
    return Admission(f"look_{os.urandom(16).hex()}", list(takes), 0, tenant)
