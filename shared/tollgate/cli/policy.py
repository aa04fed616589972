"""``tollgate policy``: the file, and what runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.connect import actor, local_stack, with_tables
from tollgate.cli.failures import BAD_POLICY
from tollgate.cli.output import echo_json, json_option
from tollgate.cli.prices import names_without_price

if TYPE_CHECKING:
    from tollgate.domain.policy import Policy

FILE = click.argument("file", required=False, type=click.Path(dir_okay=False))


@click.group()
def policy() -> None:
    """The policy: models, plans and routes, in policy.yaml and in the tables.

    FILE is TOLLGATE_POLICY, or policy.yaml, if it is not given.
    """


@policy.command()
@FILE
@json_option
@click.pass_context
def check(ctx: click.Context, file: str | None, as_json: bool) -> None:
    """Check a file, with this environment's overrides. Every mistake is named with its line; exit code 5.

    \b
      tollgate policy check
      TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS=5 tollgate policy check staging.yaml
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
        click.echo(f"{path} is right: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        if missing:
            click.echo(f"without a price, billed at the ceiling: {', '.join(missing)} (tollgate price check)", err=True)


@policy.command()
@FILE
@json_option
def diff(file: str | None, as_json: bool) -> None:
    """Show what `apply` would change."""
    found = _for_the_tables(_path(file))
    changes = with_tables(lambda tables: tables.diff(found))
    if as_json:
        echo_json({"changes": [change.as_dict() for change in changes]})
        return
    for change in changes:
        click.echo(str(change))
    if not changes:
        click.echo("no difference")


@policy.command()
@FILE
@json_option
def apply(file: str | None, as_json: bool) -> None:
    """Make a file the policy: all of it, or nothing if it has a mistake. Felt within 10 s, without a deploy.

    Plans, models and upstreams that it lacks are removed. Tenants that it names are made or changed; others stay as
    they are, and a suspended one stays suspended. Overrides of the environment are not written. A local stack sends
    the upstreams to where it has sent them before.
    """
    found = _for_the_tables(_path(file))
    applied = with_tables(lambda tables: tables.apply(found, actor()))
    if as_json:
        changes = [change.as_dict() for change in applied.changes]
        echo_json({"revision": applied.revision, "changes": changes, "tenants": applied.tenants})
        return
    for change in applied.changes:
        click.echo(str(change))
    click.echo(f"revision {applied.revision}" if applied.changes else f"no difference; revision {applied.revision}")


@policy.command()
@json_option
def show(as_json: bool) -> None:
    """Print the policy of the tables, as a file that `check` and `apply` take."""
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
