"""``tollgate key``: API keys for programs that cannot log in."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.connect import TABLES, Stack, actor, with_stack
from tollgate.cli.output import card, confirm, echo_json, json_option, table, yes_option
from tollgate.cli.peppers import pepper
from tollgate.cli.values import AHEAD, SPAN

if TYPE_CHECKING:
    from tollgate.adapters.document_table import Item
    from tollgate.adapters.keys_table import Made
    from tollgate.adapters.policy_tables import PolicyTables

NEEDED = (*TABLES, "TOLLGATE_KEYS_TABLE", "TOLLGATE_KEY_PEPPER")
USED_DAYS = 90


@click.group()
def key() -> None:
    """API keys: for programs that cannot log in, and for the Anthropic SDK.

    \b
      tollgate key create acme --user ci --expires 90d        prints the key, once
      export OPENAI_API_KEY=$(tollgate key create acme --quiet)
      tollgate key list --tenant acme
      tollgate key rotate 3kTz9QvB1xYpA --overlap 24h         a new secret; the old one works for a day
      tollgate key revoke 3kTz9QvB1xYpA --yes                 refused everywhere within 60 s

    A key looks like tg_<id>_<secret>. The id is no secret: it names the key here, in reports and in logs. The secret is
    kept nowhere; who loses it rotates the key.
    """


key.add_command(pepper)


def _later(ctx: click.Context, param: click.Parameter, moment: datetime | None) -> datetime | None:
    if moment is not None and moment <= datetime.now(UTC):
        raise click.BadParameter("is in the past", ctx, param)
    return moment


def _id(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from tollgate.domain.api_keys import id_of

    found = id_of(value)
    if found is None:  # not repeated: it may be most of a key
        raise click.BadParameter("expected a key's id, as `tollgate key list` shows it, or a whole key", ctx, param)
    return found


quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print the key and nothing else.")
id_argument = click.argument("key_id", metavar="KEY", callback=_id)


@key.command()
@click.argument("tenant")
@click.option("--user", default="", help="Whose requests they are (default: the key is its own user).")
@click.option("--team", default="", help="The team that they count for.")
@click.option("--note", default="", help="What it is for; shown in lists.")
@click.option("--expires", type=AHEAD, callback=_later, metavar="WHEN", help="90d, or 2026-12-31 (default: never).")
@click.option("--model", "models", multiple=True, help="Only this model of the plan's; may be repeated.")
@click.option("--route", "routes", multiple=True, metavar="PATH", help="Only this route, e.g. /v1/embeddings.")
@click.option(
    "--limit", "limits", multiple=True, metavar="LIMIT", help="A limit of its own: {requests: 5, per: minute}"
)
@click.option("--budget", "budgets", multiple=True, metavar="BUDGET", help="A budget of its own: {usd: 5, per: month}")
@quiet_option
@json_option
def create(
    tenant: str,
    user: str,
    team: str,
    note: str,
    expires: datetime | None,
    models: tuple[str, ...],
    routes: tuple[str, ...],
    limits: tuple[str, ...],
    budgets: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a key, and print it: the only time that anybody sees it. It works at once.

    It may do what the tenant's plan allows, or less: --model, --route, --limit and --budget narrow it down.

    \b
      tollgate key create acme --user ci --note 'nightly tests' --expires 90d
      tollgate key create acme --model small --budget '{usd: 5, per: month}'
      tollgate key create acme --limit '{requests: 60, per: minute}'
      tollgate key create acme --route /v1/embeddings --quiet > /run/secrets/tollgate
    """
    given = {"models": list(models), "routes": list(routes)}
    ends = None if expires is None else int(expires.timestamp())
    given |= {"limits": [_of_key(text) for text in limits], "budgets": [_of_key(text) for text in budgets]}

    async def run(stack: Stack) -> Made:
        from tollgate.adapters.keys_table import Owner

        for what, text in (("user", user), ("team", team), ("note", note)):
            if len(text) > 256 or not text.isprintable():
                raise click.UsageError(f"a {what} has at most 256 printable characters")
        text = await _restrictions(given, tenant, stack.tables())
        owner = Owner(tenant, user, team)
        return await stack.keys().create(owner, actor(), note=note, expires_at=ends, restrictions=text)

    _print_made(with_stack(run, NEEDED), quiet, as_json)


