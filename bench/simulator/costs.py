"""What one request asks of the stores; whoever calls a store counts it here."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Costs:
    redis: int = 0
    """Round trips to Redis."""
    writes: int = 0
    """Writes to the limits table, successful or not."""
    reads: int = 0
    """Items read from the limits table."""
    subject_writes: int = 0
    """Of the writes, those to limits: not to markers of requests, and not to versions."""
    loads: int = 0
    """Budgets asked of the ledger."""
    records: int = 0
    """Policies and tenants' records read."""
    throttled: int = 0
    """Writes that were turned away."""

    def add(self, other: Costs) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COSTS: ContextVar[Costs] = ContextVar("COSTS", default=Costs())  # noqa: B039 - whatever no request asked for
"""Of the request that runs; tasks inherit it."""
