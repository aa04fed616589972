"""Metering: usage records in, ledger entries out.

The story, in order: read each line; what cannot be read becomes a dead letter, and holds up nothing. Settlements that
the limit store never got are made again. Closes are entered, each id once. Opens are remembered, unless their close is
in the same batch. Then the ledger's totals are pushed to the limit store as floors, and compared with the thresholds at
which budgets alert.

Settlements come before the ledger, because a floor must not count what is still to be settled: it would count twice.
A hold that lives is replaced by what was used; one that is gone is left alone, and the floor brings what was used.

With every batch, calls that nobody closed are billed at their estimates: those whose process Lambda reports to be dead
at once, others when their hold has expired. Should a close come after all, the ledger replaces the estimate by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from tollgate.domain.bookkeeping import EntryReport
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import DAY_US, SECOND_US
from tollgate.domain.records import BadRecord, UsageClose, UsageOpen
from tollgate.domain.replay import settlement_of
from tollgate.ports import Ledger, LimitStore, StoreUnavailable
from tollgate.services.alerts import Thresholds

MAX_AGE_US = 90 * DAY_US
"""Older records are refused: the ledger knows an id for 100 days, and could not tell that it has been entered."""
MAX_AHEAD_US = DAY_US
"""Clocks differ, but not by a day."""
PATIENCE_US = 60 * SECOND_US
"""How long after its hold has expired a call is still expected to be closed."""
OPENS_AT_ONCE = 200
TAMPERED = "id: it has been entered with another bill"
HOLDS_LIVE_US = 3600 * SECOND_US
"""No hold lives longer: older calls have nothing left to settle."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A line that cannot be entered, and why. The reason holds nothing of the line but the value of one field."""

    line: str
    reason: str

    @property
    def told(self) -> str:
        """The reason without what was found, which is content."""
        return self.reason.partition(" found ")[0].rstrip(":,")


class DeadLetters(Protocol):
    """Where lines go that cannot be entered."""

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        """Raises `StoreUnavailable`."""
        ...


class Entries(Ledger, Protocol):
    """The ledger as metering needs it. Everything raises `StoreUnavailable`."""

    async def enter(self, entries: Sequence[UsageClose], *, provisional: bool = False) -> EntryReport:
        """Enter each id once. `provisional` entries are estimates, which a later real record replaces."""
        ...

    async def opened(self, opens: Sequence[UsageOpen]) -> None:
        """Remember calls that have begun."""
        ...

    async def overdue(self, before_us: int, limit: int) -> list[UsageOpen]:
        """Calls that were to have ended before that moment, closed or not; at most `limit`."""
        ...

    async def open_calls(self, ids: Sequence[str]) -> list[UsageOpen]:
        """Those of these calls that have begun, closed or not."""
        ...

    async def forget(self, opens: Sequence[UsageOpen]) -> None: ...


@dataclass(slots=True)
class MeterReport:
    """What became of a batch, in records."""

    entered: int = 0
    repeated: int = 0
    tampered: int = 0
    """Records with the id of another that was entered, and another bill; counted in `poison`, too."""
    conflicts: int = 0
    """Transactions that had to be tried again, because other batches moved the same counters."""
    replaced: int = 0
    """Estimates that were replaced by what was really used."""
    opened: int = 0
    poison: int = 0
    settled: int = 0
    """Settlements that the proxy could not make."""
    floors: int = 0
    """Budgets whose floor was pushed to the limit store."""
    lag_ms: int = 0
    """Age of the oldest close in the batch, counted from the end of its call."""
    store_failure: str = ""
    """Why the limit store could not be told; the next batch of the same budgets, or the reconciler, tells it."""
    alerts: int = 0
    """Thresholds of budgets that were reached."""
    alert_failure: str = ""
    """Why thresholds could not be looked at; the next batch of the same budgets, or the look back, is compared."""
    resolved: int = 0
    """Calls billed at their estimates, because nobody said how they ended."""


