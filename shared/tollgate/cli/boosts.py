"""``tollgate boost``: more of something for a tenant or one of its users, until a moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli import complete
from tollgate.cli.connect import actor, with_tables
from tollgate.cli.failures import NOT_FOUND, USAGE, Fail
from tollgate.cli.output import echo_json, flow, json_option, table
from tollgate.cli.values import MOMENT, SPAN

if TYPE_CHECKING:
    from tollgate.adapters.policy_tables import PolicyTables
    from tollgate.domain.policy import BudgetSpec, LimitSpec, Policy, TenantRecord

UNITS = ("requests", "tokens", "concurrent", "usd")
FIELDS = ("scope", *UNITS, "per", "burst", "models")
TENANT = click.argument("tenant", shell_complete=complete.tenants)
USER = click.option("--user", help="For one user of the tenant only.")


class Shorthand(click.Group):
    """`tollgate boost acme ...` is `tollgate boost add acme ...`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["add", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=Shorthand)
def boost() -> None:
    """Boosts: more of a limit or budget for a tenant, or one of its users, until a moment.

    `tollgate boost TENANT LIMIT` is short for `tollgate boost add TENANT LIMIT`. A boost replaces the plan's limit of
    the same kind while it lasts, and ends by itself; what is to stay is said with `tollgate tenant set`.

    \b
      tollgate boost acme scope=user requests=1000 per=minute --for 2h
      tollgate boost acme --user ann tokens=8000000 per=day --until 2026-12-01
      tollgate boost list
      tollgate boost end acme user.requests.minute
    """


@boost.command()
@TENANT
@click.argument("limit", nargs=-1, required=True, metavar="LIMIT...")
@USER
@click.option("--until", type=MOMENT, metavar="MOMENT", help="Its end: a UTC day or time, such as 2026-12-01.")
@click.option("--for", "span", type=SPAN, metavar="SPAN", help="How long from now: 30m, 2h, 7d, 4w.")
@json_option
def add(
    tenant: str, limit: tuple[str, ...], user: str | None, until: datetime | None, span: timedelta | None, as_json: bool
) -> None:
    """Give a tenant, or one of its users, more of something until a moment. Felt within 10 s.

    LIMIT is written as in policy.yaml: requests=100 per=minute, tokens=1000000 per=day, concurrent=20, usd=50
    per=month; with burst=, models= and scope= where they matter. Without scope= it is that of the plan's limit of the
    same kind. A boost of the same limit replaces the one that is there, so that this also makes one longer.

    \b
      tollgate boost add acme scope=user requests=1000 per=minute --for 2h
      tollgate boost add acme --user ann tokens=8000000 per=day --until 2026-12-01
      tollgate boost add acme scope=tenant usd=1000 per=month --until 2027-01-01
    """
    if (until is None) == (span is None):
        raise click.UsageError("a boost ends: give --until or --for (for good: tollgate tenant set)")
    now = datetime.now(UTC).replace(microsecond=0)
    end = until if until is not None else now + (span or timedelta())
    if end <= now:
        raise click.UsageError(f"--until is past: it is {_iso(now)}")
    said = _read(limit)
    if user is not None:
        if said.get("scope", "user") != "user":
            raise click.UsageError("a boost for one user has scope=user")
        said = {**said, "scope": "user", "user": user}

    async def run(tables: PolicyTables) -> TenantRecord:
        group, base = _base(said, await tables.published(), await tables.tenants.get(tenant))
        entry = {**base, **said, "until": _iso(end)}
        return await tables.edit_tenant(tenant, lambda data: _with(data, group, entry, now), actor())

    record = with_tables(run)
    found = [row for row in _rows(record, now) if row["until"] == _iso(end)]
    if as_json:
        echo_json({"boosts": found})
    else:
        _print(found)


