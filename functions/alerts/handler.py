"""Alerts: every minute what waits in the outbox goes to EventBridge; every hour the last one is looked back upon.

Both may be repeated: an alert is kept once, and delivered until the bus has taken it. What it does not take makes the
invocation fail, which is an alarm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tollgate import bootstrap
from tollgate.adapters.telemetry import emf, log, service
from tollgate.services.alerts import Budgets, deliver, look_back
from tollgate.wiring import clock_us

LOOK_BACK = "look back"
"""The `task` of the hourly schedule's event."""

_budgets = Budgets()


def handler(event: Mapping[str, Any], context: object) -> dict[str, int]:
    """What was raised, sent, and not taken by the bus."""
    report = asyncio.run(_run(event.get("task") == LOOK_BACK))
    if any(report.values()):
        metrics = emf("Tollgate", {"service": service()}, AlertsSent=report["sent"], AlertsNotTaken=report["not_taken"])
        log("INFO", "alerts", raised=report["raised"], **metrics)
    if report["not_taken"]:  # so that the function's errors raise an alarm; the next run sends them again
        raise RuntimeError(f"{report['not_taken']} alerts were not taken by the bus")
    return report


async def _run(looks_back: bool) -> dict[str, int]:
    async with bootstrap.alerts() as (table, bus, ledger, source):
        raised = 0
        if looks_back:
            raised = await look_back(ledger, table, table, _budgets, source, clock_us())
        sent, not_taken = await deliver(table, bus)
    return {"raised": raised, "sent": sent, "not_taken": not_taken}