async def meter(
    lines: Sequence[str],
    ledger: Entries,
    store: LimitStore,
    dead_letters: DeadLetters,
    now_us: int,
    unreadable: Sequence[DeadLetter] = (),
    thresholds: Thresholds | None = None,
    died: Sequence[str] = (),
) -> MeterReport:
    """Enter a batch, which may be repeated and come in any order. `unreadable` could not even be split into lines.

    `thresholds`: whom to tell what the budgets have used now. `died`: ids of calls whose process is reported dead.

    Raises `StoreUnavailable` if the ledger, the dead letters or an alert cannot be written: then the whole batch is to
    be delivered again.
    """
    closes: list[UsageClose] = []
    closing: list[str] = []
    """The lines of the closes, in their order."""
    opens: list[UsageOpen] = []
    poison = list(unreadable)
    for line in lines:
        try:
            record = read(line, now_us)
        except BadRecord as bad:
            poison.append(DeadLetter(line, str(bad)))
            continue
        if isinstance(record, UsageOpen):
            opens.append(record)
        else:
            closes.append(record)
            closing.append(line)
    report = MeterReport()
    try:
        report.settled = await settle_again(closes, store, now_us)
    except StoreUnavailable as failure:
        report.store_failure = str(failure)
    entry = await ledger.enter(closes)
    report.entered, report.repeated, report.replaced = entry.entered, entry.repeated, entry.replaced
    report.tampered, report.conflicts = len(entry.tampered), entry.conflicts
    poison += [DeadLetter(closing[i], TAMPERED) for i in entry.tampered]
    report.poison = len(poison)
    closed = {close.id for close in closes}
    waiting = [open_ for open_ in opens if open_.id not in closed]
    await ledger.opened(waiting)
    report.opened = len(waiting)
    if closes:
        report.lag_ms = max(0, max(now_us - close.ts_us - close.latency_ms * 1000 for close in closes) // 1000)
    report.resolved = await resolve_dead(ledger, died) + await resolve_opens(ledger, now_us)
    if poison:
        await dead_letters.send(poison)
    if entry.floors:
        try:
            await store.raise_floor(entry.floors)
            report.floors = len(entry.floors)
        except StoreUnavailable as failure:
            report.store_failure = str(failure)
        if thresholds is not None:
            checked = await thresholds.check(closes, entry.floors, now_us)
            report.alerts, report.alert_failure = checked.raised, checked.failure
    return report


async def settle_again(closes: Sequence[UsageClose], store: LimitStore, now_us: int) -> int:
    """Make the settlements that the store never got; how many there were. Raises `StoreUnavailable`."""
    recent = (settlement_of(close) for close in closes if now_us - close.ts_us < HOLDS_LIVE_US)
    settlements = [settlement for settlement in recent if settlement is not None]
    return await store.replay(settlements) if settlements else 0


async def resolve_dead(ledger: Entries, died: Sequence[str]) -> int:
    """Bill calls at their estimates whose process is known to be dead; how many there were. One that could be closed
    before is entered, or will be. One whose open comes later than this is left to its age."""
    opens = await ledger.open_calls(died) if died else []
    return await _bill(ledger, opens) if opens else 0


async def resolve_opens(ledger: Entries, now_us: int) -> int:
    """Bill calls that were never closed at their estimates; how many there were."""
    billed = 0
    while due := await ledger.overdue(now_us - PATIENCE_US, OPENS_AT_ONCE):
        billed += await _bill(ledger, due)
        if len(due) < OPENS_AT_ONCE:
            break
    return billed


async def _bill(ledger: Entries, opens: Sequence[UsageOpen]) -> int:
    billed = (await ledger.enter([open_.close() for open_ in opens], provisional=True)).entered
    await ledger.forget(opens)
    return billed


def read(line: str, now_us: int) -> UsageClose | UsageOpen:
    """The record in one line. Raises `BadRecord`."""
    try:
        parsed: Any = orjson.loads(line)
    except ValueError:  # also lone surrogates, and nesting without end
        raise BadRecord("not a line of JSON in UTF-8") from None
    if not isinstance(parsed, dict):
        raise BadRecord("not a JSON object")
    record = UsageOpen.parse(parsed) if parsed.get("event") == "usage.open" else UsageClose.parse(parsed)
    if not now_us - MAX_AGE_US <= record.ts_us <= now_us + MAX_AHEAD_US:
        raise BadRecord(f"ts_us: more than 90 days ago, or in the future, found {record.ts_us}")
    return record
