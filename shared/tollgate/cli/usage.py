"""``tollgate usage``: what was used, and what it costs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.connect import Stack, with_stack
from tollgate.cli.output import echo_json, json_option, money, table
from tollgate.domain.reports import ALL_KEYS, COUNTS, KEYS, PARTS, Line, grouped

if TYPE_CHECKING:
    from tollgate.domain.reports import UsageRow


def _keys(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(
        dict.fromkeys(part.strip() for part in (value or ",".join(KEYS)).replace("-", "_").split(",") if part.strip())
    )
    if not names or any(name not in ALL_KEYS for name in names):
        raise click.BadParameter(f"expected some of {', '.join(ALL_KEYS)}, found {value!r}", ctx, param)
    return names


def _day(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    today = datetime.now(UTC).date()
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


@click.command()
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
    help=f"Add up by some of {','.join(ALL_KEYS)} (default: {','.join(KEYS)}).",
)
@click.option("--since", callback=_day, metavar="DAY", help="From this UTC day on: 2026-11-21, today, 7d.")
@click.option("--until", callback=_day, metavar="DAY", help="To the end of this UTC day.")
@click.option("--month", callback=_month, metavar="MONTH", help="Of one UTC month: 2026-11.")
@click.option("--kinds", is_flag=True, help="Tell kinds of tokens, and what was estimated or had no price, too.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
@json_option
def usage(
    tenant: str | None,
    by: tuple[str, ...],
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

    \b
      tollgate usage --tenant acme --since 7d
      tollgate usage --by model,day --json
      tollgate usage --by team,use_case --tenant acme --month 2026-11 --kinds
      tollgate usage --by tenant --month 2026-11 --csv > november.csv
    """
    if month is not None:
        if since or until:
            raise click.UsageError("--month is a time of its own: leave out --since and --until")
        since, until = month
    elif since is not None and until is None:
        until = (datetime.now(UTC).date() + timedelta(days=1)).isoformat()
    where = {name: value for name, value in only.items() if value is not None}

    async def run(stack: Stack) -> list[UsageRow]:
        return await stack.ledger().report(tenant=tenant, since=since, until=until, where=where)

    rows = grouped(with_stack(run, ("TOLLGATE_LEDGER_TABLE",)), by, kinds=kinds)
    counts = (*COUNTS, *(PARTS if kinds else ()))
    if as_json:
        echo_json({"rows": rows})
    elif as_csv:
        click.echo(_csv((*by, *counts), rows), nl=False)
    elif rows:
        click.echo(_table(by, counts, rows))
    else:
        click.echo("nothing was used")


def _csv(columns: Sequence[str], rows: Sequence[Line]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _not_a_formula(value) for name, value in row.items()})
    return out.getvalue()


def _not_a_formula(value: Any) -> Any:
    """Names come from callers' tokens, and a spreadsheet runs a cell that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _table(keys: Sequence[str], counts: Sequence[str], rows: Sequence[Line]) -> str:
    columns = [*keys, *(name.removesuffix("_tokens").removesuffix("_microusd") for name in counts)]
    shown = [[*(row[key] for key in keys), *(_count(name, row[name]) for name in counts)] for row in rows]
    sums = [_count(name, sum(row[name] for row in rows)) for name in counts]
    footer = ["total", *[""] * (len(keys) - 1), *sums] if len(rows) > 1 else ()
    return table(columns, shown, footer)


def _count(name: str, amount: int) -> str:
    return money(amount) if name == "cost_microusd" else f"{amount:,}"
