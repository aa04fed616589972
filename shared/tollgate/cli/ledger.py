"""``tollgate ledger``: enter usage records again that did not get into the ledger."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.connect import Stack, boto, environment, with_http
from tollgate.cli.failures import FAILED, USAGE, Fail
from tollgate.cli.output import echo_json, json_option
from tollgate.cli.values import AGO

if TYPE_CHECKING:
    from tollgate.cli.ledger_sources import Portion, Queue
    from tollgate.domain.bookkeeping import EntryReport
    from tollgate.domain.records import UsageClose, UsageOpen
    from tollgate.ports import LimitStore
    from tollgate.services.meter import DeadLetter, Entries

NEEDS = ("TOLLGATE_LEDGER_TABLE",)
REASONS = 20
"""Different reasons that a summary tells apart."""


@click.group()
def ledger() -> None:
    """The ledger: enter records again that did not get there.

    \b
      tollgate ledger replay --from-queue --dry-run
      tollgate ledger replay --from-queue
    """


@ledger.command()
@click.option("--from-queue", is_flag=True, help="The dead-letter queue: what can be entered now leaves it.")
@click.option(
    "--file", "files", multiple=True, metavar="LOG", help="A log file, plain or gzipped; - is standard input."
)
@click.option("--since", type=AGO, metavar="TIME", help="The proxy's log group from this time on (UTC): 2h, 7d.")
@click.option("--until", type=AGO, metavar="TIME", help="To this time; now, if not given.")
@click.option("--log-group", metavar="NAME", help="That log group, if it is not the stack's.")
@click.option("--dry-run", is_flag=True, help="Say what would be entered, and change nothing.")
@json_option
def replay(
    from_queue: bool,
    files: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    log_group: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Enter usage records again: from the dead-letter queue, from log files, or from a time range of the log group.

    Safe to repeat: each usage id counts once, whatever was entered before. Records that are older than 90 days are
    refused. What cannot be entered is told with its reason, and stays in the queue; then the exit code is 1.

    \b
      tollgate ledger replay --from-queue --dry-run
      tollgate ledger replay --since 2026-11-21T10:00 --until 2026-11-21T12:00
      zcat proxy.log.gz | tollgate ledger replay --file -
    """
    from tollgate.cli import ledger_sources as sources
    from tollgate.local.log_pipe import USAGE_PATTERN
    from tollgate.local.provision import PROXY_LOG_GROUP

    if from_queue + bool(files) + (since is not None) != 1:
        raise Fail("choose one: --from-queue, --file LOG, or --since TIME", USAGE)
    if since is None and (until is not None or log_group is not None):
        raise Fail("--until and --log-group go with --since", USAGE)
    environ = environment(NEEDS)
    queue: Queue | None = None
    portions: Iterator[Portion]
    if from_queue:
        url = environ.get("TOLLGATE_DEAD_LETTER_QUEUE_URL")
        if not url:
            raise Fail("TOLLGATE_DEAD_LETTER_QUEUE_URL: the address of the dead-letter queue is missing", USAGE)
        queue = sources.Queue(boto("sqs", environ), url, keep=dry_run)
        portions = queue.portions()
    elif files:
        portions = sources.from_files(files)
    else:
        group = log_group or environ.get("TOLLGATE_PROXY_LOG_GROUP") or PROXY_LOG_GROUP
        assert since is not None
        times = [int(moment.timestamp() * 1000) for moment in (since, until or datetime.now(UTC))]
        portions = sources.from_log_group(boto("logs", environ), group, times[0], times[1], USAGE_PATTERN)
    summary = with_http(lambda http: _replay(Stack(environ, http), portions, queue, dry_run=dry_run))
    if as_json:
        echo_json({**asdict(summary), "dry_run": dry_run})
    else:
        click.echo(_told(summary, dry_run))
    if summary.poison:
        raise Fail(f"{summary.poison} could not be entered", FAILED)


@dataclass(slots=True)
class Summary:
    """What became of everything that was read, in records."""

    read: int = 0
    entered: int = 0
    repeated: int = 0
    """The ledger had them already."""
    replaced: int = 0
    """Of those that were entered: they took the place of an estimate."""
    opened: int = 0
    refusals: int = 0
    """Counts of refusals that the audit log did not have."""
    poison: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    passed_over: int = 0
    """Lines of files that are no usage records."""
    store_failure: str = ""


