"""Metering: the proxy's usage records, from a CloudWatch Logs subscription, into the ledger; and its counts of refusals
into the audit log.

Deliveries may be repeated and come in any order. Whatever cannot be read becomes a dead letter; an exception is raised
only if the ledger (or the queue of dead letters) cannot be written, and then Lambda delivers the whole batch again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tollgate import bootstrap
from tollgate.adapters.kept import Kept
from tollgate.adapters.telemetry import emf, log, service
from tollgate.services.meter import MeterReport, meter
from tollgate.services.subscription import split, unpack
from tollgate.wiring import clock_us

_kept = Kept(bootstrap.metering)
close = _kept.close


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """Enter a batch; says what became of it."""
    report = _kept.run(lambda parts: _enter(event, parts))
    _note(report)
    return asdict(report)


async def _enter(event: Mapping[str, Any], parts: bootstrap.Metering) -> MeterReport:
    lines, unreadable = unpack(event)
    found = split(lines)
    report = await meter(
        found.usage,
        parts.ledger,
        parts.store,
        parts.letters,
        clock_us(),
        [*unreadable, *found.wrong],
        parts.thresholds,
        found.died,
    )
    if found.refusals:
        await parts.audit().note(found.refusals)
    return report


def _note(report: MeterReport) -> None:
    metrics = emf(
        "Tollgate",
        {"service": service()},
        UsageEntered=report.entered,
        UsageRepeated=report.repeated,
        UsagePoison=report.poison,
        UsageTampered=report.tampered,
        LedgerConflicts=report.conflicts,
        UsageEstimated=report.resolved,
        UsageSettledLate=report.settled,
        AlertsRaised=report.alerts,
        MeteringLag=(report.lag_ms, "Milliseconds"),
    )
    log("INFO", "usage entered", opened=report.opened, replaced=report.replaced, floors=report.floors, **metrics)
    if report.store_failure:
        log("WARNING", "the limit store was not told what is spent", reason=report.store_failure)
    if report.alert_failure:
        log("WARNING", "budgets were not compared with their thresholds", reason=report.alert_failure)
