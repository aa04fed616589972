"""``tollgate client``: the machines of a tenant, as app clients of the stack's user pool."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli import complete
from tollgate.cli.connect import Stack, actor, with_stack
from tollgate.cli.failures import CONFLICT, NOT_FOUND, Fail
from tollgate.cli.output import card, confirm, echo_json, json_option, table, yes_option
from tollgate.cli.users import LONGEST_TOKEN, NEEDS, pool

if TYPE_CHECKING:
    from tollgate.adapters.client_items import ClientItems, MachineClient

CLIENT = click.argument("name", metavar="CLIENT")
OF_TENANT = click.option(
    "--tenant", shell_complete=complete.tenants, help="Whose, where several have one of this name."
)
TENANT = click.option("--tenant", required=True, shell_complete=complete.tenants, help="The tenant that it acts for.")
TEAM = click.option("--team", default="", help="Its team in it.")


def _items(stack: Stack) -> ClientItems:
    from tollgate.adapters.client_items import ClientItems

    return ClientItems(stack.service("dynamodb"), stack.environ["TOLLGATE_TENANTS_TABLE"])


def _name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value, re.ASCII):
        raise click.BadParameter("expected up to 63 letters, digits and . _ -, such as billing-job", ctx, param)
    return value


@click.group()
def client() -> None:
    """Clients: machines of a tenant, which get tokens with an id and a secret (OAuth client credentials).

    A user pool has 1,000 app clients unless AWS raises that quota, and AWS bills each token that they ask for: for many
    small machines, API keys (tollgate key) are simpler and cost nothing.

    \b
      tollgate client create billing-job --tenant acme
      tollgate client list --tenant acme
      tollgate client rotate billing-job
    """


@client.command()
@click.argument("name", metavar="NAME", callback=_name)
@TENANT
@TEAM
@json_option
def create(name: str, tenant: str, team: str, as_json: bool) -> None:
    """Make a client. Its secret is printed this once, and kept by Cognito alone.

    NAME is yours to choose, and unique in the tenant. A client that is there already stays as it is, and its secret
    stays where it is: `tollgate client rotate` makes a new one.

    \b
      tollgate client create billing-job --tenant acme
      tollgate client create nightly --tenant acme --team research --json
    """

    async def run(stack: Stack) -> tuple[MachineClient, str | None]:
        from tollgate.adapters.client_items import MachineClient

        items = _items(stack)
        await stack.tables().tenants.get(tenant)
        for known in await items.all(tenant):
            if known.name == name:
                if known.team != team:
                    raise Fail(f"there is a client {name!r} of {tenant} already, of team {known.team!r}", CONFLICT)
                return known, None
        users = pool()
        client_id, secret = users.create_client(f"{tenant}.{name}")
        try:
            return await items.add(MachineClient(client_id, tenant, name, team), actor()), secret
        except BaseException:
            users.delete_client(client_id)  # nobody would know whose it is
            raise

    made, secret = with_stack(run, NEEDS)
    _show(made, secret, as_json)
    if secret is None and not as_json:
        click.echo("it is there already: its secret was shown when it was made (a new one: tollgate client rotate)")


@client.command()
@click.argument("client_id", metavar="CLIENT_ID")
@TENANT
@TEAM
@click.option("--name", default="", help="What you call it (default: only its id).")
@json_option
def assign(client_id: str, tenant: str, team: str, name: str, as_json: bool) -> None:
    """Let an app client that is there already act for a tenant: one that a template or somebody else has made.

    \b
      tollgate client assign 4ab9example --tenant acme --name portal
    """

    async def run(stack: Stack) -> MachineClient:
        from tollgate.adapters.client_items import MachineClient

        items = _items(stack)
        await stack.tables().tenants.get(tenant)
        known = [one for one in await items.all() if one.client_id == client_id]
        if known and (known[0].tenant, known[0].team) == (tenant, team):
            return known[0]
        if not pool().has_client(client_id):
            raise Fail(f"the user pool has no app client {client_id!r}", NOT_FOUND)
        return await items.add(MachineClient(client_id, tenant, name, team), actor())

    _show(with_stack(run, NEEDS), None, as_json)


@client.command("list")
@click.option("--tenant", shell_complete=complete.tenants, help="Of one tenant only.")
@json_option
def list_(tenant: str | None, as_json: bool) -> None:
    """List clients and the tenants that they act for; never their secrets.

    \b
      tollgate client list
      tollgate client list --tenant acme --json
    """
    found = with_stack(lambda stack: _items(stack).all(tenant))
    if as_json:
        echo_json({"clients": [one.as_dict() for one in found]})
        return
    rows = [[one.name or None, one.tenant, one.team or None, one.client_id, _second(one.created)] for one in found]
    click.echo(table(("client", "tenant", "team", "id", "since"), rows) if rows else "no clients")


@client.command()
@CLIENT
@OF_TENANT
@click.option("--finish", is_flag=True, help="End the overlap: the old secret stops working.")
@yes_option
@json_option
def rotate(name: str, tenant: str | None, finish: bool, yes: bool, as_json: bool) -> None:
    """Give a client a second secret, printed this once. The old one works too, until --finish ends it.

    CLIENT is its name or its id, which stays the same. So: rotate, give the machine the new secret, see that it gets
    tokens, and finish. Tokens that were issued already work until they expire, an hour at most.

    \b
      tollgate client rotate billing-job
      tollgate client rotate billing-job --finish
    """
    found = with_stack(lambda stack: _items(stack).find(name, tenant), NEEDS)
    users = pool()
    known = users.secrets(found.client_id)
    if not finish:
        if len(known) > 1:
            raise Fail(f"{name} has two secrets already: end the older one first, with --finish", CONFLICT)
        _show(found, users.add_secret(found.client_id), as_json)
        return
    if len(known) < 2:
        raise Fail(f"{name} has one secret only: there is nothing to finish", CONFLICT)
    confirm(f"Does {name} of {found.tenant} use its new secret? The old one will stop working.", yes)
    users.end_secret(found.client_id, known[0])
    if as_json:
        echo_json({**found.as_dict(), "secrets": 1})
    else:
        click.echo(f"{name} of {found.tenant}: the old secret works no more")


@client.command()
@CLIENT
@OF_TENANT
@yes_option
@json_option
def delete(name: str, tenant: str | None, yes: bool, as_json: bool) -> None:
    """Delete a client for good: it gets no more tokens, and those that it has are refused within 10 s.

    \b
      tollgate client delete billing-job
      tollgate client delete billing-job --tenant acme --yes       in scripts
    """

    async def run(stack: Stack) -> MachineClient:
        from tollgate.adapters.tenants_table import NotFound

        items = _items(stack)
        found = await items.find(name, tenant)
        confirm(f"Delete the client {name} of tenant {found.tenant} for good?", yes)
        with suppress(NotFound):  # a tenant that is gone has nobody to refuse
            until = datetime.now(UTC) + LONGEST_TOKEN
            await stack.tables().tenants.disable(found.tenant, {found.client_id}, actor(), until)
        await items.remove(found.client_id)  # from here on it gets no tokens
        pool().delete_client(found.client_id)
        return found

    found = with_stack(run, NEEDS)
    if as_json:
        echo_json({"deleted": found.client_id, "tenant": found.tenant, "name": found.name})
    else:
        click.echo(f"the client {name} of {found.tenant} is deleted")


def _show(found: MachineClient, secret: str | None, as_json: bool) -> None:
    if as_json:
        echo_json({**found.as_dict(), "client_secret": secret})
        return
    fields: dict[str, Any] = {
        "client": found.name or None, "tenant": found.tenant, "team": found.team or None, "id": found.client_id,
    }  # fmt: skip
    click.echo(card(fields | ({"secret": secret} if secret else {})))
    if secret:
        click.echo("the secret is shown this once; with it, the machine asks the pool's /oauth2/token for tokens")


def _second(stamp: str) -> str | None:
    """A moment without its fraction."""
    return re.sub(r"\.\d+", "", stamp) or None