class Collected:
    """Dead letters that are told, not sent: they come from where such letters are."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        self.reasons.update(letter.told for letter in letters)


class Looked:
    """A ledger that is only looked at: says what entering would do."""

    def __init__(self, stack: Stack) -> None:
        self._ledger = stack.ledger()
        self._would: dict[str, UsageClose] = {}

    async def enter(self, entries: Sequence[UsageClose], *, provisional: bool = False) -> EntryReport:
        from tollgate.domain.bookkeeping import EntryReport, first_of_each

        report = EntryReport()
        known = await self._ledger.known([entry.id for entry in entries])
        for position, entry in first_of_each(entries, report):
            found, estimate = known.get(entry.id, (self._would.get(entry.id), False))
            if found is None or estimate:
                self._would[entry.id] = entry
                report.entered += 1
                report.replaced += estimate
            elif found.bill() == entry.bill():
                report.repeated += 1
            else:
                report.tampered.append(position)
        return report

    async def opened(self, opens: Sequence[UsageOpen]) -> None:
        """Would be remembered."""

    async def overdue(self, before_us: int, limit: int) -> list[UsageOpen]:
        return []

    async def forget(self, opens: Sequence[UsageOpen]) -> None:
        """Nothing was remembered."""


async def _replay(stack: Stack, portions: Iterator[Portion], queue: Queue | None, *, dry_run: bool) -> Summary:
    import asyncio

    from tollgate.adapters.memory_limits import MemoryLimitStore
    from tollgate.services.meter import meter
    from tollgate.services.subscription import split
    from tollgate.wiring import Adapters, Settings, clock_us

    summary, collected = Summary(), Collected()
    adapters = Adapters(Settings.read(stack.environ))
    books: Any = Looked(stack) if dry_run else stack.ledger()
    entries: Entries = books
    store: LimitStore = MemoryLimitStore() if dry_run else adapters.limit_store(lambda: "fallback")
    audit = stack.audit() if stack.environ.get("TOLLGATE_AUDIT_TABLE") and not dry_run else None
    try:
        while (portion := await asyncio.to_thread(next, portions, None)) is not None:
            usage, refusals, wrong, _ = split(portion.lines)
            report = await meter(usage, entries, store, collected, clock_us(), [*portion.unreadable, *wrong])
            if refusals and audit is not None:
                summary.refusals += await audit.note(refusals)
            summary.read += len(portion.lines) + len(portion.unreadable)
            for name in ("entered", "repeated", "replaced", "opened", "poison"):
                setattr(summary, name, getattr(summary, name) + getattr(report, name))
            summary.passed_over += portion.passed_over
            summary.store_failure = report.store_failure or summary.store_failure
            if queue is not None:
                queue.done(portion, entered=not report.poison)
            _progress(f"{summary.read:,} read, {summary.entered:,} entered, {summary.repeated:,} known")
    finally:
        _progress("")
        await adapters.aclose()
    summary.reasons = dict(collected.reasons.most_common(REASONS))
    return summary


def _progress(text: str) -> None:
    """One line on a terminal's standard error, written over."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", err=True, nl=False)


def _told(summary: Summary, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    lines = [
        f"{summary.read:,} records read",
        f"{summary.entered:,} {would}entered"
        + (f", {summary.replaced:,} of them for estimates" if summary.replaced else ""),
        f"{summary.repeated:,} known already",
    ]
    if summary.opened:
        lines.append(f"{summary.opened:,} calls without their end {would}remembered")
    if summary.refusals:
        lines.append(f"{summary.refusals:,} counts of refusals entered in the audit log")
    if summary.passed_over:
        lines.append(f"{summary.passed_over:,} other lines passed over")
    lines += [f"{count:,} cannot be entered: {reason}" for reason, count in summary.reasons.items()]
    if summary.store_failure:
        lines.append(f"the limit store was not told; the reconciler will: {summary.store_failure}")
    return "\n".join(lines)