@key.command("list")
@click.option("--tenant", help="Of one tenant only.")
@click.option("--all", "ended", is_flag=True, help="Those that expired or were revoked, too (for 90 days).")
@json_option
def list_(tenant: str | None, ended: bool, as_json: bool) -> None:
    """List keys, without their secrets. `used` is the last UTC day of the past 90 with a call.

    \b
      tollgate key list --tenant acme
      tollgate key list --all --json | jq '.keys[] | select(.state == "revoked")'
    """

    async def run(stack: Stack) -> list[dict[str, Any]]:
        items = await stack.keys().list(tenant)
        used = await _used(stack, items)
        return [_shown(item, used) for item in items]

    rows = [row for row in with_stack(run, NEEDED) if ended or row["state"] in ("active", "rotating")]
    if as_json:
        echo_json({"keys": rows})
        return
    columns = ("id", "tenant", "user", "state", "expires", "used", "note")
    click.echo(table(columns, [[row[column] for column in columns] for row in rows]) if rows else "no keys")


@key.command()
@id_argument
@json_option
def show(key_id: str, as_json: bool) -> None:
    """Show a key: whose it is, what it may do, when it ends. Its secret is kept nowhere.

    \b
      tollgate key show 3kTz9QvB1xYpA
    """

    async def run(stack: Stack) -> dict[str, Any]:
        item = await stack.keys().get(key_id)
        return _shown(item, await _used(stack, [item]))

    _print(with_stack(run, NEEDED), as_json)


@key.command()
@id_argument
@click.option(
    "--overlap", type=SPAN, default="24h", show_default=True, metavar="TIME", help="How long old secrets work."
)
@click.option("--finish", is_flag=True, help="Make no new secret: end the overlap of the last one, now.")
@yes_option
@quiet_option
@json_option
def rotate(key_id: str, overlap: timedelta, finish: bool, yes: bool, quiet: bool, as_json: bool) -> None:
    """Give a key a new secret, and print it. The old one works until the overlap has passed, or --finish ends it.

    The key's id stays, and with it what it may do, its limits and budgets, and its line in reports. Whatever ends works
    for a minute more at most.

    \b
      tollgate key rotate 3kTz9QvB1xYpA --overlap 7d
      tollgate key rotate 3kTz9QvB1xYpA --finish         the new one is in use: the old one ends
      tollgate key rotate 3kTz9QvB1xYpA --overlap 0      a new one, and all others end at once
    """
    if finish:
        confirm(f"Is the new secret of {key_id} in use? Older ones will stop working.", yes)
        item = with_stack(lambda stack: stack.keys().finish(key_id, actor()), NEEDED)
        _tell(item, f"{key_id}: only its newest secret works, within 60 s everywhere", as_json)
        return
    seconds = int(overlap.total_seconds())
    _print_made(
        with_stack(lambda stack: stack.keys().rotate(key_id, actor(), overlap_s=seconds), NEEDED), quiet, as_json
    )


@key.command()
@id_argument
@yes_option
@json_option
def revoke(key_id: str, yes: bool, as_json: bool) -> None:
    """End a key, whatever secrets it has: refused everywhere within 60 s. It cannot be undone.

    \b
      tollgate key revoke 3kTz9QvB1xYpA
      tollgate key revoke tg_3kTz9QvB1xYpA_0hV... --yes     a whole key
    """
    confirm(f"End the API key {key_id} for good?", yes)
    item = with_stack(lambda stack: stack.keys().revoke(key_id, actor()), NEEDED)
    _tell(item, f"{key_id} is revoked; it is refused everywhere within 60 s", as_json)


def _tell(item: Item, said: str, as_json: bool) -> None:
    """What has become of a key."""
    if as_json:
        echo_json(_shown(item))
    else:
        click.echo(said)


