"""``tollgate user``: the people of a tenant, in the stack's user pool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from tollgate.cli import complete
from tollgate.cli.connect import TABLES, Stack, actor, boto, environment, with_stack, with_tables
from tollgate.cli.failures import CONFLICT, Fail
from tollgate.cli.output import card, confirm, echo_json, json_option, progress, table, yes_option

if TYPE_CHECKING:
    from tollgate.adapters.user_pool import User, UserPool


def _name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not 0 < len(value) <= 256 or not value.isprintable() or value != value.strip():
        raise click.BadParameter("expected a name of at most 256 printable characters", ctx, param)
    return value


NAME = click.argument("name", metavar="USER", callback=_name)
OF_TENANT = click.option("--tenant", shell_complete=complete.tenants, help="Whose user it is.")
POOL = "TOLLGATE_USER_POOL_ID"
NEEDS = (*TABLES, POOL)
ADMINISTRATORS = "tollgate-admins"
"""The template's group."""
LONGEST_TOKEN = timedelta(days=1)
"""For how long Cognito lets an access token be good at most."""


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
    record = with_tables(lambda tables: tables.tenants.get(tenant))
    if record.disables(name, int(datetime.now(UTC).timestamp() * 1_000_000)):
        raise Fail(f"{name!r} is disabled: tollgate user enable {name} --tenant {tenant}", CONFLICT)
    users = pool()
    made, password = users.create_user(name, tenant, team, address, invite=bool(address) and not no_invite)
    if admin:
        users.add_to_group(made.user, ADMINISTRATORS)
    groups = users.groups(made.user)
    if as_json:
        echo_json({**made._asdict(), "groups": groups, "password": password})
        return
    _show(made, groups, False)
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
    users = pool()
    found = users.user(name)
    _show(found, users.groups(found.user), as_json)


@user.command()
@NAME
@json_option
def promote(name: str, as_json: bool) -> None:
    """Make a user an administrator.

    With their next token they may read GET /admin/v1/..., every tenant's.

    \b
      tollgate user promote ann@example.com
    """
    users = pool()
    _administers(users, name, users.add_to_group, as_json)


@user.command()
@NAME
@json_option
def demote(name: str, as_json: bool) -> None:
    """Make an administrator an ordinary user again. Felt within 20 s, whatever token they hold.

    \b
      tollgate user demote ann@example.com
    """
    users = pool()
    _administers(users, name, users.remove_from_group, as_json)


@user.command()
@NAME
@OF_TENANT
@json_option
def disable(name: str, tenant: str | None, as_json: bool) -> None:
    """Refuse a user's calls, and let them sign in no more.

    Felt within 10 s (403), whatever they hold, tokens and API keys; calls that are being answered go on. The tenant's
    record says so (disabled_users, a thousand at most): `tollgate tenant show`.

    With --tenant also users whom the user pool does not know: another issuer's, or those that only API keys name.

    \b
      tollgate user disable ann@example.com
      tollgate user disable partner:bob --tenant globex
    """

    async def run(stack: Stack) -> User | None:
        found, tenants = _find(stack, name, tenant), stack.tables().tenants
        if found is None:
            await tenants.disable(tenant or "", {name}, actor())
            return None
        try:
            await _of(found, tenants.disable(found.tenant, found.names, actor()))
        finally:  # whatever fails, the other is done
            found = pool().set_enabled(found.user, False)
        return found

    _done(name, tenant, with_stack(run, TABLES if tenant else NEEDS), "disabled", as_json)


@user.command()
@NAME
@OF_TENANT
@json_option
def enable(name: str, tenant: str | None, as_json: bool) -> None:
    """Let a disabled user call and sign in again.

    \b
      tollgate user enable ann@example.com
      tollgate user enable partner:bob --tenant globex
    """

    async def run(stack: Stack) -> User | None:
        found, tenants = _find(stack, name, tenant), stack.tables().tenants
        if found is None:
            await tenants.enable(tenant or "", {name}, actor())
            return None
        await _of(found, tenants.enable(found.tenant, found.names, actor()))
        return pool().set_enabled(found.user, True)

    _done(name, tenant, with_stack(run, TABLES if tenant else NEEDS), "enabled", as_json)


@user.command()
@NAME
@yes_option
@json_option
def delete(name: str, yes: bool, as_json: bool) -> None:
    """Delete a user for good. What they used stays in the ledger.

    Tokens that they hold are refused within 10 s. API keys in their name are not theirs alone: revoke those that shall
    go (tollgate key list), or disable the user instead.

    \b
      tollgate user delete ann@example.com
      tollgate user delete ann@example.com --yes       in scripts
    """

    async def run(stack: Stack) -> User:
        users = pool()
        found = users.user(name)
        confirm(f"Delete {found.user} of tenant {found.tenant or '(none)'} for good?", yes)
        if found.sub:
            until = datetime.now(UTC) + LONGEST_TOKEN
            await _of(found, stack.tables().tenants.disable(found.tenant, {found.sub}, actor(), until))
        users.remove_user(found.user)
        return found

    found = with_stack(run, NEEDS)
    if as_json:
        echo_json({"deleted": found.user, "tenant": found.tenant})
    else:
        click.echo(f"{found.user} is deleted")


def _administers(users: UserPool, name: str, change: Callable[[str, str], None], as_json: bool) -> None:
    """Put a user into the administrators' group or take them out, as `change` does, and show them."""
    found = users.user(name)
    change(found.user, ADMINISTRATORS)
    _show(found, users.groups(found.user), as_json)


def _find(stack: Stack, name: str, tenant: str | None) -> User | None:
    """The user pool's user; of `tenant`, if one is given, and then None where the pool (if there is one) knows none.
    Raises `NotFound`."""
    if tenant is not None and not stack.environ.get(POOL):
        return None
    return pool().find(name, tenant)


async def _of(found: User, change: Awaitable[None]) -> None:
    """A change of the record of a user's tenant, if there is such a record: who has none gets no tokens."""
    from tollgate.adapters.tenants_table import NotFound

    try:
        await change
    except NotFound:
        click.echo(f"tollgate: there is no tenant {found.tenant!r}, so only the user pool was changed", err=True)


def _done(name: str, tenant: str | None, found: User | None, what: str, as_json: bool) -> None:
    if as_json:
        echo_json(found._asdict() if found else {"user": name, "tenant": tenant, "enabled": what == "enabled"})
    elif found is not None:
        click.echo(f"{found.user} is {what}")
    else:
        click.echo(f"{name} of {tenant} is {what}; the user pool does not know them")


def _show(found: User, groups: Sequence[str], as_json: bool) -> None:
    if as_json:
        echo_json({**found._asdict(), "groups": groups})
        return
    fields = {"user": found.user, "tenant": found.tenant, "team": found.team, "email": found.email}
    fields |= {"groups": ", ".join(groups), "in tokens": found.sub}
    click.echo(card({name: value or None for name, value in fields.items()} | {"status": _status(found)}))


def _status(found: User) -> str:
    if not found.enabled:
        return "disabled"
    return "invited" if found.status == "FORCE_CHANGE_PASSWORD" else found.status.lower()
