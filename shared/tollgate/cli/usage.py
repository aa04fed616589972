"""``tollgate usage``: what was used, and what it costs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import click

from tollgate.cli.connect import Stack, with_stack
from tollgate.cli.output import echo_json, json_option, money, table

KEYS = ("tenant", "user", "model", "provider", "day")
COUNTS = ("requests", "input_tokens", "output_tokens", "total_tokens", "cost_microusd")

Row = dict[str, Any]


def group(rows: Sequence[Row], by: Sequence[str]) -> list[Row]:
    """Rows with the keys `by` only, and everything else that they count added up; sorted by those keys."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in by)
        into = found.setdefault(key, {**dict(zip(by, key, strict=True)), **dict.fromkeys(COUNTS, 0)})
        for name in COUNTS:
            into[name] += row[name]
    return [found[key] for key in sorted(found)]


def _keys(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in (value or ",".join(KEYS)).split(",") if part.strip()))
    if not names or any(name not in KEYS for name in names):
        raise click.BadParameter(f"expected some of {', '.join(KEYS)}, found {value!r}", ctx, param)
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


@click.command()
@click.option("--tenant", help="Of one tenant only.")
@click.option("--user", help="Of one user only.")
@click.option(
    "--by", callback=_keys, metavar="KEYS", help=f"Add up by some of {','.join(KEYS)} (default: by all of them)."
)
@click.option("--since", callback=_day, metavar="DAY", help="From this UTC day on: 2026-11-21, today, 7d.")
@click.option("--until", callback=_day, metavar="DAY", help="To the end of this UTC day.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
@json_option
def usage(
    tenant: str | None,
    user: str | None,
    by: tuple[str, ...],
    since: str | None,
    until: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Report what was used: requests, tokens and what they cost, visible 10 s after the answer at most.

    With --by, rows have those keys only. Input tokens include cached ones. In JSON and CSV the cost is in whole
    micro-dollars, and rows are never totals.

    \b
      tollgate usage --tenant acme --since 7d
      tollgate usage --by model,day --json
      tollgate usage --by tenant --since 2026-11-01 --csv > november.csv
    """

    async def run(stack: Stack) -> list[Row]:
        found = await stack.ledger().report(tenant=tenant, user=user, since=since, until=until)
        return [row.as_dict() for row in found]

    rows = group(with_stack(run, ("TOLLGATE_LEDGER_TABLE",)), by)
    if as_json:
        echo_json({"rows": rows})
    elif as_csv:
        click.echo(_csv(by, rows), nl=False)
    elif rows:
        click.echo(_table(by, rows))
    else:
        click.echo("nothing was used")


def _csv(keys: Sequence[str], rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [*keys, *COUNTS], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _not_a_formula(value) for name, value in row.items()})
    return out.getvalue()


def _not_a_formula(value: Any) -> Any:
    """Names come from callers' tokens, and a spreadsheet runs a cell that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _table(keys: Sequence[str], rows: Sequence[Row]) -> str:
    columns = (*keys, "requests", "input", "output", "total", "cost")
    shown = [[*(row[key] for key in keys), *_counts(row)] for row in rows]
    totals = {name: sum(row[name] for row in rows) for name in COUNTS}
    footer = ["total", *[""] * (len(keys) - 1), *_counts(totals)] if len(rows) > 1 else ()
    return table(columns, shown, footer)


def _counts(row: Row) -> list[str | int]:
    counts: list[str | int] = [f"{row[name]:,}" for name in COUNTS[:-1]]
    return [*counts, money(row["cost_microusd"])]
