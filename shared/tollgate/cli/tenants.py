"""``tollgate tenant``: who may call, on which plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tollgate.cli import complete
from tollgate.cli.connect import actor, with_tables
from tollgate.cli.output import echo_json, flow, json_option, table

if TYPE_CHECKING:
    from tollgate.domain.policy import TenantRecord

TENANT = click.argument("name", metavar="TENANT", shell_complete=complete.tenants)


@click.group()
def tenant() -> None:
    """Tenants: who may call, on which plan, with which limits of their own.

    \b
      tollgate tenant create acme --plan pro
      tollgate tenant set acme plan=enterprise
      tollgate tenant suspend acme                 its next call, within 10 s, is refused with 403
    """


@tenant.command()
@click.argument("name")
@click.option("--plan", required=True, shell_complete=complete.plans, help="What it has bought (tollgate plan list).")
@click.argument("changes", nargs=-1, metavar="[CHANGE]...")
@json_option
def create(name: str, plan: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Make a tenant. It may call at once.

    CHANGEs add limits and budgets of its own, as for `tollgate tenant set`.

    \b
      tollgate tenant create acme --plan pro
      tollgate tenant create globex --plan free 'budgets+={scope: tenant, usd: 5, per: life}'
    """
    from tollgate.cli.edits import editor

    edit = editor(changes, ())

    async def run(tables: Any) -> TenantRecord:
        from tollgate.domain.policy import TenantSpec
        from tollgate.domain.policy_check import check_record
        from tollgate.domain.policy_document import Document, Place

        document = Document(edit({"plan": plan}), places={(): Place(f"tenant {name}")})
        record: TenantRecord = await tables.create_tenant(name, check_record(TenantSpec, document), actor())
        return record

    _show(with_tables(run), as_json, "created")


@tenant.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many.")
@click.option("--after", metavar="TENANT", help="The next page: what `next` said.")
@json_option
def list_(limit: int, after: str | None, as_json: bool) -> None:
    """List tenants, in the table's own order.

    \b
      tollgate tenant list
      tollgate tenant list --limit 1000 --json | jq -r '.tenants[] | select(.plan == "free").tenant'
    """
    rows, following = with_tables(lambda tables: tables.tenants.page(limit, after))
    if as_json:
        echo_json({"tenants": [row.as_dict() for row in rows], "next": following})
        return
    columns = ("tenant", "plan", "state", "version", "overrides")
    click.echo(table(columns, [[getattr(row, column) for column in columns] for row in rows]) if rows else "no tenants")
    if following:
        click.echo(f"more: tollgate tenant list --limit {limit} --after {following}")


@tenant.command()
@TENANT
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a tenant, with its own limits and budgets. The words in brackets name them in `tollgate tenant set`.

    \b
      tollgate tenant show acme
      tollgate tenant show acme --json | jq .limits
    """
    _show(with_tables(lambda tables: tables.tenants.get(name)), as_json)


@tenant.command("set")
@TENANT
@click.argument("changes", nargs=-1, metavar="[CHANGE]...")
@click.option("--plan", shell_complete=complete.plans, help="The same as plan=...")
@click.option("--unset", multiple=True, metavar="PATH", help="Take something away.")
@json_option
def set_(name: str, changes: tuple[str, ...], plan: str | None, unset: tuple[str, ...], as_json: bool) -> None:
    """Change a tenant: its plan, or limits and budgets of its own, which replace the plan's of the same kind.

    `user` makes an override one user's own, `until` ends it (a boost). `data` says where the tenant's prompts may go
    (phi, regions, no_content_logging, models), and under `teams` a team's. Felt within 10 s.

    \b
      tollgate tenant set acme plan=enterprise
      tollgate tenant set acme 'limits+={scope: user, requests: 500, per: minute, until: 2026-12-01}'
      tollgate tenant set acme 'budgets[0].usd=100'
      tollgate tenant set acme --unset 'limits[user.requests.minute]'
      tollgate tenant set acme 'data={phi: true, regions: [eu]}'
      tollgate tenant set acme 'teams.research.data.models=[small]'
    """
    from tollgate.cli.edits import editor

    if plan is None and not changes and not unset:
        raise click.UsageError("nothing to change: give a CHANGE, --plan or --unset PATH")
    edit = editor(changes, unset)
    bought = {} if plan is None else {"plan": plan}
    _show(
        with_tables(lambda tables: tables.edit_tenant(name, lambda data: edit(data | bought), actor())),
        as_json,
        "changed",
    )


@tenant.command()
@TENANT
@json_option
def suspend(name: str, as_json: bool) -> None:
    """Refuse a tenant's calls (403) until it is resumed. Felt within 10 s, whatever tokens it holds.

    Nothing is lost: limits, budgets, credit, users and clients stay. No new tokens are issued to its people and
    machines. Doing it twice changes nothing.

    \b
      tollgate tenant suspend acme
      tollgate tenant resume acme
    """
    _show(with_tables(lambda tables: tables.tenants.set_state(name, "suspended", actor())), as_json, "suspended")


@tenant.command()
@TENANT
@json_option
def resume(name: str, as_json: bool) -> None:
    """Let a suspended tenant call again. Felt within 10 s.

    \b
      tollgate tenant resume acme
    """
    _show(with_tables(lambda tables: tables.tenants.set_state(name, "active", actor())), as_json, "active again")


def _show(record: TenantRecord, as_json: bool, done: str = "") -> None:
    from tollgate.cli.edits import entry_lines
    from tollgate.domain.schema import plain

    if as_json:
        echo_json({"limits": [], "budgets": [], **plain(record), "tenant": record.tenant})
        return
    if done:
        click.echo(f"{record.tenant} is {done}")
    click.echo(f"tenant   {record.tenant}\nplan     {record.plan}\nstate    {record.state}\nversion  {record.version}")
    shown = plain(record)
    for line in entry_lines(shown, {"limits": "limit", "budgets": "budget"}):
        click.echo(line)
    if "data" in shown:
        click.echo(f"data     {flow(shown['data'])}")
    for name in ("when_stores_fail", "redis_failure_mode"):
        if name in shown:
            click.echo(f"{name.replace('_', ' ')}: {shown[name]}")
    for one in shown.get("disabled_users", []):
        click.echo(f"disabled {flow(one['user'])}" + (f" until {one['until']}" if "until" in one else ""))
    for team, own in shown.get("teams", {}).items():
        click.echo(f"team     {team} {flow(own)}")
