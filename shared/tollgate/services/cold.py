"""What a limit store lacks is known elsewhere, and loaded from there: by who admits, and by who only looks."""

from __future__ import annotations

from collections.abc import Sequence

from tollgate.domain.limits import BudgetTake, RateTake, Take
from tollgate.ports import LimitStore, Spending


async def known_elsewhere(
    takes: Sequence[Take], cold: Sequence[int], store: LimitStore, ledger: Spending
) -> dict[str, int]:
    """By the keys of the takes that a store found `cold`: what the ledger knows budgets to have spent, and where rates
    stand in the store's standby (µs of TAT; 0 where it knows nothing). Raises `StoreUnavailable`."""
    budgets = [take for i in cold if isinstance(take := takes[i], BudgetTake)]
    rates = [i for i in cold if isinstance(takes[i], RateTake)]
    spent = await ledger.spent(budgets) if budgets else []
    tats = await store.recall(takes, rates) if rates else []
    found = {take.key: amount for take, amount in zip(budgets, spent, strict=True)}
    return found | {takes[i].key: tat or 0 for i, tat in zip(rates, tats, strict=True)}
