"""``tollgate plan``: what tenants can buy."""

from __future__ import annotations

from typing import Any

import click

from tollgate.cli import complete
from tollgate.cli.changes import describe
from tollgate.cli.connect import actor, with_tables
from tollgate.cli.failures import NOT_FOUND, Fail
from tollgate.cli.output import echo_json, json_option, table

PLAN = click.argument("name", metavar="PLAN", shell_complete=complete.plans)
CHANGES = """\b
  limits[0].requests=5                         the first limit's requests
  limits[user.requests.minute].requests=5      the same, by what it limits
  limits+={scope: user, requests: 5, per: day} one more limit
  models=[small, large]                        a whole value
"""


@click.group()
def plan() -> None:
    """Plans: the models, limits and budgets that tenants can buy.

    \b
      tollgate plan show free
      tollgate plan set free 'limits[user.requests.minute].requests=20'
    """


@plan.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the plans that the tables hold.

    \b
      tollgate plan list
      tollgate plan list --json | jq -r '.plans[].plan'
    """
    from tollgate.domain.schema import plain

    policy = with_tables(lambda tables: tables.edited())
    if as_json:
        echo_json({"plans": [{"plan": name, **plain(spec)} for name, spec in policy.plans.items()]})
        return
    rows: list[list[str | int]] = [
        [name, ", ".join(spec.models) or "-", len(spec.limits), len(spec.budgets), spec.when_stores_fail]
        for name, spec in sorted(policy.plans.items())
    ]
    click.echo(table(("plan", "models", "limits", "budgets", "when stores fail"), rows))


@plan.command()
@PLAN
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a plan. The words in brackets name its limits and budgets in `tollgate plan set`.

    \b
      tollgate plan show free
    """
    _show(with_tables(lambda tables: tables.edited()), name, as_json)


@plan.command(
    "set",
    help=f"""Change a plan. The whole policy is checked first; felt within 10 s, without a deploy.

{CHANGES}
\b
  tollgate plan set free 'limits[0].requests=20' 'limits[0].burst=20'
  tollgate plan set free --unset 'budgets[user.tokens.day.small]'
  tollgate plan set trial --create 'models=[small]' 'budgets+={{scope: tenant, usd: 1, per: life}}'
""",
)
@PLAN
@click.argument("changes", nargs=-1, metavar="[CHANGE]...")
@click.option("--unset", multiple=True, metavar="PATH", help="Take something away.")
@click.option("--create", "new", is_flag=True, help="Make a plan that is not there yet.")
@json_option
def set_(name: str, changes: tuple[str, ...], unset: tuple[str, ...], new: bool, as_json: bool) -> None:
    from tollgate.cli.edits import editor

    if not changes and not unset:
        raise click.UsageError("nothing to change: give a CHANGE or --unset PATH")
    edit = editor(changes, unset)

    def existing(data: dict[str, Any]) -> dict[str, Any]:
        if not data and not new:
            raise Fail(f"there is no plan {name!r} (--create makes it)", NOT_FOUND)
        return edit(data)

    async def run(tables: Any) -> tuple[Any, Any]:
        applied = await tables.edit_plan(name, existing, actor())
        return applied, await tables.edited()

    applied, policy = with_tables(run)
    if not as_json:
        if applied.changes:
            click.echo(describe(applied.changes))
        click.echo(f"revision {applied.revision}" if applied.changes else "nothing changed")
        return
    _show(policy, name, as_json)


def _show(policy: Any, name: str, as_json: bool) -> None:
    from tollgate.cli.edits import entry_lines
    from tollgate.domain.policy_paths import nearest
    from tollgate.domain.schema import plain

    spec = policy.plans.get(name)
    if spec is None:
        hint = nearest(name, tuple(policy.plans))
        raise Fail(f"there is no plan {name!r}" + (f" ({hint})" if hint else ""), NOT_FOUND)
    shown = plain(spec)
    if as_json:
        echo_json({"plan": name, "limits": [], "budgets": [], **shown, "revision": policy.revision})
        return
    click.echo(f"plan              {name}\nmodels            {', '.join(spec.models) or '-'}")
    click.echo(f"when stores fail  {spec.when_stores_fail}")
    if spec.redis_failure_mode is not None:
        click.echo(f"when Redis fails  {spec.redis_failure_mode}")
    for line in entry_lines(shown, {"limits": "limits", "budgets": "budgets"}):
        click.echo(line)