async def _restrictions(given: dict[str, Any], tenant: str, tables: PolicyTables) -> str:
    """What the options narrow the key down to. Raises what says which of them is wrong."""
    from tollgate.adapters.policy_tables import NotFound
    from tollgate.domain.policy_check import check_record
    from tollgate.domain.policy_document import Document, Place
    from tollgate.domain.policy_paths import nearest
    from tollgate.domain.restrictions import Restrictions

    document = Document({name: value for name, value in given.items() if value}, places={(): Place("the new key")})
    found = check_record(Restrictions, document)
    policy, record = await tables.published(), await tables.tenants.get(tenant)
    plan = policy.plans.get(record.plan)
    for model in found.models or ():
        if plan is not None and model not in plan.models:
            hint = nearest(model, plan.models)
            message = f"plan {record.plan!r} of {tenant!r} has no model {model!r}" + (f" ({hint})" if hint else "")
            raise NotFound(message)
    try:
        return found.text()
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _of_key(text: str) -> Any:
    from tollgate.adapters.policy_file import fragment
    from tollgate.domain.policy_document import PolicyErrors

    try:
        entry = fragment(text)
    except PolicyErrors as errors:
        raise click.UsageError(f"{text}: {errors.problems[0].message}") from None
    return {"scope": "key", **entry} if isinstance(entry, dict) else entry


async def _used(stack: Stack, items: Sequence[Item]) -> dict[str, str]:
    """The UTC day on which each key was last used, by its id, as the ledger's rows tell; no request writes it down."""
    if not stack.environ.get("TOLLGATE_LEDGER_TABLE"):
        return {}
    ledger, last = stack.ledger(), dict[str, str]()
    since = (datetime.now(UTC).date() - timedelta(days=USED_DAYS)).isoformat()
    for tenant in {item["tenant"] for item in items}:
        for row in (used.row for used in await ledger.report(tenant=tenant, since=since, by=("key", "day"))):
            last[row.key] = max(row.day, last.get(row.key, ""))
    return last


def _shown(item: Item, used: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """What may be seen of a key: everything but the hashes. `used`: when each was last used."""
    import json

    from tollgate.adapters.keys_table import state_of
    from tollgate.domain.api_keys import PREFIX

    now = time.time()
    until = [secret["until"] for secret in item["secrets"] if secret.get("until", 0) > now]
    return {
        "id": item["key_id"],
        "prefix": f"{PREFIX}{item['key_id']}",
        "tenant": item["tenant"],
        "user": item["user"],
        "team": item.get("team", ""),
        "note": item.get("note", ""),
        "state": state_of(item, now),
        "created": item.get("created_at"),
        "created_by": item.get("created_by"),
        "expires": _utc(item.get("expires_at")),
        "used": used.get(item["key_id"]),
        "rotated": item.get("rotated_at"),
        "old_secret_until": _utc(max(until, default=None)),
        "revoked": item.get("revoked_at"),
        "pepper": item["secrets"][0]["pepper"] if item["secrets"] else None,
        "restrictions": json.loads(item.get("restrictions") or "{}"),
    }


def _print_made(made: Made, quiet: bool, as_json: bool) -> None:
    if quiet:
        click.echo(made.key)
    elif as_json:
        echo_json({"key": made.key, **_shown(made.item)})
    else:
        _print({"key": made.key, **_shown(made.item)}, as_json=False)
        click.echo("Keep the key now: it is stored nowhere, and cannot be shown again.", err=True)


def _print(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(row)
        return
    import json

    restrictions = row.pop("restrictions")
    said = {name.replace("_", " "): value for name, value in row.items() if value and name not in ("prefix", "pepper")}
    for name, entries in restrictions.items():
        said[name] = ", ".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    click.echo(card(said))


def _utc(moment_s: int | None) -> str | None:
    return None if moment_s is None else datetime.fromtimestamp(moment_s, UTC).isoformat().replace("+00:00", "Z")
