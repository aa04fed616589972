"""``tollgate audit``: who changed what, and who was refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.connect import Stack, with_stack
from tollgate.cli.output import echo_json, json_option, table
from tollgate.cli.values import AGO

if TYPE_CHECKING:
    from tollgate.domain.audit import Change, Refusals

SHOWN = 60
"""Characters of a value in a change's line; --json has it whole."""


@click.command()
@click.option("--tenant", help="Of one tenant only: changes of its items, and its refusals.")
@click.option("--actor", metavar="TEXT", help="Changes by somebody whose name contains this; no refusals.")
@click.option("--since", type=AGO, default="24h", show_default=True, metavar="WHEN", help="Or 7d, or a UTC time.")
@click.option("--until", type=AGO, metavar="WHEN", help="Up to then (default: now).")
@click.option("--only", type=click.Choice(["changes", "refusals"]), help="One kind of entry.")
@json_option
def audit(
    tenant: str | None, actor: str | None, since: datetime, until: datetime | None, only: str | None, as_json: bool
) -> None:
    """Show who changed what, and who was refused by which rule, in time order.

    Every edit of the policy and of tenants is entered, by this command or by hand in the tables: the former with the
    AWS identity that made it, the latter as "by hand". Refusals are counted: a line is one caller, one rule, one
    minute. Entries are never changed. Those of changes are kept for ever, those of refusals for 90 days.

    \b
      tollgate audit --since 7d --tenant acme
      tollgate audit --actor ann --json
      tollgate audit --only refusals --since 2026-11-21T08:00 --until 2026-11-21T09:00
    """
    start, end = since.timestamp(), time.time() + 1 if until is None else until.timestamp()

    async def run(stack: Stack) -> tuple[list[Change], list[Refusals]]:
        log = stack.audit()
        span = int(start * 1_000_000), int(end * 1_000_000)
        changes = [it async for it in log.changes(*span)] if only != "refusals" else []
        # minutes begin before their refusals
        refusals = [it async for it in log.refusals(span[0] - 60_000_000, span[1])] if only != "changes" else []
        return changes, refusals

    changes, refusals = with_stack(run, ("TOLLGATE_AUDIT_TABLE",))
    if tenant is not None:
        changes = [it for it in changes if tenant in (it.item, _owner(it.before), _owner(it.after))]
        refusals = [it for it in refusals if it.tenant == tenant]
    if actor is not None:
        changes, refusals = [it for it in changes if actor in it.actor], []
    entries: list[Change | Refusals] = [*changes, *_minutes(refusals)]
    entries.sort(key=lambda entry: entry.ts_us)
    if as_json:
        echo_json({"entries": [{"at": _time(entry.ts_us), **_whole(entry)} for entry in entries]})
    elif entries:
        click.echo(table(("when", "who", "what", "how"), [_row(entry) for entry in entries]))
    else:
        click.echo("nothing was changed, and nobody was refused")


def _minutes(refusals: Iterable[Refusals]) -> list[Refusals]:
    """One entry for each minute, caller and rule, however many processes counted."""
    from dataclasses import replace

    found: dict[tuple[Any, ...], Refusals] = {}
    for one in refusals:
        key = one.ts_us, one.status, one.rule, one.tenant, one.user, one.team, one.key, one.network
        known = found.get(key)
        found[key] = one if known is None else replace(known, count=known.count + one.count)
    return list(found.values())


def _owner(side: str) -> str:
    """Whose item it is, where the item says so (a machine client, an API key)."""
    said = json.loads(side)
    return str(said.get("tenant_id") or said.get("tenant") or "")


def _whole(entry: Change | Refusals) -> dict[str, Any]:
    shown = entry.as_dict()
    return shown | {side: json.loads(shown[side]) for side in ("before", "after") if side in shown}


def _row(entry: Change | Refusals) -> list[str | int]:
    from tollgate.domain.audit import Refusals

    when = _time(entry.ts_us)
    if isinstance(entry, Refusals):
        who = "/".join(filter(None, (entry.tenant, entry.user or entry.key))) or entry.network or "(others)"
        return [when, who, f"refused {entry.count}x", f"{entry.status} {entry.rule}"]
    before, after = json.loads(entry.before), json.loads(entry.after)
    names = sorted(before.keys() | after.keys())
    if entry.action == "changed":
        said = "; ".join(f"{name}: {_short(before.get(name))} -> {_short(after.get(name))}" for name in names)
    else:
        said = "; ".join(f"{name}: {_short((after or before)[name])}" for name in names)
    return [when, entry.actor, f"{entry.action} {entry.table}/{entry.item}", said]


def _short(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _time(us: int) -> str:
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