@boost.command("list")
@click.option("--tenant", shell_complete=complete.tenants, help="Of one tenant only.")
@click.option("--ended", is_flag=True, help="Those that have ended, too: they go with the tenant's next boost.")
@json_option
def list_(tenant: str | None, ended: bool, as_json: bool) -> None:
    """List the boosts that are in force, those that end first at the top.

    \b
      tollgate boost list
      tollgate boost list --tenant acme --ended
    """
    now = datetime.now(UTC)

    async def run(tables: PolicyTables) -> list[TenantRecord]:
        if tenant is not None:
            return [await tables.tenants.get(tenant)]
        return [record async for record in tables.tenants.records()]

    rows = [row for record in with_tables(run) for row in _rows(record, now)]
    rows = sorted((row for row in rows if ended or row["in_force"]), key=lambda row: str(row["until"]))
    if as_json:
        echo_json({"boosts": rows})
    elif rows:
        _print(rows)
    else:
        click.echo("no boosts")


@boost.command()
@TENANT
@click.argument("limit", required=False, metavar="[LIMIT]")
@USER
@click.option("--all", "every", is_flag=True, help="All boosts of the tenant.")
@json_option
def end(tenant: str, limit: str | None, user: str | None, every: bool, as_json: bool) -> None:
    """End a boost now. LIMIT is its name in `tollgate boost list`; not needed where there is only one.

    \b
      tollgate boost end acme user.requests.minute
      tollgate boost end acme user.tokens.day --user ann
      tollgate boost end acme --all
    """
    if every and (limit or user):
        raise click.UsageError("--all ends all of them: leave out LIMIT and --user")
    gone: list[dict[str, Any]] = []

    def edit(data: dict[str, Any]) -> dict[str, Any]:
        from tollgate.domain.policy_entries import GROUPS, entry_id

        name = f"{limit}@{user}" if limit and user else limit
        boosts = [entry for group in GROUPS for entry in data.get(group, []) if entry.get("until")]
        gone[:] = [
            entry
            for entry in boosts
            if (name is None or entry_id(entry) == name) and (user is None or entry.get("user") == user)
        ]
        if not gone or (len(gone) > 1 and not every):
            there = ", ".join(map(entry_id, boosts))
            if not boosts:
                raise Fail(f"{tenant} has no boosts: see `tollgate boost list`", NOT_FOUND)
            if gone:
                raise Fail(f"which one? {tenant} has {there} (--all ends all)", USAGE)
            raise Fail(f"{tenant} has no such boost: it has {there}", NOT_FOUND)
        return _without(data, gone)

    with_tables(lambda tables: tables.edit_tenant(tenant, edit, actor()))
    if as_json:
        echo_json({"tenant": tenant, "ended": gone})
        return
    for entry in gone:
        click.echo(f"ended: {flow(entry)}")


def _read(words: tuple[str, ...]) -> dict[str, Any]:
    """``requests=100 per=minute``, in one word or several, as a limit's or budget's fields."""
    from tollgate.adapters.policy_file import fragment
    from tollgate.domain.policy_document import PolicyErrors

    found: dict[str, Any] = {}
    for word in " ".join(words).split():
        name, equals, value = word.partition("=")
        if not equals or name not in FIELDS:
            raise click.UsageError(f"{word!r} is no part of a limit: write some of {', '.join(FIELDS)}, as name=value")
        try:
            found[name] = fragment(value)
        except PolicyErrors as errors:
            raise click.UsageError(f"{word}: the value {errors.problems[0].message}") from None
    given = [unit for unit in UNITS if unit in found]
    if len(given) != 1:
        raise click.UsageError(f"give exactly one of {', '.join(UNITS)}")
    amount = found[given[0]]
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise click.UsageError(f"{given[0]} is a number: {amount!r}")
    if found.get("per") is None and "concurrent" not in found:
        raise click.UsageError("per what? Add per=minute (or second, hour, day; budgets: day, month, life)")
    return found


