"""``tollgate user``: the people of a tenant, in the stack's user pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tollgate.cli import complete
from tollgate.cli.connect import boto, environment, with_tables
from tollgate.cli.output import card, confirm, echo_json, json_option, progress, table, yes_option

if TYPE_CHECKING:
    from tollgate.adapters.user_pool import User, UserPool

NAME = click.argument("name", metavar="USER")
POOL = "TOLLGATE_USER_POOL_ID"
ADMINISTRATORS = "tollgate-admins"
"""The template's group."""


def pool() -> UserPool:
    """The user pool of the stack to talk to."""
    from tollgate.adapters.user_pool import UserPool

    environ = environment((POOL,))
    return UserPool(boto("cognito-idp", environ), environ[POOL])


@click.group()
def user() -> None:
    """People: who may sign in, and whose tenant they belong to.

    They sign in at the user pool's own pages, and get tokens that name their tenant. Machines have clients (tollgate
    client) or API keys (tollgate key).

    \b
      tollgate user create ann@example.com --tenant acme
      tollgate user list --tenant acme
      tollgate user disable ann@example.com
    """


@user.command()
@NAME
@click.option("--tenant", required=True, shell_complete=complete.tenants, help="The tenant that they belong to.")
@click.option("--team", default="", help="Their team in it.")
@click.option("--email", help="Where the invitation goes (default: USER, if it is an address).")
@click.option("--no-invite", is_flag=True, help="Send nothing: print a first password, once, to be handed over.")
@click.option("--admin", is_flag=True, help="Put them into the administrators' group (GET /admin/v1/...).")
@json_option
def create(name: str, tenant: str, team: str, email: str | None, no_invite: bool, admin: bool, as_json: bool) -> None:
    """Make a user. Cognito sends an invitation with a first password, which they change when they sign in.

    Without an email address, or with --no-invite, the first password is printed: this once. A user who is there
    already, with the same tenant, team and address, stays as they are.

    \b
      tollgate user create ann@example.com --tenant acme
      tollgate user create ann --tenant acme --team research --email ann@example.com
      tollgate user create robot-tests --tenant acme --no-invite --json
    """
    address = email if email is not None else (name if "@" in name else "")
    with_tables(lambda tables: tables.tenants.get(tenant))  # there is such a tenant
    users = pool()
    made, password = users.create_user(name, tenant, team, address, invite=bool(address) and not no_invite)
    if admin:
        users.add_to_group(made.user, ADMINISTRATORS)
    if as_json:
        echo_json({**made._asdict(), "password": password})
        return
    _show(made)
    if password:
        click.echo(f"first password, shown this once: {password}")


@user.command("list")
@click.option("--tenant", shell_complete=complete.tenants, help="Of one tenant only.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
@json_option
def list_(tenant: str | None, limit: int, as_json: bool) -> None:
    """List users. Cognito cannot search by tenant: all users of the pool are read.

    \b
      tollgate user list --tenant acme
      tollgate user list --json | jq -r '.users[] | select(.enabled | not).user'
    """
    found: list[User] = []
    with progress("reading users") as read:
        for one in pool().users():
            read(1)
            if tenant in (None, one.tenant):
                found.append(one)
            if len(found) == limit:
                break
    users = sorted(found, key=lambda one: (one.tenant, one.user))
    if as_json:
        echo_json({"users": [one._asdict() for one in users]})
        return
    columns = ("user", "tenant", "team", "email", "status", "created")
    rows = [
        [one.user, one.tenant or None, one.team or None, one.email or None, _status(one), one.created] for one in users
    ]
    click.echo(table(columns, rows) if rows else "no users")


@user.command()
@NAME
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a user.

    \b
      tollgate user show ann@example.com
    """
    found = pool().user(name)
    if as_json:
        echo_json(found._asdict())
    else:
        _show(found)


@user.command()
@NAME
@json_option
def disable(name: str, as_json: bool) -> None:
    """Let a user sign in no more, and sign them out everywhere.

    An access token that they hold works until it expires, an hour at most. Who must not call a moment longer: suspend
    the tenant (tollgate tenant suspend), which is felt within 10 s.

    \b
      tollgate user disable ann@example.com
    """
    _done(pool().set_enabled(name, False), as_json)


@user.command()
@NAME
@json_option
def enable(name: str, as_json: bool) -> None:
    """Let a disabled user sign in again.

    \b
      tollgate user enable ann@example.com
    """
    _done(pool().set_enabled(name, True), as_json)


@user.command()
@NAME
@yes_option
@json_option
def delete(name: str, yes: bool, as_json: bool) -> None:
    """Delete a user for good. What they used stays in the ledger.

    \b
      tollgate user delete ann@example.com
      tollgate user delete ann@example.com --yes       in scripts
    """
    users = pool()
    found = users.user(name)
    confirm(f"Delete {found.user} of tenant {found.tenant or '(none)'} for good?", yes)
    users.remove_user(name)
    if as_json:
        echo_json({"deleted": found.user, "tenant": found.tenant})
    else:
        click.echo(f"{found.user} is deleted")


def _done(found: User, as_json: bool) -> None:
    if as_json:
        echo_json(found._asdict())
    else:
        click.echo(f"{found.user} is {'enabled' if found.enabled else 'disabled'}")


def _show(found: User) -> None:
    fields = {"user": found.user, "tenant": found.tenant, "team": found.team, "email": found.email}
    click.echo(card({name: value or None for name, value in fields.items()} | {"status": _status(found)}))


def _status(found: User) -> str:
    if not found.enabled:
        return "disabled"
    return "invited" if found.status == "FORCE_CHANGE_PASSWORD" else found.status.lower()
