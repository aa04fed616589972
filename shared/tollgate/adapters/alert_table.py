"""Alerts in the ledger's table: latches, the outbox, the history, and what each hour cost each tenant.

    alert#<id>         latch                  an alert of this id was raised; `ttl` after its window cannot return
    alerts#waiting     <time>#<id>            r: the event (JSON), until the bus has taken it
    alerts#<day>       <time>#<id>            r: the event, delivered; by the UTC day on which it was raised
    hours#<tenant>     <day>                  h00 ... h23: what the hour cost, in micro-dollars

The latch and the event in the outbox are one transaction, so an alert is raised once, however many batches find it at
the same time, and none is lost between the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tollgate.adapters.dynamodb import Cancelled, Client, Expression, Plain, Table, Write, encode_item, pause
from tollgate.domain.alerts import Alert
from tollgate.domain.limits import SECOND_US, Window
from tollgate.ports import StoreUnavailable

DAY_S = 86_400
LATCHES_KEPT_S = 140 * DAY_S
"""Longer than any window and the time in which it may still alert. Budgets for life keep theirs."""
HISTORY_KEPT_S = 400 * DAY_S
HOURS_KEPT_S = 35 * DAY_S
MAX_TRIES = 8
WAITING = "alerts#waiting"


class AlertTable:
    """The outbox, the hours and the history, in one table with the keys `pk` and `sk`."""

    def __init__(self, client: Client, table: str) -> None:
        self._table = Table(client, table, patient=True)

    # -- outbox

    async def put(self, alerts: Sequence[Alert]) -> int:
        latches = {alert.id: alert for alert in alerts}
        for item in await self._table.get_many([_latch(id) for id in latches]):
            del latches[item["pk"].partition("#")[2]]
        return sum([await self._raise(alert) for alert in latches.values()])

    async def waiting(self, limit: int) -> list[Alert]:
        ex = Expression()
        condition = f"{ex.name('pk')} = {ex.value(WAITING)}"
        return [_alert(item) async for item in self._table.query(ex, condition, limit=limit, consistent=True)]

    async def delivered(self, alerts: Sequence[Alert]) -> None:
        history: list[Plain] = []
        for alert in alerts:
            item = _event(_day(alert.raised_us), alert)
            history.append(item | {"ttl": alert.raised_us // SECOND_US + HISTORY_KEPT_S})
        # first the history: an alert that stands in both places is delivered again, one that stands in none is lost
        await self._table.write_many(puts=history)
        keys = [{"pk": WAITING, "sk": _sort_key(alert)} for alert in alerts]
        await self._table.write_many(deletes=keys)

    async def _raise(self, alert: Alert) -> bool:
        latch: Plain = dict(_latch(alert.id))
        if alert.facts.get("window") != "life":
            latch["ttl"] = alert.raised_us // SECOND_US + LATCHES_KEPT_S
        put = {"Item": encode_item(latch), "ConditionExpression": "attribute_not_exists(pk)"}
        table = {"TableName": self._table.name}
        event = {"Item": encode_item(_event(WAITING, alert))}
        for attempt in range(MAX_TRIES):
            try:
                await self._table.transact([{"Put": table | put}, {"Put": table | event}])
            except Cancelled as cancelled:
                if any(code == "ConditionalCheckFailed" for code, _ in cancelled.reasons):
                    return False
                await pause(attempt)
            else:
                return True
        raise StoreUnavailable(f"an alert's latch conflicts after {MAX_TRIES} tries")

    # -- history

    async def recent(self, days: Sequence[str]) -> list[tuple[Alert, bool]]:
        """Alerts that were raised on these UTC days and whether they are delivered, oldest first."""
        found = {alert.id: (alert, False) for alert in await self.waiting(10_000) if _stamp(alert) in days}
        for day in days:
            ex = Expression()
            condition = f"{ex.name('pk')} = {ex.value(f'alerts#{day}')}"
            async for item in self._table.query(ex, condition):
                alert = _alert(item)
                found[alert.id] = (alert, True)
        return sorted(found.values(), key=lambda pair: _sort_key(pair[0]))

    # -- hours

    async def since(self, tenant: str, day: str) -> dict[str, dict[int, int]]:
        ex = Expression()
        condition = f"{ex.name('pk')} = {ex.value(f'hours#{tenant}')} AND {ex.name('sk')} >= {ex.value(day)}"
        return {
            item["sk"]: {int(name[1:]): used for name, used in item.items() if name.startswith("h")}
            async for item in self._table.query(ex, condition)
        }

    async def note(self, tenant: str, day: str, hour: int, used: int) -> None:
        write = Write()
        ttl = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) + HOURS_KEPT_S
        numbers = {f"h{hour:02d}": used, "ttl": ttl}
        write.sets += [f"{write.name(name)} = {write.value(number)}" for name, number in numbers.items()]
        await self._table.update({"pk": f"hours#{tenant}", "sk": day}, write)


def _latch(id: str) -> dict[str, str]:
    return {"pk": f"alert#{id}", "sk": "latch"}


def _event(partition: str, alert: Alert) -> Plain:
    return {"pk": partition, "sk": _sort_key(alert), "r": json.dumps(alert.as_dict(), separators=(",", ":"))}


def _sort_key(alert: Alert) -> str:
    return f"{alert.raised_us:017d}#{alert.id}"


def _stamp(alert: Alert) -> str:
    return Window.DAY.bounds(alert.raised_us)[0]


def _day(raised_us: int) -> str:
    return f"alerts#{Window.DAY.bounds(raised_us)[0]}"


def _alert(item: Plain) -> Alert:
    facts: dict[str, Any] = json.loads(item["r"])
    raised_us = int(item["sk"].partition("#")[0])
    known = {name: facts.pop(name) for name in ("text", "id", "kind", "tenant")}
    del facts["v"], facts["raised_at"]
    return Alert(**known, raised_us=raised_us, facts=facts)
