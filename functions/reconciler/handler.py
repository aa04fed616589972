"""The hourly reconciler: limit stores are raised to what the ledger knows, and the drift becomes a metric."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tollgate import bootstrap
from tollgate.adapters.telemetry import emf, log, service
from tollgate.domain.limits import Unit
from tollgate.services.reconcile import Reconciled, reconcile
from tollgate.wiring import clock_us


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """What was found. Raises when the ledger cannot be read; the next hour tries again."""
    report = asyncio.run(_reconcile())
    _note(report)
    return asdict(report)


async def _reconcile() -> Reconciled:
    async with bootstrap.reconciler() as (ledger, stores):
        return await reconcile(ledger, stores, clock_us())


def _note(report: Reconciled) -> None:
    metrics = emf(
        "Tollgate",
        {"service": service()},
        BudgetsBehind=report.behind,
        DriftMicrousd=report.drift.get(Unit.MICROUSD, 0),
        DriftTokens=report.drift.get(Unit.TOKENS, 0),
        DriftRequests=report.drift.get(Unit.REQUESTS, 0),
        OnTheWayMicrousd=report.on_the_way.get(Unit.MICROUSD, 0),
        OnTheWayTokens=report.on_the_way.get(Unit.TOKENS, 0),
        BooksUnbalanced=len(report.unbalanced),
        StoresNotCompared=len(report.failures),
        UsageEstimated=report.resolved,
    )
    log("INFO", "reconciled", compared=report.compared, ahead=report.ahead, unread=report.unread, **metrics)
    for tenant in report.unbalanced:
        log("ERROR", "a tenant's counter is not the sum of its report", tenant=tenant)
    for failure in report.failures:
        log("WARNING", "a limit store was not compared with the ledger", reason=failure)
