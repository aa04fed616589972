"""``tollgate credit``: prepaid credit of a tenant, or of one of its users."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from tollgate.cli.connect import TABLES, Stack, actor, with_stack
from tollgate.cli.failures import NOT_FOUND, Fail
from tollgate.cli.output import echo_json, json_option, money, table
from tollgate.cli.values import DOLLARS

if TYPE_CHECKING:
    from tollgate.adapters.credit_table import CreditTable
    from tollgate.adapters.dynamodb_ledger import DynamoLedger
    from tollgate.adapters.policy_tables import PolicyTables
    from tollgate.domain.credit import Entry, Kind

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

MOST_USD = 1_000_000
"""Of one entry: more is a slip of the finger."""


class Books(NamedTuple):
    credit: CreditTable
    tables: PolicyTables
    ledger: DynamoLedger


def _payment(ctx: click.Context, param: click.Parameter, microusd: int) -> int:
    if not 0 < microusd <= MOST_USD * 1_000_000:
        raise click.BadParameter(f"expected US dollars such as 25.00, at most {MOST_USD:,}")
    return microusd


def _entry_id(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if value is None:
        return uuid.uuid4().hex
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}", value, re.ASCII):
        raise click.BadParameter("expected up to 128 letters, digits and . _ : @ / -, such as an invoice's number")
    return value


def _note(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if len(value) > 500 or not value.isprintable():
        raise click.BadParameter("expected at most 500 printable characters")
    return value


def _user(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if value is not None and not 0 < len(value) <= 256:
        raise click.BadParameter("expected 1 to 256 characters")
    return value or ""


id_option = click.option("--id", callback=_entry_id, help="Of this entry; repeating it adds nothing (default: random).")
note_option = click.option("--note", default="", callback=_note, help="Kept with the entry: an order, a reason.")
user_option = click.option("--user", callback=_user, help="One user's credit (default: the whole tenant's).")


def entry_options(command: F) -> F:
    """What each entry of an amount takes."""
    amount = click.argument("amount", type=DOLLARS, callback=_payment)
    for option in (json_option, note_option, id_option, user_option, amount, click.argument("tenant")):
        command = option(command)
    return command


@click.group()
def credit() -> None:
    """Prepaid credit: a balance in dollars that usage draws down. Used up: 402, until more is added.

    A tenant without an entry has no such balance: its plan's budgets count alone. With one, calls have to fit the
    budgets and the credit. What was used before the first entry is not drawn from it.

    \b
      tollgate credit add acme 25.00 --id invoice-4711     repeated, it adds nothing: safe in scripts
      tollgate credit add acme 5 --user ann --note gift    a balance of one of its users
      tollgate credit show acme                            added, used, left
      tollgate credit list acme                            every entry
      tollgate credit repair acme                          the record's sum, from the entries
    """


@credit.command()
@entry_options
def add(tenant: str, amount: int, user: str, id: str, note: str, as_json: bool) -> None:
    """Add AMOUNT dollars. Felt within 10 s.

    \b
      tollgate credit add acme 25.00 --id invoice-4711 --note "paid by card"
    """
    _enter(tenant, user, "payment", amount, id, note, as_json)


@credit.command()
@entry_options
def refund(tenant: str, amount: int, user: str, id: str, note: str, as_json: bool) -> None:
    """Take AMOUNT dollars back, which were returned to the customer. What was used already stays used.

    \b
      tollgate credit refund acme 10 --id refund-12 --note "closed their account"
    """
    _enter(tenant, user, "refund", -amount, id, note, as_json)


@credit.command()
@click.argument("tenant")
@click.argument("entry")
@note_option
@json_option
def reverse(tenant: str, entry: str, note: str, as_json: bool) -> None:
    """Undo ENTRY, which was a mistake. Both stay in the history; repeating it changes nothing.

    \b
      tollgate credit reverse acme invoice-4711 --note "wrong customer"
    """
    from tollgate.domain.credit import BadEntry, reversal

    async def find(books: Books) -> tuple[str, int]:
        try:
            return reversal(await books.credit.entries(tenant), entry)
        except BadEntry as error:
            raise Fail(str(error), NOT_FOUND) from None

    user, amount = _with_books(find)
    _enter(tenant, user, "reversal", amount, f"reversal:{entry}", note, as_json, reverses=entry)


@credit.command()
@click.argument("tenant")
@json_option
def show(tenant: str, as_json: bool) -> None:
    """Show what was added, what is used, and what is left, as admission sees it.

    \b
      tollgate credit show acme
      tollgate credit show acme --json | jq '.accounts[0].left_microusd'
    """

    async def run(books: Books) -> tuple[list[dict[str, Any]], bool]:
        return await _accounts(books, tenant), await books.credit.damaged(tenant)

    accounts, damaged = _with_books(run)
    _show(tenant, accounts, as_json, **({"damaged": damaged} if as_json else {}))
    if damaged and not as_json:
        click.echo(f"the tenant's record does not hold the sum of the entries: tollgate credit repair {tenant}")


@credit.command()
@click.argument("tenant")
@json_option
def repair(tenant: str, as_json: bool) -> None:
    """Write the sum of the entries to the tenant's record again, where it is not the same.

    For a tenant that was deleted and made again, or whose record somebody edited.

    \b
      tollgate credit repair acme
    """

    async def run(books: Books) -> tuple[bool, list[dict[str, Any]]]:
        return await books.credit.repair(tenant, actor()), await _accounts(books, tenant)

    repaired, accounts = _with_books(run)
    if not as_json:
        click.echo("repaired" if repaired else "nothing had to be repaired")
    _show(tenant, accounts, as_json, **({"repaired": repaired} if as_json else {}))


@credit.command("list")
@click.argument("tenant")
@json_option
def list_(tenant: str, as_json: bool) -> None:
    """List every entry of a tenant and its users, oldest first.

    \b
      tollgate credit list acme
    """

    async def run(books: Books) -> list[Entry]:
        await books.tables.tenants.get(tenant)
        return await books.credit.entries(tenant)

    entries = _with_books(run)
    if as_json:
        echo_json({"entries": [entry.as_dict() for entry in entries]})
    elif entries:
        columns = ("at", "account", "kind", "amount", "entry", "by", "note")
        rows = [[e.at, e.user or "(tenant)", e.kind, money(e.microusd), e.id, e.by, e.note or None] for e in entries]
        click.echo(table(columns, rows))
    else:
        click.echo(f"{tenant} has no prepaid credit")


def _enter(
    tenant: str, user: str, kind: Kind, microusd: int, id: str, note: str, as_json: bool, reverses: str = ""
) -> None:
    from tollgate.domain.credit import BadEntry, Entry

    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entry = Entry(id, tenant, user, kind, microusd, at, actor(), note, reverses)

    async def run(books: Books) -> tuple[bool, list[dict[str, Any]]]:
        try:
            added = await books.credit.add(entry)
        except BadEntry as error:
            raise Fail(str(error)) from None
        return added, await _accounts(books, tenant)

    added, accounts = _with_books(run)
    if not as_json:
        done = f"{kind} {id}: {money(microusd)}" if added else f"{kind} {id} was entered before; nothing is changed"
        click.echo(done)
    _show(tenant, accounts, as_json, entry=id, added=added)


def _show(tenant: str, accounts: list[dict[str, Any]], as_json: bool, **more: Any) -> None:
    if as_json:
        echo_json({"tenant": tenant, **more, "accounts": accounts})
    elif accounts:
        columns = ("account", "in all", "used", "left")
        names = ("limit_microusd", "used_microusd", "left_microusd")
        rows = [[account["user"] or "(tenant)", *(money(account[name]) for name in names)] for account in accounts]
        click.echo(table(columns, rows))
    else:
        click.echo(f"{tenant} has no prepaid credit")


async def _accounts(books: Books, tenant: str) -> list[dict[str, Any]]:
    """Each account as admission sees it: with the plan's own budget for life, where there is one."""
    from tollgate.domain.credit import spending_of
    from tollgate.domain.terms import budgets, credit_budget

    policy, record = await books.tables.published(), await books.tables.tenants.get(tenant)
    now_us = time.time_ns() // 1000
    takes = []
    for account in record.credit:
        user = account.user or ""
        take = spending_of(tenant, user)
        found = {b.id: b for b in budgets(policy.plans[record.plan], record, user, now_us)}
        takes.append((user, spending_of(tenant, user, found[credit_budget(take.limit.scope)])))
    spent = await books.ledger.spent([take for _, take in takes])
    accounts = []
    for (user, take), used in zip(takes, spent, strict=True):
        limit = take.limit
        numbers = {
            "limit_microusd": limit.amount - limit.before,
            "used_microusd": max(0, used - limit.before),
            "left_microusd": max(0, limit.amount - used),
        }
        accounts.append({"user": user or None, **numbers})
    return accounts


def _with_books(operation: Callable[[Books], Awaitable[T]]) -> T:
    async def run(stack: Stack) -> T:
        from tollgate.adapters.credit_table import CreditTable

        tables, ledger = stack.tables(), stack.ledger()
        table = stack.environ["TOLLGATE_LEDGER_TABLE"]
        return await operation(Books(CreditTable(stack.service("dynamodb"), table, tables, ledger), tables, ledger))

    return with_stack(run, (*TABLES, "TOLLGATE_LEDGER_TABLE"))
