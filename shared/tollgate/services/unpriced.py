"""Telling operators of models that are called without a price, and are therefore billed at the ceiling."""

from __future__ import annotations

from tollgate.adapters import telemetry

EVERY_US = 60_000_000
"""A line at once, then one a minute however many calls there are."""
NAMED = 20
"""Models that a line names at most."""


class Unpriced:
    """What one process has to tell. The ledger's rows have the exact number of calls (`ceiling`)."""

    def __init__(self) -> None:
        self._calls = 0
        self._models: set[str] = set()
        self._told_us: int | None = None

    def tell(self, model: str, upstream: str, upstream_model: str, now_us: int) -> None:
        """A call was billed at the ceiling."""
        self._calls += 1
        if len(self._models) < NAMED:
            self._models.add(f"{model} ({upstream}/{upstream_model})")
        if self._told_us is not None and now_us < self._told_us + EVERY_US:
            return
        dimensions = {"service": telemetry.service()}
        counted = telemetry.emf("Tollgate", dimensions, UnpricedCalls=self._calls)
        message = "models without a price are billed at the ceiling"
        telemetry.log("WARNING", message, models=sorted(self._models), **counted)
        self._calls, self._told_us = 0, now_us
        self._models.clear()
