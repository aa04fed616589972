"""``tollgate audit``: who changed what, and who was refused."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.connect import Stack, with_stack
from tollgate.cli.output import echo_json, flow, json_option, shown
from tollgate.cli.values import AGO

if TYPE_CHECKING:
    from tollgate.domain.audit import Change, Refusals

INDENT = "    "
MOST_LINES = 8
"""Of what one entry says, on a terminal."""
KINDS = {"policy": "policy", "tenants": "tenant", "keys": "key"}


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
      tollgate audit --only refusals --since 2026-11-20 --until 2026-11-21T09:00
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
        click.echo("\n".join(map(_lines, entries)))
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
    whole = entry.as_dict()
    return whole | {side: json.loads(whole[side]) for side in ("before", "after") if side in whole}


def _lines(entry: Change | Refusals) -> str:
    """One entry for people. On a terminal who did what comes first, and below it, in lines that fit, what it was; where
    that fits behind it, and in what is no terminal, it is one line."""
    from tollgate.domain.audit import Refusals

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    when = _time(entry.ts_us)
    if isinstance(entry, Refusals):
        who = "/".join(filter(None, (entry.tenant, entry.user or entry.key))) or entry.network or "(others)"
        head, said = f"{when}  {shown(who)}  refused {entry.count}x", [f"{entry.status} {shown(entry.rule)}"]
    else:
        who = entry.actor if width is None else entry.actor.rpartition(":")[2]  # the end of an ARN
        head, said = f"{when}  {shown(who)}  {entry.action} {shown(_named(entry))}", _said(entry)
    line = f"{head}: {'; '.join(said)}"
    if width is None or len(line) <= width:
        return line
    wrapped = [part for text in said for part in wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT * 2)]
    if len(wrapped) > MOST_LINES:
        wrapped[MOST_LINES - 1 :] = [f"{INDENT}... (whole: --json)"]
    return "\n".join([head, *wrapped])


def _named(entry: Change) -> str:
    """What an item is: the table says the kind, but for plans and the like, whose keys do."""
    kind, separator, name = entry.item.partition("#")
    if separator:
        return f"{kind} {name}"
    return f"{KINDS[entry.table]} {entry.item}"


def _said(entry: Change) -> list[str]:
    """What a change says, an attribute or a single value a line; as one would write it in policy.yaml."""
    from tollgate.domain.changes import HIDDEN
    from tollgate.domain.policy_diff import changes
    from tollgate.domain.policy_paths import render

    before, after = json.loads(entry.before), json.loads(entry.after)
    if entry.action != "changed":
        told = {name: value for name, value in (after or before).items() if value != HIDDEN}
        hidden = ", ".join(shown(name) for name in (after or before) if name not in told)
        lines = [f"{shown(name)}: {flow(value)}" for name, value in told.items()]
        return [*lines, f"(not shown: {hidden})"] if hidden else lines
    found = []
    for path, old, new in changes(before, after):
        where = shown(render(path))
        if old is None or new is None:
            found.append(f"+ {where}: {flow(new)}" if old is None else f"- {where}: {flow(old)}")
        else:
            found.append(f"{where}: {flow(old)} -> {flow(new)}")
    return found


def _time(us: int) -> str:
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
