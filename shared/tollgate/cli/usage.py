"""``tollgate usage``: what was used, and what it costs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tollgate.cli.connect import Stack, with_stack
from tollgate.cli.failures import FAILED, NOT_FOUND, Fail
from tollgate.cli.output import echo_json, json_option, money, progress, table
from tollgate.domain.bills import written
from tollgate.domain.reports import ALL_KEYS, COUNTS, KEYS, OVERVIEW, PARTS, TENANT_OVERVIEW, Line, grouped

if TYPE_CHECKING:
    from tollgate.domain.reports import UsageRow

ENTRIES_KEPT_DAYS = 100
"""As long as the ledger's table keeps them (`dynamodb_entering`)."""


def _keys(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(dict.fromkeys(part.strip() for part in value.replace("-", "_").split(",") if part.strip()))
    if not names or any(name not in ALL_KEYS for name in names):
        raise click.BadParameter(f"expected some of {', '.join(ALL_KEYS)}, found {value!r}", ctx, param)
    return names


def _day(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    today = _today()
    if value == "today":
        return today.isoformat()
    if found := re.fullmatch(r"([0-9]{1,4})d", value):
        return (today - timedelta(days=int(found[1]))).isoformat()
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        message = f"expected a day such as 2026-11-21, today, or 7d (days ago), found {value!r}"
        raise click.BadParameter(message, ctx, param) from None


def _month(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, str] | None:
    """The first and the last day of a month."""
    if value is None:
        return None
    try:
        first = datetime.strptime(value, "%Y-%m").date()
    except ValueError:
        raise click.BadParameter(f"expected a month such as 2026-11, found {value!r}", ctx, param) from None
    following = (first + timedelta(days=31)).replace(day=1)
    return first.isoformat(), (following - timedelta(days=1)).isoformat()


@click.group(invoke_without_command=True)
@click.option("--tenant", help="Of one tenant only.")
@click.option("--user", help="Of one user only.")
@click.option("--team", help="Of one team only.")
@click.option("--key", help="Of one API key only.")
@click.option("--use-case", help="Of one use-case label only.")
@click.option("--model", help="Of one model only.")
@click.option("--provider", help="Of one provider (an upstream of the policy) only.")
@click.option(
    "--by",
    callback=_keys,
    metavar="KEYS",
    help=f"Add up by some of {','.join(ALL_KEYS)} (default: {','.join(OVERVIEW)}, and day of one --tenant; with --json "
    f"or --csv always {','.join(KEYS)}).",
)
@click.option("--since", callback=_day, metavar="DAY", help="From this UTC day on: 2026-11-21, today, 7d.")
@click.option("--until", callback=_day, metavar="DAY", help="To the end of this UTC day.")
@click.option("--month", callback=_month, metavar="MONTH", help="Of one UTC month: 2026-11.")
@click.option("--kinds", is_flag=True, help="Tell kinds of tokens, and what was estimated or had no price, too.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
@json_option
@click.pass_context
def usage(
    ctx: click.Context,
    /,
    tenant: str | None,
    by: tuple[str, ...] | None,
    since: str | None,
    until: str | None,
    month: tuple[str, str] | None,
    kinds: bool,
    as_csv: bool,
    as_json: bool,
    **only: str | None,
) -> None:
    """Report what was used: requests, tokens and what they cost, visible 10 s after the answer at most.

    With --by, rows have those keys only. Input tokens include cached ones, output tokens reasoning. In JSON and CSV the
    cost is in whole micro-dollars, and rows are never totals. Of the use cases that a tenant's callers name in a day,
    the first 100 have rows of their own; the others are added up as "other".

    Sums that are kept answer at once, however many calls there were: for whole months, --by some of tenant, model,
    provider and use_case, or of tenant, user, team and key; for any days, --by some of tenant, model, provider and day.
    What crosses the first two (user,model) takes seconds for a month of all tenants; people or use cases by day take
    longest: name a --tenant, or fewer days. What a report is narrowed by (--user, --model) counts as in --by.

    \b
      tollgate usage --month 2026-11
      tollgate usage --tenant acme --since 7d
      tollgate usage --by user --month 2026-11
      tollgate usage --by model,day --json
      tollgate usage --by team,use_case --tenant acme --month 2026-11 --kinds
      tollgate usage --by tenant --month 2026-11 --csv > november.csv
      tollgate usage export --tenant acme --month 2026-11 --verify
    """
    if ctx.invoked_subcommand is not None:
        return
    if month is not None:
        if since or until:
            raise click.UsageError("--month is a time of its own: leave out --since and --until")
        since, until = month
    if since is not None and until is not None and until < since:
        raise click.UsageError(f"--until {until} is before --since {since}")
    where = {name: value for name, value in only.items() if value is not None}
    if by is None:
        by = KEYS if as_json or as_csv else OVERVIEW if tenant is None else TENANT_OVERVIEW

    async def run(stack: Stack) -> list[UsageRow]:
        with progress("rows read") as passed:
            return await stack.ledger().report(
                tenant=tenant, since=since, until=until, where=where, by=by, passed=passed
            )

    rows = grouped(with_stack(run, ("TOLLGATE_LEDGER_TABLE",)), by, kinds=kinds)
    counts = (*COUNTS, *(PARTS if kinds else ()))
    if as_json:
        echo_json({"rows": rows})
    elif as_csv:
        click.echo(written(rows, (*by, *counts), "csv", head=True).decode(), nl=False)
    elif rows:
        click.echo(_table(by, counts, rows))
    else:
        click.echo("nothing was used")


def _table(keys: Sequence[str], counts: Sequence[str], rows: Sequence[Line]) -> str:
    # short heads: all that is told without options fits 80 characters
    heads = (name.removesuffix("_tokens").removesuffix("_microusd").replace("requests", "calls") for name in counts)
    columns = [*keys, *heads]
    shown = [[*(row[key] for key in keys), *(_count(name, row[name]) for name in counts)] for row in rows]
    sums = [_count(name, sum(row[name] for row in rows)) for name in counts]
    footer = ["total", *[""] * (len(keys) - 1), *sums] if len(rows) > 1 else ()
    return table(columns, shown, footer)


def _count(name: str, amount: int) -> str:
    return money(amount) if name == "cost_microusd" else f"{amount:,}"


# -- the billing export ----------------------------------------------------------------------------------------------


@usage.command()
@click.option("--tenant", required=True, help="Whose bill.")
@click.option("--month", callback=_month, required=True, metavar="MONTH", help="The UTC month: 2026-11.")
@click.option("--entries", is_flag=True, help="A line for each call, not for each row of the report.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV, not lines of JSON.")
@click.option("--verify", is_flag=True, help="Sum the ledger's entries, and fail where the report says something else.")
@click.option("--output", type=click.Path(dir_okay=False), help="The file (default: bill-TENANT-MONTH.jsonl or .csv).")
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    tenant: str,
    month: tuple[str, str],
    entries: bool,
    as_csv: bool,
    verify: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Write a tenant's bill of a month: a file, and a manifest beside it with its SHA-256 and totals.

    The same ledger makes the same file, byte for byte. Costs are whole micro-dollars; input tokens include cached ones.
    Each line says what was estimated (`estimated`) and what was reckoned at the ceiling price for want of a price
    (`ceiling`; of entries `priced`). --verify reads every entry of the month: they are kept for 100 days. Calls are
    entered until 90 days after they were made, nearly all within seconds.

    \b
      tollgate usage export --tenant acme --month 2026-11 --verify
      tollgate usage export --tenant acme --month 2026-11 --entries --csv --output acme.csv
    """
    from tollgate.services.billing import Bill
    from tollgate.services.billing import export as write_bill

    days = _days(*month)
    today = _today()
    if (entries or verify) and (today - date.fromisoformat(days[0])).days > ENTRIES_KEPT_DAYS:
        raise Fail(f"entries are kept for {ENTRIES_KEPT_DAYS} days: leave out --entries and --verify", NOT_FOUND)
    if days[-1] >= today.isoformat():
        click.echo(f"{days[0][:7]} is not over: this bill will grow", err=True)
    path = Path(output or f"bill-{_file_name(tenant)}-{days[0][:7]}.{'csv' if as_csv else 'jsonl'}")
    partial = path.with_name(f".{path.name}.part")

    async def run(stack: Stack) -> Bill:
        with progress("days", len(days)) as passed, partial.open("wb") as file:
            return await write_bill(
                stack.ledger(),
                tenant,
                days,
                file.write,
                kind="csv" if as_csv else "jsonl",
                entries=entries,
                verify=verify,
                passed=passed,
            )

    try:
        bill = with_stack(run, ("TOLLGATE_LEDGER_TABLE",))
        if not bill.differences:
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if bill.differences:
        shown = [
            {**d.row._asdict(), "figure": d.figure, "told": d.told, "entered": d.entered} for d in bill.differences
        ]
        if as_json:
            echo_json({"ok": False, "differences": shown})
        for one in bill.differences[:10]:
            where = "/".join(part for part in one.row if part)
            click.echo(f"{where}: {one.figure} is {one.told:,} in the report, {one.entered:,} by the entries", err=True)
        click.echo(f"{len(shown)} figures differ; nothing was written", err=True)
        ctx.exit(FAILED)
    manifest = {**bill.manifest, "file": path.name}
    beside = path.with_name(f"{path.name}.manifest.json")
    beside.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        echo_json({"ok": True, "path": str(path), "manifest": manifest})
        return
    totals = manifest["totals"]
    click.echo(f"{path}: {manifest['lines']:,} lines, {totals['requests']:,} calls, {money(totals['cost_microusd'])}")
    if verify:
        click.echo(f"equal to the sum of {manifest['verified_entries']:,} entries")
    click.echo(f"sha256 {manifest['sha256']} (in {beside})")


def _today() -> date:
    return datetime.now(UTC).date()


def _days(first: str, last: str) -> list[str]:
    day, end = date.fromisoformat(first), date.fromisoformat(last)
    return [(day + timedelta(days=i)).isoformat() for i in range((end - day).days + 1)]


def _file_name(tenant: str) -> str:
    """A tenant's name as part of a file's: no separators, and no two tenants the same."""
    safe = re.sub(r"[^A-Za-z0-9._@-]", "_", tenant)
    return safe if safe == tenant else f"{safe}-{hashlib.sha256(tenant.encode()).hexdigest()[:8]}"
