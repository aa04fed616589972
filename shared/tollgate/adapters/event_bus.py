"""Alerts on their way: EventBridge (whose rule in template.yaml passes them on to SNS), and the log."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from tollgate.adapters import telemetry
from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.http import UpstreamError
from tollgate.domain.alerts import Alert, Kind
from tollgate.domain.limits import SECOND_US

SOURCE = "tollgate"
AT_ONCE = 10
"""Entries of a PutEvents: EventBridge's limit."""
DETAIL_TYPES: dict[Kind, str] = {
    "budget.threshold": "Tollgate Budget Threshold",
    "usage.anomaly": "Tollgate Usage Anomaly",
}


class EventBridge:
    """Sends alerts to one bus, and writes a log line for each that it took."""

    def __init__(self, events: AwsClient, bus: str) -> None:
        self._events = events
        self._bus = bus

    async def send(self, alerts: Sequence[Alert]) -> list[Alert]:
        taken: list[Alert] = []
        for at in range(0, len(alerts), AT_ONCE):
            some = alerts[at : at + AT_ONCE]
            entries = [
                {
                    "EventBusName": self._bus,
                    "Source": SOURCE,
                    "DetailType": DETAIL_TYPES[alert.kind],
                    "Time": alert.raised_us // SECOND_US,
                    "Detail": orjson.dumps(alert.as_dict()).decode(),
                }
                for alert in some
            ]
            try:
                answer = await self._events.call("PutEvents", {"Entries": entries}, retry=True)
            except (AwsError, UpstreamError) as error:
                telemetry.log("ERROR", "alerts cannot be sent, and will be sent again", reason=str(error))
                return taken
            for alert, result in zip(some, answer.get("Entries", []), strict=True):
                if result.get("ErrorCode"):
                    reason = f"{result['ErrorCode']}: {result.get('ErrorMessage', '')}"
                    telemetry.log("ERROR", "an alert was not taken, and will be sent again", id=alert.id, reason=reason)
                else:
                    telemetry.log("WARNING", alert.text, alert=alert.id, kind=alert.kind, tenant=alert.tenant)
                    taken.append(alert)
        return taken
