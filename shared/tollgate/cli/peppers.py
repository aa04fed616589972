"""``tollgate key pepper``: what API keys are hashed with."""

from __future__ import annotations

import click

from tollgate.cli.connect import with_stack
from tollgate.cli.output import confirm, echo_json, json_option, table, yes_option

NEEDED = ("TOLLGATE_KEYS_TABLE", "TOLLGATE_KEY_PEPPER")


@click.group()
def pepper() -> None:
    """What keys are hashed with: renew it where somebody may have read the secret that holds it.

    \b
      tollgate key pepper add                        new secrets are hashed with it from now on
      tollgate key pepper list --json                which keys still need the old one: rotate these
      tollgate key pepper retire 1                   once none does

    Old and new serve side by side for as long as you like. Values are never shown.
    """


@pepper.command()
@json_option
def add(as_json: bool) -> None:
    """Make a new pepper. Secrets that are made from now on are hashed with it; all others go on with theirs.

    Gateways read it when they meet the first key that needs it: nothing is to be deployed or restarted.

    \b
      tollgate key pepper add
    """
    number = with_stack(lambda stack: stack.keys().add_pepper(), NEEDED)
    if as_json:
        echo_json({"pepper": number})
        return
    click.echo(f"new secrets are hashed with pepper {number}; `tollgate key pepper list` counts the keys to rotate")


@pepper.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List peppers, and how many keys need each. With --json their ids, too.

    A key needs the pepper of each of its secrets that still works: after a rotation both, until the overlap has passed.

    \b
      tollgate key pepper list
      tollgate key pepper list --json | jq -r '.peppers[0].keys[]'
    """
    found = with_stack(lambda stack: stack.keys().peppers(), NEEDED)
    if as_json:
        names = ("pepper", "keys", "newest", "missing")
        echo_json({"peppers": [dict(zip(names, use, strict=True)) for use in found]})
        return
    rows = [
        (use.number, len(use.keys), "MISSING" if use.missing else "for new secrets" if use.newest else "old")
        for use in found
    ]
    click.echo(table(("pepper", "keys", "state"), rows))


@pepper.command()
@click.argument("number", metavar="PEPPER")
@yes_option
@json_option
def retire(number: str, yes: bool, as_json: bool) -> None:
    """Take away a pepper that no key needs any more. What was hashed with it is worthless then.

    \b
      tollgate key pepper retire 1
    """
    confirm(f"Retire pepper {number} for good?", yes)
    with_stack(lambda stack: stack.keys().retire_pepper(number), NEEDED)
    if as_json:
        echo_json({"pepper": number, "retired": True})
    else:
        click.echo(f"pepper {number} is retired")
