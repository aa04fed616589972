"""Metering: the proxy's usage records, from a CloudWatch Logs subscription, into the ledger.

Deliveries may be repeated and come in any order. Whatever cannot be read becomes a dead letter; an exception is raised
only if the ledger (or the queue of dead letters) cannot be written, and then Lambda delivers the whole batch again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from functions.metering.subscription import unpack
from tollgate import bootstrap
from tollgate.adapters.telemetry import emf, log, service
from tollgate.services.meter import MeterReport, meter


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """Enter a batch; says what became of it."""
    report = asyncio.run(_enter(event))
    _note(report)
    return asdict(report)


async def _enter(event: Mapping[str, Any]) -> MeterReport:
    lines, unreadable = unpack(event)
    async with bootstrap.metering() as (ledger, store, dead_letters):
        return await meter(lines, ledger, store, dead_letters, bootstrap.clock_us(), unreadable)


def _note(report: MeterReport) -> None:
    metrics = emf(
        "Tollgate",
        {"service": service()},
        UsageEntered=report.entered,
        UsageRepeated=report.repeated,
        UsagePoison=report.poison,
        UsageEstimated=report.resolved,
        UsageSettledLate=report.settled,
        MeteringLag=(report.lag_ms, "Milliseconds"),
    )
    log("INFO", "usage entered", opened=report.opened, replaced=report.replaced, floors=report.floors, **metrics)
    if report.store_failure:
        log("WARNING", "the limit store was not told what is spent", reason=report.store_failure)
