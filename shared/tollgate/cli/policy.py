"""``tollgate policy``: the file, and what runs."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.changes import describe, plans_of
from tollgate.cli.connect import actor, local_stack, with_tables
from tollgate.cli.failures import BAD_POLICY
from tollgate.cli.output import attended, confirm, echo_json, json_option, yes_option
from tollgate.cli.prices import names_without_price

if TYPE_CHECKING:
    from tollgate.adapters.policy_tables import PolicyTables
    from tollgate.domain.policy import Policy
    from tollgate.domain.policy_diff import Change

FILE = click.argument("file", required=False, type=click.Path(dir_okay=False))


@click.group()
def policy() -> None:
    """The policy: models, plans and routes, in policy.yaml and in the tables.

    FILE is TOLLGATE_POLICY, or policy.yaml, if it is not given.

    \b
      tollgate policy check          is the file right?
      tollgate policy diff           what would it change?
      tollgate policy apply          make it so
    """


@policy.command()
@FILE
@json_option
@click.pass_context
def check(ctx: click.Context, file: str | None, as_json: bool) -> None:
    """Check a file, with this environment's overrides. Every mistake is named with its line; exit code 5.

    \b
      tollgate policy check
      TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS=5 tollgate policy check
    """
    from tollgate.adapters.policy_file import PolicyErrors, load

    path = _path(file)
    try:
        found = load(path, os.environ)
    except PolicyErrors as errors:
        if not as_json:
            raise
        echo_json({"ok": False, "file": path, "problems": [problem.as_dict() for problem in errors.problems]})
        ctx.exit(BAD_POLICY)
    counts = {name: len(getattr(found, name)) for name in ("upstreams", "models", "plans", "tenants")}
    missing = names_without_price(found)
    if as_json:
        echo_json({"ok": True, "file": path, **counts, "unpriced": missing})
    else:
        held = (f"{count} {name if count != 1 else name.removesuffix('s')}" for name, count in counts.items())
        click.echo(f"{path} is right: {', '.join(held)}")
        if missing:
            click.echo(f"without a price, billed at the ceiling: {', '.join(missing)} (tollgate price check)", err=True)


@policy.command()
@FILE
@json_option
def diff(file: str | None, as_json: bool) -> None:
    """Show what `apply` would change, for which plans, models, upstreams and tenants. Nothing is written.

    \b
      tollgate policy diff
      tollgate policy diff staging.yaml --stack tollgate-staging
    """
    _preview(_for_the_tables(_path(file)), as_json)


@policy.command()
@FILE
@click.option("--dry-run", is_flag=True, help="Show what would change, and stop: `tollgate policy diff`.")
@yes_option
@json_option
def apply(file: str | None, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Make a file the policy: all of it, or nothing if it has a mistake. Felt within 10 s, without a deploy.

    On a terminal it shows what will change, and asks. If somebody else changes it meanwhile, nothing is written.

    Plans, models and upstreams that the file lacks are removed. Tenants that it names are made or changed; others stay
    as they are, and a suspended one stays suspended. Overrides of the environment are not written. A local stack sends
    the upstreams to where it has sent them before.

    \b
      tollgate policy apply
      tollgate policy apply --dry-run staging.yaml
      tollgate policy apply --yes                      in scripts
    """
    found = _for_the_tables(_path(file))
    if dry_run:
        _preview(found, as_json)
        return
    seen = None
    if not yes and not as_json and attended():
        seen = _preview(found, as_json)
        if not seen:
            return
        confirm("Apply this?", yes)
    applied = with_tables(lambda tables: tables.apply(found, actor(), seen))
    if as_json:
        changes = [change.as_dict() for change in applied.changes]
        echo_json({"revision": applied.revision, "changes": changes, "tenants": applied.tenants})
        return
    if seen is None and applied.changes:
        click.echo(describe(applied.changes))
    click.echo(f"revision {applied.revision}" if applied.changes else f"no difference; revision {applied.revision}")


def _preview(found: Policy, as_json: bool) -> list[Change]:
    """Say what would change."""

    async def run(tables: PolicyTables) -> tuple[list[Change], Counter[str]]:
        changes = await tables.diff(found)
        plans = plans_of(changes)
        on_plans = await tables.tenants.on_plans(plans) if plans else []
        return changes, Counter(plan for _, plan in on_plans)

    changes, tenants_on = with_tables(run)
    if as_json:
        said = {plan: tenants_on[plan] for plan in plans_of(changes)}
        echo_json({"changes": [change.as_dict() for change in changes], "tenants_on_plans": said})
    else:
        click.echo(describe(changes, tenants_on) if changes else "no difference")
    return changes


@policy.command()
@json_option
def show(as_json: bool) -> None:
    """Print the policy of the tables, as a file that `check` and `apply` take.

    \b
      tollgate policy show > policy.yaml
      tollgate policy show --json | jq .revision
    """
    found = with_tables(lambda tables: tables.edited())
    from tollgate.domain.policy_document import jsonable
    from tollgate.domain.schema import plain

    shown: dict[str, Any] = jsonable(plain(found))
    shown.pop("revision", None)
    if as_json:
        echo_json({"revision": found.revision, "policy": shown})
        return
    import yaml

    click.echo(f"# revision {found.revision}")
    click.echo(yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=118, allow_unicode=True), nl=False)


def _path(file: str | None) -> str:
    return file or os.environ.get("TOLLGATE_POLICY") or "policy.yaml"


def _for_the_tables(path: str) -> Policy:
    """The file as the tables shall hold it: without this terminal's overrides; for a local stack, with upstreams that
    can be called from here."""
    from tollgate.adapters.policy_file import load

    found = load(path, {})
    local = local_stack()
    if local is None or "TOLLGATE_DEV_MODEL_URL" not in local:
        return found
    from tollgate.local.demo_policy import redirect

    redirected = redirect(found, local["TOLLGATE_DEV_MODEL_URL"], local.get("TOLLGATE_DEV_UPSTREAM"))
    return redirected.replace(tenants=found.tenants)  # without the demo's own