def _base(said: Mapping[str, Any], policy: Policy, record: TenantRecord) -> tuple[str, dict[str, Any]]:
    """The one limit or budget that a boost is of, as the plan or the tenant has it for good: its group, and what names
    it. Raises `Fail` where there is none (it would be a new limit, not more of one), or where there are several."""
    unit = next(unit for unit in UNITS if unit in said)
    everything = _for_good(policy, record, said.get("user"))
    present = [(group, spec) for group, spec in everything if getattr(spec, unit, None) is not None]
    found = [
        (group, spec)
        for group, spec in present
        if spec.per == said.get("per")
        and said.get("scope", spec.scope) == spec.scope
        and set(said.get("models", getattr(spec, "models", None) or ())) == set(getattr(spec, "models", None) or ())
    ]
    if not found:
        there = ", ".join(spec.id for _, spec in present)
        has = f"of {unit} it has {there}" if there else f"it has no limit of {unit}"
        raise Fail(f"there is no such limit to boost: {record.tenant} is on plan {record.plan}; {has}", NOT_FOUND)
    if len(found) > 1:
        there = ", ".join(spec.id for _, spec in found)
        raise Fail(f"which one? {record.tenant} has {there}: add scope= or models=", USAGE)
    ((group, spec),) = found
    amount = getattr(spec, unit)
    if said[unit] <= amount:
        raise Fail(f"that is no boost: {record.tenant} has {unit}={amount} already (less: tollgate tenant set)", USAGE)
    models = getattr(spec, "models", None)
    return group, {"scope": str(spec.scope), **({"models": list(models)} if models else {})}


def _for_good(policy: Policy, record: TenantRecord, user: str | None) -> Iterator[tuple[str, LimitSpec | BudgetSpec]]:
    """The limits and budgets of a tenant, or of one of its users, without boosts."""
    plan = policy.plans.get(record.plan)
    for group in ("limits", "budgets"):
        merged = {spec.id: spec for spec in getattr(plan, group, ())}
        own = [spec for spec in getattr(record, group) if spec.until is None and spec.user in (None, user)]
        merged |= {spec.id: spec for spec in sorted(own, key=lambda spec: spec.user is not None)}
        yield from ((group, spec) for spec in merged.values())


def _with(data: dict[str, Any], group: str, boost: dict[str, Any], now: datetime) -> dict[str, Any]:
    """The tenant's data with a boost, in place of those of the same limit and of those that have ended."""
    from tollgate.domain.policy_entries import GROUPS, entry_id

    ended = [entry for name in GROUPS for entry in data.get(name, []) if entry.get("until") and _over(entry, now)]
    same = [entry for entry in data.get(group, []) if entry.get("until") and entry_id(entry) == entry_id(boost)]
    data = _without(data, [*ended, *same])
    return {**data, group: [*data.get(group, []), boost]}


def _without(data: dict[str, Any], gone: list[dict[str, Any]]) -> dict[str, Any]:
    from tollgate.domain.policy_entries import GROUPS

    kept = {group: [entry for entry in data[group] if entry not in gone] for group in GROUPS if group in data}
    return {**data, **kept}


def _rows(record: TenantRecord, now: datetime) -> list[dict[str, Any]]:
    """The boosts of a tenant, ended or not."""
    from tollgate.domain.schema import plain

    rows = []
    data = plain(record)
    for group in ("limits", "budgets"):
        for spec, entry in zip(getattr(record, group), data.get(group, []), strict=True):
            if spec.until is None:
                continue
            unit = next(unit for unit in UNITS if unit in entry)
            row = {"tenant": record.tenant, "user": spec.user, "limit": spec.id, unit: entry[unit]}
            rows.append({**row, "until": entry["until"], "in_force": not _over(entry, now)})
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    shown = [
        [row["tenant"], row["user"], row["limit"], next(str(row[unit]) for unit in UNITS if unit in row), row["until"]]
        for row in rows
    ]
    click.echo(table(("tenant", "user", "limit", "amount", "until (UTC)"), shown))


def _over(entry: Mapping[str, Any], now: datetime) -> bool:
    return datetime.fromisoformat(entry["until"]) <= now


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
